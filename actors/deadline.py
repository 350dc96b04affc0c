"""The deadline of the row under way: a process that spends longer writes its traceback to a file and ends itself.

The watching thread is the interpreter's own (`faulthandler`), so a row that hangs in C code and holds the global lock is
ended as well. Without `start` (inline, in tests) nothing is watched.
"""

from __future__ import annotations

import faulthandler
import sys
from typing import IO

_watched: tuple[float, IO[str]] | None = None


def start(seconds: float, notes: IO[str]) -> None:
    """Watches this process from now on; `notes` gets the traceback of a crash or of a row that takes longer than `seconds`."""
    global _watched
    _watched = seconds, notes
    faulthandler.enable(notes)
    tick()


def tick(rows: int = 1, extra: float = 0.0) -> None:
    """Something new begins: `rows` rows at once, for which `extra` seconds more are fine (a model that loads or compiles)."""
    if _watched is not None:
        faulthandler.dump_traceback_later(_watched[0] * rows + extra, exit=True, file=_watched[1])


def pause() -> None:
    """The run directory is read or written until the next `tick`: a store that is slow or hangs is no fault of a row."""
    if _watched is not None:
        faulthandler.cancel_dump_traceback_later()


def stop() -> None:
    """The call is over."""
    global _watched
    _watched = None
    faulthandler.cancel_dump_traceback_later()
    faulthandler.enable(sys.__stderr__ or 2)  # the notes may be closed now, and their number used again
