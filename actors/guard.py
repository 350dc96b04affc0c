"""What stands between Ray and a stage: a row that crashes its process, or hangs, costs one row; and every call is counted.

Ray restarts an actor that dies and repeats its call for ever. The ledger knows how often a call was begun and never ended.
After `whole_attempts` deaths its rows are sent alone, each noted first; a row that has then killed its process `ALONE` times is
quarantined with the traceback that the process left behind. A process that went with its node is not counted; other kills from
outside are told apart by this alone: they do not meet the same row again and again.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from actors import deadline as watch
from actors.columns import FAULT, Batch, array_column, string_column

MAX_SOLO_DEATHS = 2
"""Deaths alone that convict a row."""


class Guard:
    """A stage under watch, in its actor.

    Args:
        stage: the class of the stage. If it has `whole_attempts`, a call is tried whole so often before its rows are sent alone:
            for a generator, whose images may depend by rounding on the size of their batch. Otherwise once.
        kwargs: its arguments.
        name: of the stage.
        run: name of the run, for the metrics.
        deadline: seconds per row.
        ledger: handle of the stream's `Ledger`.
    """

    def __init__(self, stage: type, kwargs: dict[str, Any], name: str, run: str, deadline: float, ledger: Any):
        import ray

        self.name, self.deadline, self.ledger = name, deadline, ledger
        here = ray.get_runtime_context()
        self.actor, self.node = here.get_actor_id() or "", here.get_node_id()
        self.whole_attempts = getattr(stage, "whole_attempts", 1)
        self.meters = _meters(run, name)
        self.inner: Callable[[Batch], Batch] = stage(**kwargs)

    def __call__(self, rows: Batch) -> Batch:
        started, had = time.monotonic(), _reasons(rows)
        text = "\x1f".join(str(s) for s in rows["sample_id"])
        with self._attempt(hashlib.blake2b(text.encode(), digest_size=16).hexdigest()) as (deaths, notes, counts):
            whole = len(deaths) < self.whole_attempts
            out = self._watched(rows, notes) if whole else _joined([self._alone(row) for row in _each(rows)])
            rejected, faults = (now - before for now, before in zip(_reasons(out), had, strict=True))
            counts |= {
                "rows": len(out["sample_id"]),
                "seconds": time.monotonic() - started,
                "rejected": rejected,
                "quarantined": faults,
                "deaths": len(deaths),
                "gpu_bytes": _gpu_bytes(),
            }
        return out

    def _alone(self, row: Batch) -> Batch:
        """One row by itself, or its quarantine."""
        with self._attempt(str(row["sample_id"][0])) as (deaths, notes, _):
            if len(deaths) >= MAX_SOLO_DEATHS and not row["reason"][0]:
                trace = next((text for text in map(_left_in, reversed(deaths)) if text), "")
                said = (
                    f"killed its process {len(deaths)} times when sent alone (a crash, want of memory, or more than "
                    f"placement.row_deadline={self.deadline:g} s)"
                )
                row = row | {"reason": string_column([f"{FAULT}{self.name}: {said}"]), "traceback": string_column([trace])}
            return self._watched(row, notes)

    def _watched(self, rows: Batch, notes: IO[str]) -> Batch:
        watch.start(self.deadline, notes)
        try:
            return self.inner(rows)
        finally:
            watch.stop()

    @contextlib.contextmanager
    def _attempt(self, key: str) -> Iterator[tuple[list[str], IO[str], dict[str, float]]]:
        """An attempt in the ledger; gives the notes of earlier ones that never ended, a file for its own, and its counts.

        Without the ledger (its node was lost, it starts anew) earlier attempts are forgotten, and nothing else.
        """
        import ray
        import ray.exceptions

        counts: dict[str, float] = {}
        with tempfile.NamedTemporaryFile("w", prefix=f"syn4seg-{self.name}-", suffix=".txt") as notes:
            try:
                deaths = ray.get(self.ledger.begin.remote(self.name, key, notes.name, self.actor, self.node))
            except ray.exceptions.RayActorError:
                deaths = []
            yield deaths, notes, counts  # pyright: ignore[reportReturnType]
        self.ledger.end.remote(self.name, key, self.actor, counts)
        for path in deaths:
            Path(path).unlink(missing_ok=True)
        for name, meter in self.meters.items():
            if counts.get(name):
                meter(counts[name])


def _left_in(path: str) -> str:
    """The traceback that a dead process left here, if it ran on this node."""
    try:
        return Path(path).read_text(errors="replace")[-8000:].strip()
    except OSError:
        return ""


def _each(rows: Batch) -> Iterator[Batch]:
    for i in range(len(rows["sample_id"])):
        yield {name: values[i : i + 1] for name, values in rows.items()}


def _reasons(rows: Batch) -> tuple[int, int]:
    """Rejected and quarantined rows."""
    said = [str(reason) for reason in rows["reason"] if reason]
    faults = sum(reason.startswith(FAULT) for reason in said)
    return len(said) - faults, faults


def _joined(parts: list[Batch]) -> Batch:
    """Batches of the same columns as one; empty ones add nothing."""
    full = [part for part in parts if len(part["sample_id"])] or parts[:1]
    out = {}
    for name in full[0]:
        values = [value for part in full for value in part[name]]
        if values and isinstance(values[0], np.ndarray):
            out[name] = array_column(values)
        elif values and isinstance(values[0], str):
            out[name] = string_column(values)
        else:
            out[name] = np.concatenate([part[name] for part in full])
    return out


def _gpu_bytes() -> int:
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else 0


def _meters(run: str, stage: str) -> dict[str, Callable[[float], None]]:
    """Prometheus counters of this process, by the ledger's names."""
    from ray.util.metrics import Counter

    tags, found = {"run": run, "stage": stage}, {}
    rows = Counter("syn4seg_rows", "Rows that a stage has finished.", tag_keys=("run", "stage"))
    busy = Counter("syn4seg_busy_seconds", "Seconds inside a stage's calls.", tag_keys=("run", "stage"))
    reject = Counter("syn4seg_rejected_rows", "Rows that a stage has rejected or quarantined.", tag_keys=("run", "stage", "kind"))
    found["rows"] = lambda n: rows.inc(n, tags)
    found["seconds"] = lambda n: busy.inc(n, tags)
    for kind in ("rejected", "quarantined"):
        found[kind] = lambda n, kind=kind: reject.inc(n, {**tags, "kind": kind})
    return found
