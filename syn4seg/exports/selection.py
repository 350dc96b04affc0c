"""Which samples of a run are exported, under which split, and their pixels part by part: never the whole run in memory.

A sample is exported as it was recorded: pixels whose digest is not that of the record count as damaged, and stay out.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.exports.choice import ACCEPTED, BANKS, ExportOptions, class_split, read_audit
from syn4seg.exports.lineage import lineage_row, shared_columns, verdict_of
from syn4seg.exports.merging import RealImages, dataset_values
from syn4seg.exports.samples import ExportPart, ExportSample
from syn4seg.report.reading import GallerySample, exact_class_names, read_pages, read_records
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.results import with_bank
from syn4seg.store.images import pixel_digest
from syn4seg.store.rundir import table_digest
from syn4seg.store.seals import check_seal

if TYPE_CHECKING:
    from syn4seg.store.rundir import RunDir

PART = 32
"""Samples that are in memory at a time."""


class Selection:
    """The samples of a run that the options name.

    Attributes:
        names: class name by exported label value, background first.
        records: pa.Table of `schema.RECORD`, `bank` and `split`, sorted by split, generator batch and sample id: in that order
            classes are mixed as the plan mixes them, and a sharded run is read from front to back.
        real: images of a real data set that are exported too; None without `options.merge`.
        finished, planned: samples of the draw (of the chosen bank and classes), whatever became of them.
        filtered: finished samples that the filters leave out.

    Raises:
        UserError: there is no such draw, class or sample, or the data set, which knows the class names, is not there.
    """

    def __init__(self, run: RunDir, config: Config, options: ExportOptions):
        options.check()
        self.run, self.options = run, options
        for path in (run.config, run.plan, run.prompts, run.provenance, run.draw(options.draw).manifest):
            check_seal(path)
        index_names, self.common = exact_class_names(run, config), shared_columns(run, config)
        self.names, self.values = (index_names, None) if options.ids == "index" else dataset_values(config)
        self.real = None if options.merge is None else RealImages(options, config, self.names)
        records, plan = _of_draw(run, options.draw), read_planned_samples(run)
        self._check_names(records, index_names)
        records, plan = self._of_bank(records, plan)
        if options.classes:
            chosen = _check_classes(options.classes, plan, index_names)
            records = records.filter(pc.is_in(records["class"], pa.array(chosen)))
            plan = plan.filter(pc.is_in(plan["class_id"], pa.array([index_names.index(c) for c in chosen], pa.int32())))
        self.finished, self.planned = len(records), len(plan)
        self.reasons = Counter(verdict_of(reason) for reason in records["reason"].to_pylist())
        chosen = self._of_reason(records)
        kept = self._above_least(chosen)
        self.filtered = len(chosen) - len(kept)
        if not any(verdict_of(reason) != "fault" for reason in kept["reason"].to_pylist()):
            raise UserError(self._nothing())
        order = [("split", "ascending"), ("batch", "ascending"), ("sample_id", "ascending")]
        self.records = kept.append_column("split", self._splits(kept)).sort_by(order)

    def digest(self) -> str:
        """Return a digest over ids, pixels, labels and reasons of the chosen samples, and over their splits."""
        table = self.records
        labels = pc.binary_join_element_wise(pc.fill_null(table["label"], ""), table["reason"], table["split"], " ")
        digest = table_digest(table["sample_id"], pc.fill_null(table["image"], ""), labels)
        return digest if self.real is None else f"{digest} {self.real.digest()}"

    def parts(self) -> Iterator[ExportPart]:
        """Yield the chosen samples, at most `PART` at a time, all of one split, split by split: first those of the run, in the
        order of `records`, then the real ones.

        Raises:
            StoreError: the file system of the run fails.
        """
        waiting = [] if self.real is None else list(self.real.splits)
        for part in self._synthetic_parts():
            while self.real and waiting and waiting[0] < part.split:
                yield from self.real.parts(waiting.pop(0), self.common, PART)
            yield part
        for split in waiting:
            assert self.real is not None
            yield from self.real.parts(split, self.common, PART)

    def __len__(self) -> int:
        return len(self.records) + (0 if self.real is None else len(self.real))

    def _synthetic_parts(self) -> Iterator[ExportPart]:
        columns = [iter(self.records[name].to_pylist()) for name in ("split", "bank")]
        for page in read_pages(self.run, self.options.draw, self.records.drop_columns(["split", "bank"]), PART):
            triples = [(*map(next, columns), shown) for shown in page]
            for split, group in itertools.groupby(triples, key=itemgetter(0)):
                yield self._part(split, [(bank, shown) for _, bank, shown in group])

    def _part(self, split: str, page: list[tuple[str, GallerySample]]) -> ExportPart:
        rows, items, lines = [], [], []
        for bank, shown in page:
            stage = next((s for s in reversed(LABEL_COLUMNS) if shown.record.get(s)), "")
            damage = shown.damage or _difference(shown, stage)
            row = lineage_row(shown.record, self.common, self.options.draw, "" if damage else split, stage) | {"bank": bank}
            if self.values is not None:
                row["class_id"] = int(self.values[row["class_id"]])
            if damage:
                row["verdict"] = "damaged"
                lines.append(f"{row['sample_id']}: {damage}")
            elif shown.image is not None and stage:
                label = shown.labels[stage]
                items.append(ExportSample(row, shown.image, label if self.values is None else self.values[label]))
            rows.append(row)
        return ExportPart(split, rows, items, lines)

    def _of_bank(self, records: pa.Table, plan: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return both tables with the samples of the chosen bank; the records get the column `bank`."""
        records = with_bank(records, plan)
        if self.options.bank == "all":
            return records, plan
        wanted = pa.array(BANKS[self.options.bank])
        return records.filter(pc.is_in(records["bank"], wanted)), plan.filter(pc.is_in(plan["bank"], wanted))

    def _of_reason(self, records: pa.Table) -> pa.Table:
        if not self.options.reasons:
            return records.filter(pc.equal(records["reason"], "")) if self.options.only == "accepted" else records
        known = {reason or ACCEPTED for reason in records["reason"].to_pylist() if verdict_of(reason) != "fault"}
        if unknown := [reason for reason in self.options.reasons if reason not in known]:
            raise UserError(
                f"--reason {unknown[0]}: no sample of draw {self.options.draw} has it; expected some of "
                f"{', '.join(sorted(known)) or 'none: let the run go on'}"
            )
        wanted = ["" if reason == ACCEPTED else reason for reason in self.options.reasons]
        return records.filter(pc.is_in(records["reason"], pa.array(wanted)))

    def _above_least(self, records: pa.Table) -> pa.Table:
        if self.options.min_iou is None and self.options.min_similarity is None:
            return records
        rows = zip(*(records[name].to_pylist() for name in ("audit", "class_id", "reason")), strict=True)
        passed = [verdict_of(why) == "fault" or self.options.passes(read_audit(audit), index) for audit, index, why in rows]
        return records.filter(pa.array(passed, pa.bool_()))

    def _nothing(self) -> str:
        """Say why there is nothing to export, and what to do."""
        options, remedies = self.options, []
        if self.filtered:
            remedies.append("lower --min-iou or --min-similarity (the filters leave out every sample)")
        elif self.reasons["rejected"] and options.only != "all":
            remedies.append("use --only all for the rejected ones")
        if options.bank != "all":
            remedies.append("choose another --bank")
        text = f"{self.run.root}: draw {options.draw} has no sample to export ({_format_counts(self.reasons)}); "
        return text + ", ".join([*remedies, "let the run go on, or choose other --classes"])

    def _splits(self, records: pa.Table) -> pa.Array:
        columns = (records[name].to_pylist() for name in ("sample_id", "class", "class_id", "reason"))
        splits = []
        for sample_id, name, index, reason in zip(*columns, strict=True):
            accepted, rejected = self.options.part_of(sample_id), "rejected"
            if self.options.by_class:
                of_class = class_split(index if self.values is None else int(self.values[index]), name)
                accepted = f"{of_class}_val" if accepted == "val" else of_class
                rejected = f"{of_class}_rejected"
            splits.append({"accepted": accepted, "rejected": rejected, "fault": ""}[verdict_of(reason)])
        return pa.array(splits, pa.string())

    def _check_names(self, records: pa.Table, names: Sequence[str]) -> None:
        for pair in records.group_by(["class", "class_id"]).aggregate([]).to_pylist():
            index, name = pair["class_id"], pair["class"]
            if not 0 < index < len(names) or names[index] != name:
                raise UserError(
                    f"{self.run.root}: its records call class {index} {name!r}, which the data set does not; "
                    "put the data set back that the run was made with (data.root, data.fold)"
                )


def _check_classes(classes: tuple[str, ...], plan: pa.Table, names: Sequence[str]) -> list[str]:
    novel = [str(names[index]) for index in sorted(set(plan["class_id"].to_pylist()))]
    words, chosen = list(classes), []
    while words:  # a name may hold commas itself
        ends = [n for n in range(len(words), 0, -1) if _joined(words[:n]) in map(_joined, ([name] for name in novel))]
        if not ends:
            raise UserError(f"--classes {words[0]}: not a novel class of this run; expected some of {', '.join(novel)}")
        chosen.append(next(name for name in novel if _joined([name]) == _joined(words[: ends[0]])))
        words = words[ends[0] :]
    return chosen


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
