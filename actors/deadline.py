"""The deadline of the current row: a process that spends longer writes its traceback to a file and ends itself.

The watching thread is the interpreter's own (`faulthandler`), so a row that hangs in C code and holds the global lock is
ended as well. Without `start` (inline, in tests) there is no deadline.
"""

from __future__ import annotations

import faulthandler
import sys
from typing import IO

_current: tuple[float, IO[str]] | None = None


def start(seconds: float, notes: IO[str]) -> None:
    """Watch this process from now on; `notes` gets the traceback of a crash or of a row that takes longer than `seconds`."""
    global _current
    _current = seconds, notes
    faulthandler.enable(notes)
    tick()


def tick(rows: int = 1, extra: float = 0.0) -> None:
    """Start the clock anew for `rows` rows at once, with `extra` seconds more (for a model that loads or compiles)."""
    if _current is not None:
        faulthandler.dump_traceback_later(_current[0] * rows + extra, exit=True, file=_current[1])


def pause() -> None:
    """Stop the clock until the next `tick`, while the run directory is read or written: a slow store is no fault of a row."""
    if _current is not None:
        faulthandler.cancel_dump_traceback_later()


def stop() -> None:
    """Watch this process no longer."""
    global _current
    _current = None
    faulthandler.cancel_dump_traceback_later()
    faulthandler.enable(sys.__stderr__ or 2)  # the notes may be closed now, and their number used again
