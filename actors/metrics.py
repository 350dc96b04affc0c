"""How busy every operator of a stream is: lines of the run's metrics.jsonl, and gauges for Ray's Prometheus endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Totals = Mapping[str, Mapping[str, float]]
"""By operator, what `Ledger.totals` counts since the stream began."""


def operator_loads(
    operators: Sequence[str], entered: int, current: Totals, previous: Totals, seconds: float
) -> dict[str, dict[str, float]]:
    """Return how busy each operator was between two looks at the ledger.

    Args:
        operators: names in the order of the stream.
        entered: rows that the stream was given.
        current, previous: totals at the end and at the beginning.
        seconds: between them.

    Returns:
        By operator: `rows` (since the stream began), `rows_per_second`, `busy_share` (of its actors' time, 0 to 1), `queued`
        (rows that the one before has finished and this one has not), `rejected`, `quarantined`, `deaths` (calls that ended
        with their process), `actors`, `gpu_gib` (largest that PyTorch held in an actor).
    """
    loads, ahead = {}, float(entered)
    for name in operators:
        after, before = current.get(name, {}), previous.get(name, {})
        rows, actors = after.get("rows", 0), after.get("actors", 0)
        busy = after.get("seconds", 0) - before.get("seconds", 0)
        loads[name] = {
            "rows": rows,
            "rows_per_second": round((rows - before.get("rows", 0)) / max(seconds, 1e-9), 4),
            "busy_share": round(min(1.0, busy / max(actors * seconds, 1e-9)), 4),
            "queued": max(0, ahead - rows),
            **{key: after.get(key, 0) for key in ("rejected", "quarantined", "deaths", "actors")},
            "gpu_gib": round(after.get("gpu_bytes", 0) / 2**30, 3),
        }
        ahead = rows
    return loads


class Meter:
    """Write what a stream does, each time it is called with the ledger's totals.

    Args:
        log: appends one line to the run's metrics, e.g. `RunDir.log`.
        run: name of the run in the gauges' tags.
        operators: names in the order of the stream.
        entered: rows that the stream was given.
        facts: kept in every line, e.g. `draw`.
    """

    def __init__(self, log: Callable[..., None], run: str, operators: Sequence[str], entered: int, **facts: Any):
        from ray.util.metrics import Gauge

        self.log, self.run, self.operators, self.entered, self.facts = log, run, list(operators), entered, facts
        self.previous: Totals = {}
        self.begun = self.looked = time.monotonic()
        self.gauges = {
            key: Gauge(f"syn4seg_{name}", text, tag_keys=("run", "stage"))
            for key, name, text in (
                ("queued", "queued_rows", "Rows that wait before a stage or are in it."),
                ("actors", "actors", "Actors of a stage."),
            )
        }

    def __call__(self, totals: Totals) -> None:
        now = time.monotonic()
        loads = operator_loads(self.operators, self.entered, totals, self.previous, now - self.looked)
        store_gib = round(store_bytes() / 2**30, 4)
        self.log(kind="load", seconds=round(now - self.begun, 2), object_store_gib=store_gib, stages=loads, **self.facts)
        for name, values in loads.items():
            for key, gauge in self.gauges.items():
                gauge.set(values[key], {"run": self.run, "stage": name})
        self.previous, self.looked = totals, now


def store_bytes() -> float:
    """Return the bytes that the cluster's object stores hold now."""
    import ray

    key = "object_store_memory"
    return ray.cluster_resources().get(key, 0.0) - ray.available_resources().get(key, 0.0)
