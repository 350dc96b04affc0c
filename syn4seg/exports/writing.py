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
from syn4seg.errors import UserError
from syn4seg.exports.about import About, Parts, palette
from syn4seg.exports.choosing import Choice, Chosen
from syn4seg.exports.coco import coco
from syn4seg.exports.folders import mmseg, voc
from syn4seg.exports.lineage import LINEAGE, licences
from syn4seg.exports.sharded import huggingface, parquet, webdataset
from syn4seg.exports.target import Target
from syn4seg.schema import UNLABELED
from syn4seg.store.files import exists, read_json
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import checked_name

FORMATS: dict[str, Callable[[Parts, Target, About], None]] = {
    "voc": voc,
    "coco": coco,
    "hf": huggingface,
    "webdataset": webdataset,
    "mmseg": mmseg,
    "parquet": parquet,
}
SHARDED = ("hf", "webdataset", "parquet")
SHARD_MB = 256
ROWS = 4096
"""Rows of the lineage that are in memory at a time."""


def write(
    run: RunDir,
    config: Config,
    choice: Choice,
    to: str,
    format: str,
    *,
    shard_mb: int | None = None,
    name: str | None = None,
    note: Callable[[str], None],
    warn: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Counter:
    """Exports samples of a run; a finished export of the same samples in the same way is left as it is.

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
    if format not in FORMATS:
        raise UserError(f"--format {format}: expected one of {', '.join(FORMATS)}")
    if shard_mb is not None and format not in SHARDED:
        raise UserError(
            f"--shard-mb {shard_mb}: {format} is a folder of images and has no shards; leave it out, or use --format "
            f"{' or '.join(SHARDED)}"
        )
    target, chosen = Target(to, run.root), Chosen(run, config, choice)
    if chosen.finished < chosen.planned:
        note(f"{chosen.finished} of {chosen.planned} samples of draw {choice.draw} are finished; the others are not exported")
    shard_mb = shard_mb or SHARD_MB
    title = checked_name(name or config.name, "--name")
    about = About(title, chosen.names, shard_mb * 10**6, licences(chosen.common), chosen.common)
    same = asdict(choice) | {
        "format": format,
        "name": title,
        "shard_mb": shard_mb if format in SHARDED else None,
        "classes": list(choice.classes),
        "samples": chosen.digest(),
    }
    if old := target.begin(same):
        note(f"{to}: already holds this export; nothing was written")
        return Counter(old.get("counts", {}))
    counts: Counter = Counter()
    with _lineage(target) as keep:
        FORMATS[format](_counted(chosen, counts, keep, warn, progress), target, about)
    classes = {"classes": chosen.names, "palette": palette(len(chosen.names)).tolist(), "unlabeled": UNLABELED}
    target.write("classes.json", (json.dumps(classes, indent=1) + "\n").encode())
    target.end(
        {
            "export": same,
            "counts": counts,
            "finished": chosen.finished,
            "planned": chosen.planned,
            "licences": about.licences,
            "provenance": read_json(run.provenance) if exists(run.provenance) else {},
        }
    )
    return counts


def _counted(
    chosen: Chosen,
    counts: Counter,
    keep: Callable[[list[dict[str, Any]]], None],
    warn: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Iterator[tuple[str, list[Any]]]:
    """The parts that have something to write; their rows go to `keep`, their damage to `warn`, on the way."""
    for part in chosen.parts():
        counts.update(row["verdict"] for row in part.rows)
        keep(part.rows)
        for line in part.damage:
            warn(f"left out: {line}")
        if part.items:
            yield part.split, part.items
        progress(counts.total(), len(chosen.records))


@contextlib.contextmanager
def _lineage(target: Target) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """lineage.parquet: yields what takes its rows, which are written some thousand at a time."""
    waiting: list[dict[str, Any]] = []
    with target.published("lineage.parquet") as partial, pq.ParquetWriter(partial, LINEAGE) as writer:

        def keep(rows: list[dict[str, Any]], least: int = ROWS) -> None:
            waiting.extend(rows)
            if len(waiting) >= least:
                writer.write_table(pa.Table.from_pylist(waiting, schema=LINEAGE))
                waiting.clear()

        yield keep
        keep([], least=0)
