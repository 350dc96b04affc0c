"""How far a piece of work is, as lines of a run's metrics.jsonl, so that `syn4seg watch` needs nothing but the run directory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from syn4seg.errors import StoreError

PULSE_SECONDS = 10.0
"""Shortest time between two lines, but for the first and the last one of a piece of work."""


class Pulse:
    """Logs the progress of one piece of work.

    Args:
        log: appends one line to the run's metrics: `RunDir.log` of the driver.
        facts: kept in every line, e.g. `stage` and `draw`.
    """

    def __init__(self, log: Callable[..., None], **facts: Any):
        self.log, self.facts, self.next_time = log, facts, 0.0

    def __call__(self, done: int, total: int, **facts: Any) -> None:
        """Log that `done` of `total` are done, with further `facts`, unless the last line is younger than `PULSE_SECONDS`."""
        if done == total or time.monotonic() >= self.next_time:
            with contextlib.suppress(StoreError):  # a full disk ends the work where its results are written
                self.log(kind="pulse", done=done, total=total, **self.facts, **facts)
            self.next_time = time.monotonic() + PULSE_SECONDS
