"""How busy the operators of a stream are."""

from __future__ import annotations

from actors.metrics import operator_loads


def test_load_is_by_operator_between_two_looks():
    previous = {"make": {"rows": 10, "seconds": 5.0, "actors": 2}, "label": {"rows": 4, "seconds": 1.0, "actors": 1}}
    current = {
        "make": {"rows": 30, "seconds": 21.0, "actors": 2, "quarantined": 3, "gpu_bytes": 2**31},
        "label": {"rows": 24, "seconds": 3.0, "actors": 1},
    }
    loads = operator_loads(["make", "label", "write"], 100, current, previous, 10.0)
    assert loads["make"] == {
        "rows": 30,
        "rows_per_second": 2.0,
        "busy_share": 0.8,
        "queued": 70,
        "rejected": 0,
        "quarantined": 3,
        "deaths": 0,
        "actors": 2,
        "gpu_gib": 2.0,
    }
    assert (loads["label"]["rows_per_second"], loads["label"]["busy_share"], loads["label"]["queued"]) == (2.0, 0.2, 6)
    assert (loads["write"]["rows"], loads["write"]["queued"]) == (0, 24)
