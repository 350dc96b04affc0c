"""One export from beginning to end: choose, check the target, write the format, the lineage, the classes, and export.json last."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from syn4seg.config.tree import Config
from syn4seg.exports.formats import export_format
from syn4seg.exports.info import ExportInfo, palette
from syn4seg.exports.lineage import LINEAGE, licences
from syn4seg.exports.selection import ExportOptions, Selection
from syn4seg.exports.target import Target
from syn4seg.schema import UNLABELED
from syn4seg.store.files import exists
from syn4seg.store.readback import Provenance, read_checked
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import checked_name

SHARD_MB = 256
ROWS = 4096
"""Rows of the lineage that are in memory at a time."""


def write(
    run: RunDir,
    config: Config,
    options: ExportOptions,
    to: str,
    format: str,
    *,
    shard_mb: int | None = None,
    name: str | None = None,
    note: Callable[[str], None],
    warn: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Counter:
    """Export samples of a run; a finished export of the same samples in the same way is left as it is.

    Args:
        to: folder or URL, empty or not there yet, or with a stopped export of the same samples.
        shard_mb: size of a shard in 10^6 bytes.
        name: of the data set; by default the run's.
        note, warn: called with one line each; `warn` for every damaged sample.
        progress: called with (samples done, samples in all).

    Returns:
        Number of samples by verdict: accepted, rejected, fault, damaged.

    Raises:
        UserError: the run, the target or an option does not allow it; the text says what to do.
        StoreError: a file system fails; the same command starts over.
    """
    entry = export_format(format, shard_mb)
    target, selection = Target(to, run.root), Selection(run, config, options)
    if selection.finished < selection.planned:
        note(
            f"{selection.finished} of {selection.planned} samples of draw {options.draw} are finished; the others are not exported"
        )
    shard_mb = shard_mb or SHARD_MB
    title = checked_name(name or config.name, "--name")
    info = ExportInfo(title, selection.names, shard_mb * 10**6, licences(selection.common), selection.common, note)
    identity = asdict(options) | {
        "format": format,
        "name": title,
        "shard_mb": shard_mb if entry.sharded else None,
        "classes": list(options.classes),
        "samples": selection.digest(),
    }
    if finished := target.begin(identity):
        note(f"{to}: already holds this export; nothing was written")
        return Counter(finished.get("counts", {}))
    counts: Counter = Counter()
    with _lineage(target) as keep:
        entry.load()(_count_parts(selection, counts, keep, warn, progress), target, info)
    classes = {"classes": selection.names, "palette": palette(len(selection.names)).tolist(), "unlabeled": UNLABELED}
    target.write("classes.json", (json.dumps(classes, indent=1) + "\n").encode())
    target.end(
        {
            "export": identity,
            "counts": counts,
            "finished": selection.finished,
            "planned": selection.planned,
            "licences": info.licences,
            "provenance": read_checked(run.provenance, Provenance) if exists(run.provenance) else {},
        }
    )
    return counts


def _count_parts(
    selection: Selection,
    counts: Counter,
    keep: Callable[[list[dict[str, Any]]], None],
    warn: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the parts that have something to write; pass their rows to `keep` and their damage to `warn`."""
    for part in selection.parts():
        counts.update(row["verdict"] for row in part.rows)
        keep(part.rows)
        for line in part.damage:
            warn(f"left out: {line}")
        if part.items:
            yield part.split, part.items
        progress(counts.total(), len(selection.records))


@contextlib.contextmanager
def _lineage(target: Target) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Write lineage.parquet: yield a function that takes its rows, which are written some thousand at a time."""
    buffer: list[dict[str, Any]] = []
    with target.published("lineage.parquet") as partial, pq.ParquetWriter(partial, LINEAGE) as writer:

        def keep(rows: list[dict[str, Any]], least: int = ROWS) -> None:
            buffer.extend(rows)
            if len(buffer) >= least:
                writer.write_table(pa.Table.from_pylist(buffer, schema=LINEAGE))
                buffer.clear()

        yield keep
        keep([], least=0)
