"""Which samples of a run are exported, under which split, and their pixels part by part: never the whole run in memory.

A sample is exported as it was recorded: pixels whose digest is not that of the record count as damaged, and stay out.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.exports.lineage import lineage_row, shared_columns, verdict_of
from syn4seg.report.reading import GallerySample, exact_class_names, read_pages, read_records
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.stages.plan import read_planned_samples
from syn4seg.store.images import pixel_digest
from syn4seg.store.rundir import table_digest
from syn4seg.store.seals import check_seal

if TYPE_CHECKING:
    import numpy as np

    from syn4seg.store.rundir import RunDir

PART = 32
"""Samples that are in memory at a time."""
ONLY = ("accepted", "all")


@dataclass(frozen=True)
class ExportOptions:
    """What is exported of a run.

    Attributes:
        draw: number of the support draw whose labels are taken.
        only: "accepted", or "all": rejected samples too, in splits of their own, and faults in the lineage.
        classes: names of novel classes; empty for all.
        by_class: a split per class, "013_ball", instead of "train" ("013_ball_rejected" instead of "rejected").
    """

    draw: int = 0
    only: str = "accepted"
    classes: tuple[str, ...] = ()
    by_class: bool = False


@dataclass(frozen=True)
class ExportSample:
    """A sample to write: its row of `LINEAGE`, image uint8 (H, W, 3) RGB, label uint8 (H, W) with 255 for unlabeled."""

    row: dict[str, Any]
    image: np.ndarray
    label: np.ndarray

    @property
    def sample_id(self) -> str:
        """The id of the sample, which is safe as a file name."""
        return self.row["sample_id"]


@dataclass(frozen=True)
class ExportPart:
    """Some samples of one split: the rows of all of them, those that have pixels, and a line per damaged one."""

    split: str
    rows: list[dict[str, Any]]
    items: list[ExportSample]
    damage: list[str]


class Selection:
    """The samples of a run that the options name.

    Attributes:
        names: class name by label value, background first.
        records: pa.Table of `schema.RECORD` and `split`, sorted by split, generator batch and sample id: in that order classes
            are mixed as the plan mixes them, and a sharded run is read from front to back.
        finished, planned: samples of the draw (of the chosen classes), whatever became of them.

    Raises:
        UserError: there is no such draw, class or sample, or the data set, which knows the class names, is not there.
    """

    def __init__(self, run: RunDir, config: Config, options: ExportOptions):
        if options.only not in ONLY:
            raise UserError(f"--only {options.only}: expected {' or '.join(ONLY)}")
        self.run, self.options = run, options
        for path in (run.config, run.plan, run.prompts, run.provenance, run.draw(options.draw).manifest):
            check_seal(path)
        self.names, self.common = exact_class_names(run, config), shared_columns(run, config)
        records, plan = _of_draw(run, options.draw), read_planned_samples(run)
        self._check_names(records)
        if options.classes:
            chosen = self._check_classes(options.classes, plan)
            records = records.filter(pc.is_in(records["class"], pa.array(chosen)))
            plan = plan.filter(pc.is_in(plan["class_id"], pa.array([self.names.index(c) for c in chosen], pa.int32())))
        self.finished, self.planned = len(records), len(plan)
        self.reasons = Counter(verdict_of(reason) for reason in records["reason"].to_pylist())
        if options.only == "accepted":
            records = records.filter(pc.equal(records["reason"], ""))
        if not self.reasons["accepted"] + (self.reasons["rejected"] if options.only == "all" else 0):
            raise UserError(
                f"{run.root}: draw {options.draw} has no sample to export ({_format_counts(self.reasons)}); "
                + ("use --only all for the rejected ones, or " if self.reasons["rejected"] else "")
                + "let the run go on, or choose other --classes"
            )
        order = [("split", "ascending"), ("batch", "ascending"), ("sample_id", "ascending")]
        self.records = records.append_column("split", self._splits(records)).sort_by(order)

    def digest(self) -> str:
        """Return a digest over ids, pixels, labels and reasons of the chosen samples, and over their splits."""
        table = self.records
        labels = pc.binary_join_element_wise(pc.fill_null(table["label"], ""), table["reason"], table["split"], " ")
        return table_digest(table["sample_id"], pc.fill_null(table["image"], ""), labels)

    def parts(self) -> Iterator[ExportPart]:
        """Yield the chosen samples, at most `PART` at a time, all of one split, in the order of `records`.

        Raises:
            StoreError: the file system of the run fails.
        """
        splits = iter(self.records["split"].to_pylist())
        for page in read_pages(self.run, self.options.draw, self.records.drop_columns(["split"]), PART):
            pairs = [(next(splits), shown) for shown in page]
            for split, group in itertools.groupby(pairs, key=itemgetter(0)):
                yield self._part(split, [shown for _, shown in group])

    def _part(self, split: str, page: list[GallerySample]) -> ExportPart:
        rows, items, lines = [], [], []
        for shown in page:
            stage = next((s for s in reversed(LABEL_COLUMNS) if shown.record.get(s)), "")
            damage = shown.damage or _difference(shown, stage)
            row = lineage_row(shown.record, self.common, self.options.draw, "" if damage else split, stage)
            if damage:
                row["verdict"] = "damaged"
                lines.append(f"{row['sample_id']}: {damage}")
            elif shown.image is not None and stage:
                items.append(ExportSample(row, shown.image, shown.labels[stage]))
            rows.append(row)
        return ExportPart(split, rows, items, lines)

    def _splits(self, records: pa.Table) -> pa.Array:
        columns = (records[name].to_pylist() for name in ("class", "class_id", "reason"))
        splits = []
        for name, index, reason in zip(*columns, strict=True):
            kind = verdict_of(reason)
            accepted, rejected = "train", "rejected"
            if self.options.by_class:
                accepted = f"{index:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', name)}"
                rejected = f"{accepted}_rejected"
            splits.append({"accepted": accepted, "rejected": rejected, "fault": ""}[kind])
        return pa.array(splits, pa.string())

    def _check_classes(self, classes: tuple[str, ...], plan: pa.Table) -> list[str]:
        novel = [self.names[index] for index in sorted(set(plan["class_id"].to_pylist()))]
        words, chosen = list(classes), []
        while words:  # a name may hold commas itself
            ends = [n for n in range(len(words), 0, -1) if _joined(words[:n]) in map(_joined, ([name] for name in novel))]
            if not ends:
                raise UserError(f"--classes {words[0]}: not a novel class of this run; expected some of {', '.join(novel)}")
            chosen.append(next(name for name in novel if _joined([name]) == _joined(words[: ends[0]])))
            words = words[ends[0] :]
        return chosen

    def _check_names(self, records: pa.Table) -> None:
        for pair in records.group_by(["class", "class_id"]).aggregate([]).to_pylist():
            index, name = pair["class_id"], pair["class"]
            if not 0 < index < len(self.names) or self.names[index] != name:
                raise UserError(
                    f"{self.run.root}: its records call class {index} {name!r}, which the data set does not; "
                    "put the data set back that the run was made with (data.root, data.fold)"
                )


def _joined(words: list[str]) -> str:
    """Return words between commas as one text, without the spaces around the commas."""
    return ",".join(part.strip() for word in words for part in word.split(","))


def _of_draw(run: RunDir, draw: int) -> pa.Table:
    numbers = [d.number for d in run.draws()]
    if draw not in numbers:
        known = ", ".join(map(str, numbers)) or "none yet; run `syn4seg refine` first"
        raise UserError(f"--draw {draw}: {run.root} has no such support draw; it has: {known}")
    return read_records(run, draw)


def _difference(shown: GallerySample, stage: str) -> str:
    """Say which pixels are not those of the record, or return ""."""
    for key, pixels in (("image", shown.image), (stage, shown.labels.get(stage))):
        if pixels is not None and pixel_digest(pixels) != shown.record[key]:
            return f"the pixels of its {key} are not those that were recorded; `syn4seg verify` tells more"
    return ""


def _format_counts(reasons: Counter) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(reasons.items())) or "none is finished"
