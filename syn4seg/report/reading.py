"""A run as people look at it: its class names, its draws, and its samples page by page, whatever the layout. Writes nothing."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.tree import Config
from syn4seg.errors import DamagedError, UserError
from syn4seg.schema import BACKGROUND, RECORD, UNLABELED
from syn4seg.store.files import exists, read_json
from syn4seg.store.rundir import RunDir
from syn4seg.store.tables import read_parquet

STAGE_TITLES = {"draft": "draft", "kept": "kept (APF)", "relabeled": "relabeled (APR)", "label": "label (SABR)"}
"""What the label stages are called above a picture."""
PAGE = 64
"""Samples that are in memory at a time."""


Truth = Callable[[dict[str, Any], int], np.ndarray | None]
"""From a record and the side of its image to the exact label uint8 (side, side), or None where it is not known."""


@dataclass(frozen=True)
class GallerySample:
    """One sample of a draw as it is on the disk.

    Attributes:
        record: columns of `schema.RECORD` that have a value; `audit` as plain values.
        image: uint8 (H, W, 3) RGB, or None: a fault has none.
        labels: by stage (`schema.LABEL_COLUMNS`), uint8 (H, W); empty for a fault.
        damage: what is wrong with its files, or empty; then image and labels are missing.
        truth: the exact label uint8 (H, W), where somebody knows it and was asked.
    """

    record: dict[str, Any]
    image: np.ndarray | None
    labels: dict[str, np.ndarray]
    damage: str = ""
    truth: np.ndarray | None = None


def class_names(run: RunDir, config: Config) -> tuple[str, ...]:
    """Name of every class index of a run's labels, background first, for people to look at: `exact_names`, or, of a run without
    results whose data set is not there, those of its prompts, which name the novel classes; each other one is "class K"."""
    try:
        return exact_class_names(run, config)
    except UserError:
        if not exists(run.prompts):
            return ("background",)
    novel = read_parquet(run.prompts, ["class_id", "class"])
    novel = novel.filter(pc.and_(pc.greater(novel["class_id"], BACKGROUND), pc.less(novel["class_id"], UNLABELED)))
    known = dict(zip(novel["class_id"].to_pylist(), novel["class"].to_pylist(), strict=True)) | {BACKGROUND: "background"}
    return tuple(known.get(index, f"class {index}") for index in range(max(known) + 1))


def exact_class_names(run: RunDir, config: Config) -> tuple[str, ...]:
    """Name of every class index of a run's labels, background first: as results.json has them, else as the data set has.

    Raises:
        UserError: the run has no results yet and the data set is not there.
    """
    if exists(run.results) and (names := read_json(run.results).get("classes")):
        return tuple(names)
    from syn4seg.stages.setup import load_dataset

    return load_dataset(config)[1].index_names


def read_records(run: RunDir, draw: int) -> pa.Table:
    """Records of a draw, sorted by sample id (columns `schema.RECORD`): its manifest, or, before there is one, what is done.

    Raises:
        UserError: the manifest is damaged.
    """
    manifest = run.draw(draw).manifest
    if not exists(manifest):
        return run.draw(draw).table()
    table = read_parquet(manifest)
    if lacking := set(RECORD.names) - set(table.column_names):
        raise UserError(f"{manifest}: has no column {min(lacking)!r}; delete it and run the same command again")
    return table.select(RECORD.names).cast(RECORD).sort_by("sample_id")


def read_pages(run: RunDir, draw: int, records: pa.Table, size: int = PAGE) -> Iterator[list[GallerySample]]:
    """Samples of a draw with images and labels, in the order of `records`, at most `size` at a time.

    A damaged or missing file costs its own sample only, which says so.

    Raises:
        StoreError: the file system fails.
    """
    rows = records.select(["sample_id", "class"])
    for key, known in (("image_at", run.samples.images()), ("label_at", run.samples.locations(draw))):
        index = pc.index_in(rows["sample_id"], known["sample_id"].combine_chunks())
        rows = rows.append_column(key, pc.fill_null(known[key].take(index), ""))
    for start in range(0, len(rows), size):
        part = rows.slice(start, size).to_pylist()
        yield _page(run, draw, part, records.slice(start, size).to_pylist())


def _page(run: RunDir, draw: int, rows: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[GallerySample]:
    return [
        _damaged_sample(record, found)
        if isinstance(found, DamagedError)
        else GallerySample(found[0].record, found[1], found[0].labels)
        for record, found in zip(records, run.draw(draw).read_or_errors(rows), strict=True)
    ]


def _damaged_sample(record: dict[str, Any], error: DamagedError) -> GallerySample:
    known = {key: value for key, value in record.items() if value is not None}
    try:
        audit = json.loads(known.get("audit", "{}"))
    except ValueError:
        audit = {}
    return GallerySample(known | {"audit": audit}, None, {}, str(error))
