"""The current state of a run, from its directory alone. Writes nothing, needs no Ray.

A poll costs what has been added to metrics.jsonl since the last one, whatever the number of samples. A line that is still
being written, or was torn by a crash, is ignored.
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

from syn4seg.schema import FAULT, PLAN_FILE
from syn4seg.store.files import exists, explain_errors, retry_stale
from syn4seg.store.readback import Results, read_checked
from syn4seg.store.rundir import RunDir
from syn4seg.store.tables import read_parquet
from syn4seg.watch.timeline import PHASES, StageLoad, Timeline, WorkItem, finite_number

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

STALE_SECONDS = 600.0
"""A running run without a new line for this time has probably ended; long epochs are the exception."""
TAIL = 64 * 2**20
"""Bytes at the end of metrics.jsonl that the first poll reads: days of a large run."""
LISTED = 1000
"""Number of quarantined samples up to which their folder is listed for a few names."""
LAST = ("labels and novel", "novel", "evaluate")
"""Phases after which a run with results is finished."""


@dataclass(frozen=True)
class State:
    """The state of a run at one moment.

    Attributes:
        kind: `waiting` (not begun), `running`, `idle` (the last command has ended before the results), `finished`.
        phase: in words.
        now: Unix seconds.
        elapsed: seconds since the last start of the command, or its duration; None if unknown.
        silent: seconds since the last line; None if there is none.
        planned: number of samples in the plan; None before there is one.
        items: work items of this start of the command, in the order of their beginning.
        funnel: number of samples by reason, for each draw (None: images alone).
        loads: stages of the stream that runs; none without Ray.
        store_gib: GiB in the object stores of the cluster.
        quarantined: ids of a few samples with a note in quarantined/.
        results: results.json of a finished run.
    """

    name: str
    kind: Literal["waiting", "running", "idle", "finished"]
    phase: str
    now: float
    elapsed: float | None = None
    silent: float | None = None
    planned: int | None = None
    items: tuple[WorkItem, ...] = ()
    funnel: dict[int | None, dict[str, int]] = field(default_factory=dict)
    loads: tuple[StageLoad, ...] = ()
    store_gib: float | None = None
    quarantined: tuple[str, ...] = ()
    results: dict[str, Any] | None = None

    @property
    def stale(self) -> bool:
        """Whether a running run has written no line for `STALE_SECONDS`."""
        return self.kind == "running" and (self.silent or 0) > STALE_SECONDS

    @property
    def faults(self) -> int:
        """Number of quarantined samples, according to metrics.jsonl."""
        counts = (sum(n for reason, n in reasons.items() if reason.startswith(FAULT)) for reasons in self.funnel.values())
        return max(max(counts, default=0), int(sum(load.quarantined for load in self.loads)))


class MetricsReader:
    """Reads the lines of a metrics.jsonl while another process writes it."""

    def __init__(self, path: AnyPath):
        self.path, self.offset, self.rest = path, 0, b""

    def read_new(self) -> list[dict[str, Any]] | None:
        """Return the whole lines since the last call; None if the file has become shorter, because another one replaced it.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            data = retry_stale(self.path, self._read)
        except FileNotFoundError:
            data = None if self.offset else b""
        if data is None:
            self.offset, self.rest = 0, b""
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [line for line in map(parse_line, lines) if line is not None]

    def _read(self) -> bytes | None:
        with explain_errors(self.path, "read"):
            size = self.path.stat().st_size
            if size <= self.offset:
                return b"" if size == self.offset else None
            start = self.offset or max(0, size - TAIL)
            if isinstance(self.path, Path):
                with self.path.open("rb") as f:
                    f.seek(start)
                    data: Any = f.read(size - start)
            else:
                data = self.path.fs.cat_file(self.path.path, start=start, end=size)
            self.offset = start + len(data)
            return data


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the dict of a line of metrics.jsonl; None for a damaged line."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(line), dict):
            return value
    return None


class Watcher:
    """Polls the state of a run, which need not have begun."""

    def __init__(self, run: RunDir):
        self.run, self.name = run, ""
        self.reader, self.timeline = MetricsReader(run.metrics), Timeline()
        self.planned: int | None = None
        self.listed: tuple[int, tuple[str, ...]] = (0, ())

    def poll(self, now: float | None = None) -> State:
        """Return the current state of the run.

        Args:
            now: Unix seconds; None: the clock of this machine.

        Raises:
            StoreError: the run cannot be read.
            UserError: config.yaml or results.json does not belong to this program.
        """
        now = time.time() if now is None else now
        if not self.name:
            stored = self.run.stored()
            if stored is None:
                return State(str(self.run.root), "waiting", f"waiting for {self.run.root} to begin (no config.yaml yet)", now)
            self.name = stored.name
        lines = self.reader.read_new()
        if lines is None:
            self.timeline, lines = Timeline(), self.reader.read_new() or []
        self.timeline.add_lines(lines)
        if self.planned is None and exists(self.run.plan):
            self.planned = pc.sum(pc.invert(read_parquet(self.run.plan, ["padding"], PLAN_FILE)["padding"])).as_py() or 0
        return self._state(now)

    def _state(self, now: float) -> State:
        timeline = self.timeline
        kind, phase, results = "running", timeline.phase_title(), None
        if not timeline.phase and timeline.ended in LAST and exists(self.run.results):
            kind, phase, results = "finished", "finished", read_checked(self.run.results, Results)
        elif not timeline.phase and timeline.ended:
            kind, phase = "idle", f"nothing is under way; done: {PHASES[timeline.ended]}"
        loads = timeline.stage_loads()
        last = timeline.last_time if timeline.last_time is not None else self._modified()
        end = now if kind == "running" and last and now - last <= STALE_SECONDS else last
        state = State(
            self.name,
            kind,
            phase or "begins",
            now,
            elapsed=max(0.0, end - timeline.started) if timeline.started and end else timeline.seconds_spent or None,
            silent=None if last is None else max(0.0, now - last),
            planned=self.planned,
            items=tuple(item for item in timeline.items.values() if item.current),
            funnel=timeline.funnel(),
            loads=loads,
            store_gib=finite_number(timeline.load_lines[-1].get("object_store_gib")) if loads else None,
            results=results,
        )
        return replace(state, quarantined=self._quarantined_ids(state.faults))

    def _modified(self) -> float | None:
        """Return when metrics.jsonl was written last, for runs whose lines have no time."""
        with contextlib.suppress(FileNotFoundError), explain_errors(self.run.metrics, "read"):
            return self.run.metrics.stat().st_mtime
        return None

    def _quarantined_ids(self, faults: int) -> tuple[str, ...]:
        """Return the ids of three quarantined samples; list the folder only when their number has changed and is not too large."""
        if faults != self.listed[0]:
            self.listed = faults, tuple(self.run.quarantined_ids()[:3]) if faults <= LISTED else ()
        return self.listed[1]
