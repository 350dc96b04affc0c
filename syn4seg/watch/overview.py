"""What `syn4seg ls` shows: the runs and sweeps in a folder with state, scores, size and age; a damaged one costs its own line.

Reads only. A folder without a configuration is looked into one level deep and else counted, so that foreign files do no harm.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from syn4seg.errors import DamagedError, StoreError, UserError
from syn4seg.store.files import exists, is_local, read_json
from syn4seg.store.listing import list_files, list_names
from syn4seg.store.rundir import RunDir
from syn4seg.terminal import NARROW, sort_rows, table_columns
from syn4seg.watch.screen import clean
from syn4seg.watch.state import STALE_SECONDS, State, Watcher

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

OF_A_RUN = ("config.yaml", "study.json", "plan.parquet", "provenance.json", "metrics.jsonl")
"""Files of which one is at the top of every run or sweep, be it damaged."""


DAMAGED = "damaged"


@dataclass(frozen=True)
class ListedRun:
    """A run or a sweep.

    Attributes:
        name: its path below the folder that was listed.
        kind: `run` or `sweep`.
        state: in words: finished, running and how far, stopped and where, damaged.
        images: number of planned images, or of trials; None if unknown.
        scores: mIoU in percent of the last row of its table, by metric: base, novel, harmonic; those that it has.
        bytes: of its files; None in an object store, where counting is slow.
        modified: Unix seconds of its last sign of life; None if unknown.
        problem: what is damaged, or "".
    """

    name: str
    kind: str
    state: str
    images: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    bytes: int | None = None
    modified: float | None = None
    problem: str = ""


def list_runs(root: AnyPath, now: float | None = None) -> tuple[list[ListedRun], int]:
    """Return the runs and sweeps of a folder, the one with the last sign of life first, and the number of other entries.

    Args:
        root: a folder of runs, or a run.
        now: Unix seconds; None: the clock of this machine.

    Raises:
        UserError: there is no such folder.
        StoreError: it cannot be read.
    """
    if is_local(root) and not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one with runs in it, by default runs/ in this directory")
    now = time.time() if now is None else now
    if _is_run(root):
        return [_listed(root, root.name, now)], 0
    runs, others = [], 0
    for name in _names(root):
        found = [name] if _is_run(root / name) else _runs_below(root, name)
        runs += [_listed(root / path, path, now) for path in found]
        others += not found
    return sorted(runs, key=lambda run: (-(run.modified or 0), run.name)), others


def _runs_below(root: AnyPath, name: str) -> list[str]:
    return [f"{name}/{part}" for part in _names(root / name) if _is_run(root / name / part)]


def _names(folder: AnyPath) -> list[str]:
    with contextlib.suppress(StoreError):  # a folder of somebody else
        return [name for name in list_names(folder) if not name.startswith(".")]
    return []


def _is_run(folder: AnyPath) -> bool:
    with contextlib.suppress(StoreError, OSError):
        return any(exists(folder / name) for name in OF_A_RUN)
    return False


def _listed(root: AnyPath, name: str, now: float) -> ListedRun:
    run = RunDir(root)
    modified, size = _modified(root), None
    with contextlib.suppress(UserError, OSError):
        size = sum(list_files(root).values()) if is_local(root) else None
    kind = "sweep" if exists(root / "study.json") else "run"
    try:
        if kind == "sweep":
            trials, state, scores = _sweep(root)
            return ListedRun(name, kind, state, trials, scores, size, modified)
        watcher = Watcher(run)
        state = watcher.poll(now)
        last = watcher.timeline.last_time or modified
        if state.kind == "waiting":
            raise DamagedError(f"{root}: no config.yaml; put the old file back, or delete the folder")
        return ListedRun(name, kind, _state(state, last), state.planned, _scores(state.results), size, last)
    except (UserError, OSError) as error:
        problem = " ".join(str(error).split())
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a file of the right name with another content
        problem = f"{root}: a file of it has another content than is expected ({type(error).__name__})"
    return ListedRun(name, kind, DAMAGED, bytes=size, modified=modified, problem=problem)


def _modified(root: AnyPath) -> float | None:
    """Return when one of the files at the top of a run was written last."""
    times = []
    for name in (*OF_A_RUN, "results.json", "summary.json", "trials"):
        with contextlib.suppress(OSError, AttributeError):
            times.append(float((root / name).stat().st_mtime))
    return max(times, default=None)


def _state(state: State, last: float | None) -> str:
    if state.kind == "finished":
        return f"finished, {state.faults} quarantined" if state.faults else "finished"
    if state.kind == "idle":
        return f"stopped after {state.phase.rpartition(': ')[2]}"
    progress = next((f" {item.done:.0f}/{item.total:.0f}" for item in state.items if item.unfinished), "")
    silent = last is None or state.now - last > STALE_SECONDS
    if state.phase == "begins":
        return "stopped at the start" if silent else "begins"
    return f"{'stopped in' if silent else 'running:'} {state.phase}{progress}"


def _scores(results: dict[str, Any] | None) -> dict[str, float]:
    """Return base, novel and harmonic mIoU in percent of the last row of a run's table: the whole method."""
    rows = sort_rows(row for row in (results or {}).get("rows", {}) if row.startswith("syn4seg"))
    if results is None or not rows:
        return {}
    metrics = list(table_columns(results["protocol"]).values())
    columns = zip(("base", "novel", "harmonic"), (metrics[0], metrics[1], metrics[3]), strict=True)
    means = {title: results["rows"][rows[-1]][metric]["mean"] for title, metric in columns}
    return {title: 100 * mean for title, mean in means.items() if mean is not None}


