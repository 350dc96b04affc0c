"""A run as it is now, from its directory alone. Writes nothing, needs no Ray.

A look costs what has been added to metrics.jsonl since the last one, however many samples there are. A line that is still
being written, or was torn by a crash, counts as none.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.compute as pc

from syn4seg.schema import FAULT
from syn4seg.store.files import exists, explain_errors, read_json, retry_stale
from syn4seg.store.rundir import RunDir
from syn4seg.store.tables import read_parquet
from syn4seg.watch.story import PHASES, Load, Story, Work, number

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

STALE_SECONDS = 600.0
"""A run that is under way and has said nothing for so long has probably ended; long epochs are the exception."""
TAIL = 64 * 2**20
"""Bytes at the end of metrics.jsonl that are read at first: days of a large run."""
LISTED = 1000
"""Quarantined samples up to which their folder is listed for a few names."""
LAST = ("labels and novel", "novel", "evaluate")
"""Phases after which a run with results is finished."""


@dataclass(frozen=True)
class State:
    """A run as it is now.

    Attributes:
        kind: `waiting` (not begun), `running`, `idle` (the last command has ended before the results), `finished`.
        phase: in words.
        elapsed: seconds since the last start of the command, or what it took; None if that is not known.
        silent: seconds since the last line; None if there is none.
        planned: samples of the plan; None if there is none yet.
        works: of this start of the command, in the order of their beginning.
        funnel: every draw (None: images alone) whose samples have been counted, with reasons.
        loads: stages of the stream that runs; none without Ray.
        store_gib: what the object stores of the cluster hold.
        quarantined: ids of some samples with a note in quarantined/.
        results: results.json of a finished run.
    """

    name: str
    kind: Literal["waiting", "running", "idle", "finished"]
    phase: str
    now: float
    elapsed: float | None = None
    silent: float | None = None
    planned: int | None = None
    works: tuple[Work, ...] = ()
    funnel: dict[int | None, dict[str, int]] = field(default_factory=dict)
    loads: tuple[Load, ...] = ()
    store_gib: float | None = None
    quarantined: tuple[str, ...] = ()
    results: dict[str, Any] | None = None

    @property
    def stale(self) -> bool:
        """Whether a run that should be under way says nothing any more."""
        return self.kind == "running" and (self.silent or 0) > STALE_SECONDS

    @property
    def faults(self) -> int:
        """How many samples are quarantined, as far as the lines say."""
        counted = max((sum(n for r, n in found.items() if r.startswith(FAULT)) for found in self.funnel.values()), default=0)
        return max(counted, int(sum(load.quarantined for load in self.loads)))


class Journal:
    """The lines of a metrics.jsonl that another process writes; each call reads what is new."""

    def __init__(self, path: AnyPath):
        self.path, self.place, self.rest = path, 0, b""

    def new(self) -> list[dict[str, Any]] | None:
        """Whole lines since the last call; None if the file is shorter than before, so that another one has taken its place.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            data = retry_stale(self.path, self._read)
        except FileNotFoundError:
            data = None if self.place else b""
        if data is None:
            self.place, self.rest = 0, b""
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [line for line in map(_parsed, lines) if line is not None]

    def _read(self) -> bytes | None:
        with explain_errors(self.path, "read"):
            size = self.path.stat().st_size
            if size <= self.place:
                return b"" if size == self.place else None
            start = self.place or max(0, size - TAIL)
            if isinstance(self.path, Path):
                with self.path.open("rb") as f:
                    f.seek(start)
                    data: Any = f.read(size - start)
            else:
                data = self.path.fs.cat_file(self.path.path, start=start, end=size)
            self.place = start + len(data)
            return data


def _parsed(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(line)
        return value if isinstance(value, dict) else None
    return None


class Watcher:
    """Looks at a run again and again.

    Args:
        run: a run directory, which may be none yet.
    """

    def __init__(self, run: RunDir):
        self.run, self.name = run, ""
        self.journal, self.story = Journal(run.metrics), Story()
        self.planned: int | None = None
        self.listed: tuple[int, tuple[str, ...]] = (0, ())

    def look(self, now: float | None = None) -> State:
        """The run as it is.

        Args:
            now: Unix seconds; the clock of this machine if None.

        Raises:
            StoreError: it cannot be read.
            UserError: its config.yaml or results.json is not of this program.
        """
        now = time.time() if now is None else now
        if not self.name:
            stored = self.run.stored()
            if stored is None:
                return State(str(self.run.root), "waiting", f"waiting for {self.run.root} to begin (no config.yaml yet)", now)
            self.name = stored.name
        lines = self.journal.new()
        if lines is None:
            self.story, lines = Story(), self.journal.new() or []
        self.story.tell(lines)
        if self.planned is None and exists(self.run.plan):
            self.planned = pc.sum(pc.invert(read_parquet(self.run.plan, ["padding"])["padding"])).as_py() or 0
        return self._state(now)

    def _state(self, now: float) -> State:
        story = self.story
        kind, phase, results = "running", story.said(), None
        if not story.phase and story.ended in LAST and exists(self.run.results):
            kind, phase, results = "finished", "finished", read_json(self.run.results)
        elif not story.phase and story.ended:
            kind, phase = "idle", f"nothing is under way; done: {PHASES[story.ended]}"
        loads = story.stages()
        last = story.last if story.last is not None else self._written()
        ended = now if kind == "running" and last and now - last <= STALE_SECONDS else last
        found = State(
            self.name,
            kind,
            phase or "begins",
            now,
            elapsed=max(0.0, ended - story.begun) if story.begun and ended else story.spent or None,
            silent=None if last is None else max(0.0, now - last),
            planned=self.planned,
            works=tuple(work for work in story.works.values() if work.ours),
            funnel=story.funnel(),
            loads=loads,
            store_gib=number(story.loads[-1].get("object_store_gib")) if loads else None,
            results=results,
        )
        return replace(found, quarantined=self._names(found.faults))

    def _written(self) -> float | None:
        """When metrics.jsonl was written last, for runs whose lines do not say it."""
        with contextlib.suppress(FileNotFoundError), explain_errors(self.run.metrics, "read"):
            return self.run.metrics.stat().st_mtime
        return None

    def _names(self, faults: int) -> tuple[str, ...]:
        """A few quarantined samples; they are listed when their number has changed, and as long as they are not too many."""
        if faults != self.listed[0]:
            self.listed = faults, tuple(self.run.quarantined_ids()[:3]) if faults <= LISTED else ()
        return self.listed[1]


def snapshot(run: RunDir, now: float | None = None) -> State:
    """A run as it is now, see `Watcher.look`."""
    return Watcher(run).look(now)
