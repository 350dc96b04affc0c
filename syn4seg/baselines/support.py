"""What every baseline starts from: the support set on the feature grid; and what it says about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from syn4seg.errors import UserError
from syn4seg.labeling.prototypes import occupancy
from syn4seg.schema import UNLABELED
from syn4seg.segmenter.network import Classifier
from syn4seg.segmenter.novel import TrainingSample

FEATURES = "features are the frozen ones of our base stage, kept as float16"
CORNERS = "scores go to pixels with the base classifier's corner convention; the public code always aligns corners"
CELLS = (
    "a novel class that nearest-neighbour downsampling loses on all its support labels keeps the fullest cell of each; the public "
    "code would learn nothing of it"
)
"""Deviations that several baselines share."""


class BaselineFacts(TypedDict):
    """What a baseline's module says about it.

    Attributes:
        source: the method followed.
        settings: its numbers.
        deviations: where it differs from its source, a line each.
    """

    source: str
    settings: str
    deviations: list[str]


@dataclass(frozen=True)
class BaselineTask:
    """What a baseline learns from; `base`, `shots`, `seed` and `prototypes` as in `syn4seg.baselines.build`."""

    base: Classifier
    cells: SupportCells
    shots: int
    seed: int
    prototypes: Tensor | None = None


@dataclass(frozen=True)
class SupportCells:
    """The support set on the feature grid, images sorted by id.

    Attributes:
        features: (N, D, h, w), device and dtype of the base classifier.
        labels: class indices int64 (N, h, w), 255 ignored; nearest neighbour, as DIaM, BCM and CAPL do.
        base_rows: 1+B.
        novel: the M novel class indices.
    """

    features: Tensor
    labels: Tensor
    base_rows: int
    novel: tuple[int, ...]

    @staticmethod
    def of(support: Sequence[TrainingSample], like: Tensor, base_classes: int, novel_classes: int) -> SupportCells:
        """Return the samples' features and labels, on the device and with the dtype of `like`.

        Raises:
            UserError: no sample, labels beyond B+M, or a novel class on no label.
        """
        ordered = sorted(support, key=lambda s: s.sample_id)
        novel = tuple(range(1 + base_classes, 1 + base_classes + novel_classes))
        if not ordered:
            raise UserError("a baseline got no support sample; expected data.shots images of every novel class")
        for s in ordered:
            beyond = s.label[(s.label > novel[-1]) & (s.label != UNLABELED)]
            if beyond.size:
                raise UserError(
                    f"the label of support sample {s.sample_id!r} has class index {beyond.max()}; expected "
                    f"0..{novel[-1]} or {UNLABELED}: map dataset ids to class indices first"
                )
        grid = (ordered[0].features.shape[1], ordered[0].features.shape[2])
        labels = torch.stack([nearest(torch.from_numpy(s.label), grid) for s in ordered])
        for k in novel:
            if not (labels == k).any():  # too small for the grid: its fullest cells
                for row, s in zip(labels, ordered, strict=True):
                    if (s.label == k).any():
                        row.view(-1)[occupancy((s.label == k)[None], grid).argmax()] = k
        missing = [k for k in novel if not (labels == k).any()]
        if missing:
            raise UserError(
                f"novel class index {missing[0]} covers no cell of the {len(ordered)} support samples; give every novel class a "
                "support image that shows it"
            )
        features = torch.stack([s.features for s in ordered]).to(like)
        return SupportCells(features, labels.to(like.device), 1 + base_classes, novel)

    def means(self) -> Tensor:
        """Return the mean feature of every novel class over all its cells, images and shots together: (M, D), raw."""
        flat = self.features.transpose(0, 1).flatten(1)
        return torch.stack([flat[:, (self.labels == k).flatten()].mean(1) for k in self.novel])

    def targets(self) -> Tensor:
        """Return labels in which base objects are background (DIaM's protocol): int64 (N, h, w)."""
        return self.labels.masked_fill(self.labels < self.base_rows, 0)


def nearest(label: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return a label uint8 (H, W) on a grid by nearest neighbour (the pixel at floor(i H / h)): int64 (h, w)."""
    return F.interpolate(label[None, None].float(), grid, mode="nearest")[0, 0].long()
