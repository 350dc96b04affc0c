"""The ledger of a stream: calls that never ended, what each operator did, and the failure that ends the stream."""

from __future__ import annotations

from actors.failures import Failure
from actors.ledger import Ledger


def test_the_ledger_remembers_calls_that_never_ended_and_forgets_those_that_did():
    ledger = Ledger(lambda: {"here"})
    assert ledger.begin("a", "k", "note1", "x", "here") == []
    assert ledger.begin("a", "k", "note2", "y", "here") == ["note1"]
    assert ledger.begin("b", "k", "note3", "z", "here") == []
    ledger.end("a", "k", "y", {"rows": 4, "seconds": 2.0, "gpu_bytes": 7})
    assert ledger.begin("a", "k", "note4", "y", "here") == []
    ledger.end("a", "k", "y", {"rows": 4, "seconds": 1.0, "gpu_bytes": 5})
    totals = ledger.totals()["a"]
    assert (totals["rows"], totals["seconds"], totals["gpu_bytes"], totals["actors"]) == (8, 3.0, 7, 2)
    assert (totals["warm_rows"], totals["warm_seconds"]) == (4, 1.0), "an actor's first call does not count as warm"


def test_whoever_went_with_its_node_is_not_counted():
    living = {"spot1", "spot2"}
    ledger = Ledger(lambda: living)
    for number in range(3):
        assert ledger.begin("a", "k", f"note{number}", "x", "spot1") == [f"note{i}" for i in range(number)]
    living.remove("spot1")
    assert ledger.begin("a", "k", "note3", "x", "spot2") == []
    assert ledger.begin("a", "k", "note4", "x", "spot2") == ["note3"]


def test_the_latest_failure_is_the_one_that_ended_the_stream():
    ledger = Ledger(set)
    assert ledger.last_failure() is None
    ledger.fail(Failure("a model that loads when tried again", False))
    ledger.fail(Failure("the disk is full", True))
    assert ledger.last_failure() == Failure("the disk is full", True)
