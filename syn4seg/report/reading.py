"""A run as people look at it: its class names, its draws, and its samples page by page, whatever the layout. Writes nothing."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config import Config
from syn4seg.files import StoreError, exists, read_json
from syn4seg.rundir import RunDir
from syn4seg.schema import RECORD
from syn4seg.tables import read_parquet

PAGE = 64
"""Samples that are in memory at a time."""


@dataclass(frozen=True)
class Shown:
    """One sample of a draw as it is on the disk.

    Attributes:
        record: columns of `schema.RECORD` that have a value; `audit` as plain values.
        image: uint8 (H, W, 3) RGB, or None: a fault has none.
        labels: by stage (`schema.LABEL_STAGES`), uint8 (H, W); empty for a fault.
        damage: what is wrong with its files, or empty; then image and labels are missing.
    """

    record: dict[str, Any]
    image: np.ndarray | None
    labels: dict[str, np.ndarray]
    damage: str = ""


def class_names(run: RunDir, config: Config) -> tuple[str, ...]:
    """Name of every class index of a run's labels, background first: as results.json has them, else as the data set has.

    Raises:
        ValueError: the run has no results yet and the data set is not there.
    """
    if exists(run.results) and (names := read_json(run.results).get("classes")):
        return tuple(names)
    from syn4seg.stages.setup import load_dataset

    return load_dataset(config)[1].index_names


def records_of(run: RunDir, draw: int) -> pa.Table:
    """Records of a draw, sorted by sample id (columns `schema.RECORD`): its manifest, or, before there is one, what is done.

    Raises:
        ValueError: the manifest is damaged.
    """
    manifest = run.draw(draw).manifest
    if not exists(manifest):
        return run.draw(draw).table()
    table = read_parquet(manifest)
    if lacking := set(RECORD.names) - set(table.column_names):
        raise ValueError(f"{manifest}: has no column {min(lacking)!r}; delete it and run the same command again")
    return table.select(RECORD.names).cast(RECORD).sort_by("sample_id")


def pages(run: RunDir, draw: int, records: pa.Table, size: int = PAGE) -> Iterator[list[Shown]]:
    """Samples of a draw with images and labels, in the order of `records`, at most `size` at a time.

    A damaged or missing file costs its own sample only, which says so.

    Raises:
        StoreError: the file system fails.
    """
    rows = records.select(["sample_id", "class"])
    for key, known in (("image_at", run.samples.images()), ("label_at", run.samples.places(draw))):
        index = pc.index_in(rows["sample_id"], known["sample_id"].combine_chunks())
        rows = rows.append_column(key, pc.fill_null(known[key].take(index), ""))
    for start in range(0, len(rows), size):
        part = rows.slice(start, size).to_pylist()
        yield _page(run, draw, part, records.slice(start, size).to_pylist())


def _page(run: RunDir, draw: int, rows: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[Shown]:
    try:
        found = run.draw(draw).read(rows)
        return [Shown(sample.record, image, sample.labels) for sample, image in found]
    except StoreError:
        raise
    except ValueError as error:
        if len(rows) == 1:
            record = {k: v for k, v in records[0].items() if v is not None}
            return [Shown(record | {"audit": {}}, None, {}, str(error))]
        return [_page(run, draw, [row], [record])[0] for row, record in zip(rows, records, strict=True)]
