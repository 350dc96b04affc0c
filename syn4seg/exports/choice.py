"""What is exported of a run: the options, the recorded figures that its filters compare, and the split into train and val."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from syn4seg.errors import UserError
from syn4seg.stages.rows import CLASS_NAME, HDIG

ONLY = ("accepted", "all")
BANKS = {"hdig": (HDIG,), "control": (CLASS_NAME,), "all": (HDIG, CLASS_NAME)}
"""`--bank` -> the banks of the plan. The control bank is one prompt with nothing but the class name, an ablation."""
IDS = ("index", "dataset")
ACCEPTED = "accepted"
"""The word of `--reason` for samples that were not rejected."""


@dataclass(frozen=True)
class ExportOptions:
    """What is exported of a run.

    Attributes:
        draw: number of the support draw whose labels are taken.
        only: "accepted", or "all": rejected samples too, in splits of their own, and faults in the lineage.
        classes: names of novel classes; empty for all.
        by_class: a split per class, "013_ball", instead of "train" ("013_ball_rejected" instead of "rejected").
        bank: key of `BANKS`: samples of which prompts.
        min_iou: least `agreement_of` of a sample.
        min_similarity: least `similarity_of` of a sample.
        reasons: only samples that were rejected for one of these (or "accepted"); empty for what `only` says.
        split: share of the samples in train, the others are in val; None for one split.
        split_seed: another one splits otherwise.
        ids: "index": label values are the run's class indices; "dataset": the data set's own ids.
        merge: folder of a data set, or "run" for that of the run, whose train list is exported too.
    """

    draw: int = 0
    only: str = "accepted"
    classes: tuple[str, ...] = ()
    by_class: bool = False
    bank: str = "hdig"
    min_iou: float | None = None
    min_similarity: float | None = None
    reasons: tuple[str, ...] = ()
    split: float | None = None
    split_seed: int = 0
    ids: str = "index"
    merge: str | None = None

    def check(self) -> None:
        """Refuse values that are none, and options that contradict each other.

        Raises:
            UserError: the first of them.
        """
        for option, value, known in (("only", self.only, ONLY), ("bank", self.bank, tuple(BANKS)), ("ids", self.ids, IDS)):
            if value not in known:
                raise UserError(f"--{option} {value}: expected {', '.join(known[:-1])} or {known[-1]}")
        if self.split is not None and not 0 < self.split < 1:
            raise UserError(f"--split {self.split:g}: expected the share of train, between 0 and 1, for example --split 0.9")
        for option, value, least in (("min-iou", self.min_iou, 0), ("min-similarity", self.min_similarity, -1)):
            if value is not None and not least <= value <= 1:
                raise UserError(f"--{option} {value:g}: expected a number from {least} to 1")
        if self.merge is not None and self.by_class:
            raise UserError("--merge with --by-class: a real image shows many classes; leave one of the two out")

    def passes(self, audit: dict[str, Any], class_id: int) -> bool:
        """Return whether the recorded figures of a sample reach the least values; one that has none does not.

        Args:
            audit: of its record.
            class_id: class index for which it was made.
        """
        found = ((self.min_iou, agreement_of(audit)), (self.min_similarity, similarity_of(audit, class_id)))
        return all(least is None or (figure is not None and figure >= least) for least, figure in found)

    def part_of(self, sample_id: str) -> str:
        """Return "train" or "val", by a hash of the seed and the id alone: it stays the same when more samples come."""
        if self.split is None:
            return "train"
        digest = hashlib.blake2b(f"{self.split_seed}/{sample_id}".encode(), digest_size=8).digest()
        return "train" if int.from_bytes(digest, "big") < self.split * 2**64 else "val"


def class_split(value: int, name: str) -> str:
    """Return the split of a class with `by_class`, "013_ball"; its val part is "013_ball_val"."""
    return f"{value:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', name)}"


def agreement_of(audit: dict[str, Any]) -> float | None:
    """Return the mean over a label's components of SABR's IoU between component and SAM's mask, before SAM moved anything.

    None for a sample that SAM has not seen, or without a component.
    """
    return _mean(audit.get("sam", {}).get("agreement", ()))


def similarity_of(audit: dict[str, Any], class_id: int) -> float | None:
    """Return APF's largest cosine between a region of the target in the draft and the target's prototype, as the report shows it.

    None where the draft has no region of the target.
    """
    found = [r["similarity"] for r in audit.get("regions", ()) if r["class"] == class_id and r["similarity"] is not None]
    return max(found, default=None)


def read_audit(text: str | None) -> dict[str, Any]:
    """Return an audit column as a dict; empty if it holds none."""
    try:
        audit = json.loads(text or "{}")
    except ValueError:
        return {}
    return audit if isinstance(audit, dict) else {}


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else None
