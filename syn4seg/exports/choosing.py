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
from syn4seg.exports.lineage import row_of, shared, verdict
from syn4seg.report.reading import Shown, exact_names, pages, records_of
from syn4seg.schema import LABEL_STAGES
from syn4seg.stages.plan import planned
from syn4seg.store.files import pixel_digest
from syn4seg.store.rundir import table_digest

if TYPE_CHECKING:
    import numpy as np

    from syn4seg.store.rundir import RunDir

PART = 32
"""Samples that are in memory at a time."""
ONLY = ("accepted", "all")


@dataclass(frozen=True)
class Choice:
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
class Item:
    """A sample to write: its row of `LINEAGE`, image uint8 (H, W, 3) RGB, label uint8 (H, W) with 255 for unlabeled."""

    row: dict[str, Any]
    image: np.ndarray
    label: np.ndarray

    @property
    def sample_id(self) -> str:
        """Its id, which is safe as a file name."""
        return self.row["sample_id"]


@dataclass(frozen=True)
class Part:
    """Some samples of one split: the rows of all of them, those that have pixels, and a line per damaged one."""

    split: str
    rows: list[dict[str, Any]]
    items: list[Item]
    damage: list[str]


class Chosen:
    """The samples of a run that a choice names.

    Attributes:
        names: class name by label value, background first.
        records: pa.Table of `schema.RECORD` and `split`, sorted by split, generator batch and sample id: in that order classes
            are mixed as the plan mixes them, and a sharded run is read from front to back.
        finished, planned: samples of the draw (of the chosen classes), whatever became of them.

    Raises:
        UserError: there is no such draw, class or sample, or the data set, which knows the class names, is not there.
    """

    def __init__(self, run: RunDir, config: Config, choice: Choice):
        if choice.only not in ONLY:
            raise UserError(f"--only {choice.only}: expected {' or '.join(ONLY)}")
        self.run, self.choice = run, choice
        self.names, self.common = exact_names(run, config), shared(run, config)
        records, plan = _of_draw(run, choice.draw), planned(run)
        self._check_names(records)
        if choice.classes:
            records = records.filter(pc.is_in(records["class"], pa.array(self._known(choice.classes, plan))))
            plan = plan.filter(pc.is_in(plan["class_id"], pa.array([self.names.index(c) for c in choice.classes], pa.int32())))
        self.finished, self.planned = len(records), len(plan)
        self.reasons = Counter(verdict(reason) for reason in records["reason"].to_pylist())
        if choice.only == "accepted":
            records = records.filter(pc.equal(records["reason"], ""))
        if not self.reasons["accepted"] + (self.reasons["rejected"] if choice.only == "all" else 0):
            raise UserError(
                f"{run.root}: draw {choice.draw} has no sample to export ({_told(self.reasons)}); "
                + ("use --only all for the rejected ones, or " if self.reasons["rejected"] else "")
                + "let the run go on, or choose other --classes"
            )
        order = [("split", "ascending"), ("batch", "ascending"), ("sample_id", "ascending")]
        self.records = records.append_column("split", self._splits(records)).sort_by(order)

    def digest(self) -> str:
        """Digest over ids, pixels, labels and reasons of the chosen samples, and over their splits."""
        table = self.records
        said = pc.binary_join_element_wise(pc.fill_null(table["label"], ""), table["reason"], table["split"], " ")
        return table_digest(table["sample_id"], pc.fill_null(table["image"], ""), said)

    def parts(self) -> Iterator[Part]:
        """The chosen samples, at most `PART` at a time, all of one split, in the order of `records`.

        Raises:
            StoreError: the file system of the run fails.
        """
        splits = iter(self.records["split"].to_pylist())
        for page in pages(self.run, self.choice.draw, self.records.drop_columns(["split"]), PART):
            pairs = [(next(splits), shown) for shown in page]
            for split, some in itertools.groupby(pairs, key=itemgetter(0)):
                yield self._part(split, [shown for _, shown in some])

    def _part(self, split: str, page: list[Shown]) -> Part:
        rows, items, lines = [], [], []
        for shown in page:
            stage = next((s for s in reversed(LABEL_STAGES) if shown.record.get(s)), "")
            damage = shown.damage or _difference(shown, stage)
            row = row_of(shown.record, self.common, self.choice.draw, "" if damage else split, stage)
            if damage:
                row["verdict"] = "damaged"
                lines.append(f"{row['sample_id']}: {damage}")
            elif shown.image is not None and stage:
                items.append(Item(row, shown.image, shown.labels[stage]))
            rows.append(row)
        return Part(split, rows, items, lines)

    def _splits(self, records: pa.Table) -> pa.Array:
        columns = (records[name].to_pylist() for name in ("class", "class_id", "reason"))
        found = []
        for name, index, reason in zip(*columns, strict=True):
            kind = verdict(reason)
            accepted, rejected = "train", "rejected"
            if self.choice.by_class:
                accepted = f"{index:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', name)}"
                rejected = f"{accepted}_rejected"
            found.append({"accepted": accepted, "rejected": rejected, "fault": ""}[kind])
        return pa.array(found, pa.string())

    def _known(self, classes: tuple[str, ...], plan: pa.Table) -> list[str]:
        novel = [self.names[index] for index in sorted(set(plan["class_id"].to_pylist()))]
        for name in classes:
            if name not in novel:
                raise UserError(f"--classes {name}: not a novel class of this run; expected some of {', '.join(novel)}")
        return list(classes)

    def _check_names(self, records: pa.Table) -> None:
        for pair in records.group_by(["class", "class_id"]).aggregate([]).to_pylist():
            index, name = pair["class_id"], pair["class"]
            if not 0 < index < len(self.names) or self.names[index] != name:
                raise UserError(
                    f"{self.run.root}: its records call class {index} {name!r}, which the data set does not; "
                    "put the data set back that the run was made with (data.root, data.fold)"
                )


def _of_draw(run: RunDir, draw: int) -> pa.Table:
    there = [d.number for d in run.draws()]
    if draw not in there:
        known = ", ".join(map(str, there)) or "none yet; run `syn4seg refine` first"
        raise UserError(f"--draw {draw}: {run.root} has no such support draw; it has: {known}")
    return records_of(run, draw)


def _difference(shown: Shown, stage: str) -> str:
    """Which pixels are not those of the record, or ""."""
    for key, pixels in (("image", shown.image), (stage, shown.labels.get(stage))):
        if pixels is not None and pixel_digest(pixels) != shown.record[key]:
            return f"the pixels of its {key} are not those that were recorded; `syn4seg verify` tells more"
    return ""


def _told(reasons: Counter) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(reasons.items())) or "none is finished"
