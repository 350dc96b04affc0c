"""What stands between Ray and an operator: a row that crashes its process, or hangs, costs one row; and every call is counted.

Ray restarts an actor that dies and repeats its call for ever. The ledger knows how often a call was begun and never ended.
After `whole_attempts` deaths its rows are sent one by one, each noted first; a row that has then killed its process
`MAX_SOLO_DEATHS` times is quarantined with the traceback that the process left behind. A process that went with its node is not
counted; other kills from outside do not meet the same row again and again.
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

from actors import deadline
from actors.columns import FAULT, Batch, array_column, string_column
from actors.failures import Failure

MAX_SOLO_DEATHS = 2
"""Deaths with one row alone after which that row is at fault."""


class Guard:
    """An operator in its actor, with a deadline per row.

    Args:
        operator: its class. If it has `whole_attempts`, a call is tried whole so often before its rows are sent one by one:
            for a generator, whose images may depend by rounding on the size of their batch. Otherwise once.
        kwargs: its arguments.
        name: of the operator.
        run: name of the run, for the metrics.
        row_deadline: seconds per row.
        ledger: handle of the stream's `Ledger`.
    """

    def __init__(self, operator: type, kwargs: dict[str, Any], name: str, run: str, row_deadline: float, ledger: Any):
        import ray

        self.name, self.row_deadline, self.ledger = name, row_deadline, ledger
        context = ray.get_runtime_context()
        self.actor, self.node = context.get_actor_id() or "", context.get_node_id()
        self.whole_attempts = getattr(operator, "whole_attempts", 1)
        self.meters = _meters(run, name)
        with self._failures_noted():
            self.inner: Callable[[Batch], Batch] = operator(**kwargs)

    def __call__(self, rows: Batch) -> Batch:
        started, before = time.monotonic(), _count_reasons(rows)
        text = "\x1f".join(str(s) for s in rows["sample_id"])
        with self._attempt(hashlib.blake2b(text.encode(), digest_size=16).hexdigest()) as (deaths, notes, counts):
            if len(deaths) < self.whole_attempts:
                out = self._call(rows, notes)
            else:
                single = ({name: values[i : i + 1] for name, values in rows.items()} for i in range(len(rows["sample_id"])))
                out = _join([self._call_alone(row) for row in single])
            rejected, quarantined = (after - earlier for after, earlier in zip(_count_reasons(out), before, strict=True))
            counts |= {
                "rows": len(out["sample_id"]),
                "seconds": time.monotonic() - started,
                "rejected": rejected,
                "quarantined": quarantined,
                "deaths": len(deaths),
                "gpu_bytes": _gpu_bytes(),
            }
        return out

    def _call_alone(self, row: Batch) -> Batch:
        """Call the operator with one row by itself, or quarantine the row."""
        with self._attempt(str(row["sample_id"][0])) as (deaths, notes, _):
            if len(deaths) >= MAX_SOLO_DEATHS and not row["reason"][0]:
                trace = next((text for text in map(_read_notes, reversed(deaths)) if text), "")
                reason = (
                    f"{FAULT}{self.name}: killed its process {len(deaths)} times when sent alone (a crash, want of memory, or "
                    f"more than placement.row_deadline={self.row_deadline:g} s)"
                )
                row = row | {"reason": string_column([reason]), "traceback": string_column([trace])}
            return self._call(row, notes)

    def _call(self, rows: Batch, notes: IO[str]) -> Batch:
        deadline.start(self.row_deadline, notes)
        try:
            with self._failures_noted():
                return self.inner(rows)
        finally:
            deadline.stop()

    @contextlib.contextmanager
    def _failures_noted(self) -> Iterator[None]:
        """Leave with the ledger what exception ends the stream, since Ray hands on no more than its text."""
        import ray
        import ray.exceptions

        try:
            yield
        except Exception as error:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self.ledger.fail.remote(Failure.of(error)))
            raise

    @contextlib.contextmanager
    def _attempt(self, key: str) -> Iterator[tuple[list[str], IO[str], dict[str, float]]]:
        """Enter an attempt in the ledger; yield the notes of earlier ones that never ended, a file for its own, and its counts.

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


def _read_notes(path: str) -> str:
    """Return the traceback that a dead process left, if it ran on this node."""
    try:
        return Path(path).read_text(errors="replace")[-8000:].strip()
    except OSError:
        return ""


def _count_reasons(rows: Batch) -> tuple[int, int]:
    """Return how many rows are rejected, and how many quarantined."""
    reasons = [str(reason) for reason in rows["reason"] if reason]
    faults = sum(reason.startswith(FAULT) for reason in reasons)
    return len(reasons) - faults, faults


def _join(parts: list[Batch]) -> Batch:
    """Return batches of the same columns as one; empty ones add nothing."""
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


def _meters(run: str, operator: str) -> dict[str, Callable[[float], None]]:
    """Return functions that raise the Prometheus counters of this process, by the ledger's names."""
    from ray.util.metrics import Counter

    tags = {"run": run, "stage": operator}
    rows = Counter("syn4seg_rows", "Rows that a stage has finished.", tag_keys=("run", "stage"))
    busy = Counter("syn4seg_busy_seconds", "Seconds inside a stage's calls.", tag_keys=("run", "stage"))
    bad = Counter("syn4seg_rejected_rows", "Rows that a stage has rejected or quarantined.", tag_keys=("run", "stage", "kind"))
    return {
        "rows": lambda n: rows.inc(n, tags),
        "seconds": lambda n: busy.inc(n, tags),
        **{kind: lambda n, kind=kind: bad.inc(n, {**tags, "kind": kind}) for kind in ("rejected", "quarantined")},
    }
