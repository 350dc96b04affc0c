"""Read what the reports show of a run, in any layout: class names, records, and samples page by page. Writes nothing."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.tree import Config
from syn4seg.errors import DamagedError, UserError
from syn4seg.schema import BACKGROUND, PROMPTS_FILE, RECORD, UNLABELED
from syn4seg.store.files import exists
from syn4seg.store.readback import ClassNames, read_checked
from syn4seg.store.rundir import RunDir
from syn4seg.store.tables import read_parquet

STAGE_TITLES = {"draft": "draft", "kept": "kept (APF)", "relabeled": "relabeled (APR)", "label": "label (SABR)"}
"""Label column -> its title above a picture."""
PAGE = 64
"""Samples that are in memory at a time."""


@dataclass(frozen=True)
class GallerySample:
    """One sample of a draw as it is stored.

    Attributes:
        record: columns of `schema.RECORD` that have a value; `audit` as a dict.
        image: uint8 (H, W, 3) RGB; None for a fault or damaged files.
        labels: label column (`schema.LABEL_COLUMNS`) -> uint8 (H, W); empty for a fault or damaged files.
        damage: what is wrong with its files, or "".
        truth: the exact label uint8 (H, W), if known and asked for.
    """

    record: dict[str, Any]
    image: np.ndarray | None
    labels: dict[str, np.ndarray]
    damage: str = ""
    truth: np.ndarray | None = None


def class_names(run: RunDir, config: Config) -> tuple[str, ...]:
    """Return the name of every class index of a run's labels, background first, for display.

    They are those of `exact_class_names`; of a run without results whose data set is missing, those in prompts.parquet, which
    names the novel classes, and "class K" for the others.
    """
    try:
        return exact_class_names(run, config)
    except UserError:
        if not exists(run.prompts):
            return ("background",)
    novel = read_parquet(run.prompts, ["class_id", "class"], PROMPTS_FILE)
    novel = novel.filter(pc.and_(pc.greater(novel["class_id"], BACKGROUND), pc.less(novel["class_id"], UNLABELED)))
    names = dict(zip(novel["class_id"].to_pylist(), novel["class"].to_pylist(), strict=True)) | {BACKGROUND: "background"}
    return tuple(names.get(index, f"class {index}") for index in range(max(names) + 1))


def exact_class_names(run: RunDir, config: Config) -> tuple[str, ...]:
    """Return the name of every class index of a run's labels, background first, from results.json, else from the data set.

    Raises:
        UserError: the run has no results yet and the data set is missing.
    """
    if exists(run.results) and (names := read_checked(run.results, ClassNames)["classes"]):
        return tuple(names)
    from syn4seg.stages.setup import load_dataset

    return load_dataset(config)[1].index_names


def read_records(run: RunDir, draw: int) -> pa.Table:
    """Return the records of a draw (columns `schema.RECORD`) by sample id: its manifest, or, before there is one, those so far.

    Raises:
        UserError: the manifest is damaged.
    """
    manifest = run.draw(draw).manifest
    if not exists(manifest):
        return run.draw(draw).table()
    table = read_parquet(manifest, schema=RECORD)
    return table.select(RECORD.names).cast(RECORD).sort_by("sample_id")


def read_pages(run: RunDir, draw: int, records: pa.Table, size: int = PAGE) -> Iterator[list[GallerySample]]:
    """Yield the samples of a draw with images and labels, in the order of `records`, at most `size` at a time.

    A damaged or missing file affects its own sample only, whose `damage` names it.

    Raises:
        StoreError: the file system fails.
    """
    rows = records.select(["sample_id", "class"])
    for key, locations in (("image_at", run.samples.images()), ("label_at", run.samples.locations(draw))):
        index = pc.index_in(rows["sample_id"], locations["sample_id"].combine_chunks())
        rows = rows.append_column(key, pc.fill_null(locations[key].take(index), ""))
    for start in range(0, len(rows), size):
        results = run.draw(draw).read_or_errors(rows.slice(start, size).to_pylist())
        yield [
            _damaged_sample(record, result)
            if isinstance(result, DamagedError)
            else GallerySample(result[0].record, result[1], result[0].labels)
            for record, result in zip(records.slice(start, size).to_pylist(), results, strict=True)
        ]


def _damaged_sample(record: dict[str, Any], error: DamagedError) -> GallerySample:
    values = {key: value for key, value in record.items() if value is not None}
    try:
        audit = json.loads(values.get("audit", "{}"))
    except ValueError:
        audit = {}
    return GallerySample(values | {"audit": audit}, None, {}, str(error))