def _sweep(root: AnyPath) -> tuple[int, str, dict[str, float]]:
    """Return the number of ended trials of a sweep, its state, and the scores of its best trial."""
    wanted = int(read_json(root / "study.json")["trials"])
    done = sum(name.endswith(".json") for name in list_names(root / "trials"))
    if not exists(root / "summary.json"):
        return done, f"sweep: {done} of {wanted} trials", {}
    summary = read_json(root / "summary.json")
    values = summary.get("best", {}).get("values", {})
    scores = {m: 100 * values[m]["mean"] for m in ("base", "novel", "harmonic") if values.get(m, {}).get("mean") is not None}
    return done, f"sweep finished: {summary['trials']} trials", scores


def render_runs(runs: list[ListedRun], width: int, now: float) -> Table:
    """Return the table of `syn4seg ls`; below `NARROW` columns without base scores and counts."""
    wide = width >= NARROW
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for title in ("run", "state"):
        table.add_column(title, overflow="fold", ratio=1 if title == "state" else None)
    scores = ("base", "novel", "harmonic") if wide else ("novel", "harmonic")
    for title in (*(("images",) if wide else ()), *("harm." if s == "harmonic" else s for s in scores), "size", "age"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in runs:
        values = [f"{run.scores[name]:.1f}" if name in run.scores else "-" for name in scores]
        count = ["-" if run.images is None or run.kind == "sweep" else f"{run.images}"] if wide else []
        style = "green" if "finished" in run.state else "red" if run.state == DAMAGED else ""
        cells = (run.name, Text(clean(run.state), style), *count, *values, _size(run.bytes), _age(run.modified, now))
        table.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in cells))
    return table


def show_runs(place: str, runs: list[ListedRun], others: int, console: Console | None = None) -> None:
    """Print the table and, below it, what else is in the folder and what the scores are."""
    console, now = console or Console(highlight=False), time.time()
    if runs:
        console.print(render_runs(runs, console.width, now))
        for run in runs:
            if run.problem:
                console.print(Text(clean(run.problem), "red"))
        notes = [f"{others} other files or folders"] if others else []
        notes += ["scores: mIoU in %, last row of the run's table"] if any(run.scores for run in runs) else []
    else:
        more = f" ({others} other files or folders)" if others else ""
        notes = [f"{place}: no run{more}; `syn4seg run embedded --out {place}/NAME` makes one"]
    for line in notes:
        console.print(Text(clean(line), "dim"))


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.{0 if count >= 100 * size else 1}f} {unit}"
    return f"{count / 1024:.0f} KiB"


def _age(modified: float | None, now: float) -> str:
    if modified is None:
        return "-"
    seconds = max(0.0, now - modified)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
