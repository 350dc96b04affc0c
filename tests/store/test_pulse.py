"""Lines of progress: the first, the last, and at most one in ten seconds between; a full disk does not end the work."""

from __future__ import annotations

from syn4seg.errors import StoreError
from syn4seg.store.pulse import Pulse


def test_a_pulse_writes_the_first_the_last_and_now_and_then_a_line_between(monkeypatch):
    clock, lines = [100.0], []
    monkeypatch.setattr("syn4seg.store.pulse.time.monotonic", lambda: clock[0])
    pulse = Pulse(lambda **values: lines.append(values), stage="training", draw=3)
    for done in range(1, 41):
        clock[0] += 1.0
        pulse(done, 40, loss=0.5)
    assert [line["done"] for line in lines] == [1, 11, 21, 31, 40]
    assert lines[-1] == {"kind": "pulse", "stage": "training", "draw": 3, "done": 40, "total": 40, "loss": 0.5}


def test_a_pulse_that_cannot_be_written_ends_nothing():
    def full(**values):
        raise StoreError("no room")

    Pulse(full)(1, 1)
