"""One export from beginning to end: choose, check the target, write the format, the lineage, the classes, README.md, and
export.json last."""

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
from syn4seg.exports.card import card
from syn4seg.exports.choice import ExportOptions
from syn4seg.exports.formats import export_format
from syn4seg.exports.info import ExportInfo, palette
from syn4seg.exports.label_maps import cvat_labels, datumaro_meta
from syn4seg.exports.lineage import LINEAGE, licences
from syn4seg.exports.loading import LOADING
from syn4seg.exports.selection import Selection
from syn4seg.exports.target import Target
from syn4seg.schema import UNLABELED
from syn4seg.store.files import exists
from syn4seg.store.readback import Provenance, read_checked
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import checked_name

SHARD_MB = 256
REAL_LICENCE = "that of the real data set"
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
        Number of samples by verdict: accepted, rejected, real, fault, damaged.

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
    _tell(selection, options, note)
    shard_mb = shard_mb or SHARD_MB
    title = checked_name(name or config.name, "--name")
    licensed = licences(selection.common) | ({selection.real.name: REAL_LICENCE} if selection.real else {})
    info = ExportInfo(title, selection.names, shard_mb * 10**6, licensed, selection.common, note)
    identity = asdict(options) | {
        "format": format,
        "name": title,
        "shard_mb": shard_mb if entry.sharded else None,
        "classes": list(options.classes),
        "reasons": list(options.reasons),
        "merge": selection.real.name if selection.real else None,
        "samples": selection.digest(),
    }
    if finished := target.begin(identity):
        note(f"{to}: already holds this export; nothing was written")
        return Counter(finished.get("counts", {}))
    counts, written = Counter(), Counter()
    with _lineage(target) as keep:
        entry.load()(_count_parts(selection, counts, written, keep, warn, progress), target, info)
    _describe(target, info, format, written)
    target.end(
        {
            "export": identity,
            "counts": counts,
            "finished": selection.finished,
            "planned": selection.planned,
            "filtered": selection.filtered,
            "licences": info.licences,
            "provenance": read_checked(run.provenance, Provenance) if exists(run.provenance) else {},
        }
    )
    return counts


def _tell(selection: Selection, options: ExportOptions, note: Callable[[str], None]) -> None:
    """Say what a user may not expect of the chosen samples."""
    if selection.filtered:
        note(f"{selection.filtered} samples do not reach --min-iou or --min-similarity, or have no such figure; they are left out")
    if selection.real and selection.real.unknown:
        words = ", ".join(selection.real.unknown[:10]) + (", ..." if len(selection.real.unknown) > 10 else "")
        note(f"--merge {options.merge}: pixels of {words} are unlabeled: this export has no such classes")


def _describe(target: Target, info: ExportInfo, format: str, written: Counter) -> None:
    """Write what explains an export: classes, label maps for other tools, and README.md."""
    classes = {"classes": info.classes, "palette": palette(len(info.classes)).tolist(), "unlabeled": UNLABELED}
    for name, value in (
        ("classes.json", classes),
        ("label_maps/cvat.json", cvat_labels(info.classes)),
        ("label_maps/datumaro.json", datumaro_meta(info.classes)),
    ):
        target.write(name, (json.dumps(value, indent=1) + "\n").encode())
    text = card(info, written, LOADING.get(format, ""), front_matter=format == "hf")
    target.write("README.md", text.encode())


def _count_parts(
    selection: Selection,
    counts: Counter,
    written: Counter,
    keep: Callable[[list[dict[str, Any]]], None],
    warn: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the parts that have something to write; pass their rows to `keep` and their damage to `warn`.

    Args:
        counts: is filled with samples by verdict, `written` with those that are written by (split, class name).
    """
    for part in selection.parts():
        counts.update(row["verdict"] for row in part.rows)
        keep(part.rows)
        for line in part.damage:
            warn(f"left out: {line}")
        if part.items:
            written.update((part.split, item.row["class"]) for item in part.items)
            yield part.split, part.items
        progress(counts.total(), len(selection))


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
