"""Labels of the control rows: what the method would be worth without prototypes, with wrong ones, with the masks that another
network finds for the class's name, and with true masks.

A gain that a control has too is not the method's. Controls train like every row, on the same images; they are computed from what
is stored of a sample and are never written.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Fold
from syn4seg.schema import UNLABELED
from syn4seg.stages.labels import Enhancer
from syn4seg.stages.named import NamedLabels
from syn4seg.stages.rows import IMAGE_LABEL, NAMED, ROWS, SWAPPED, TRUTH, rows_of
from syn4seg.stages.truth import truth_source
from syn4seg.store.rundir import RunDir

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.store.samples import StoredSample


def image_label(draft: np.ndarray, target: int, novel: range) -> np.ndarray:
    """Return control A: every novel pixel of a draft uint8 (H, W) becomes the class for which the image was made."""
    return np.where((draft >= novel.start) & (draft < novel.stop), np.uint8(target), draft)


class ControlLabels:
    """Computes the labels of the control rows of one support draw; with no control asked for it computes nothing.

    Args:
        columns: which label columns; None: those of the configuration's rows.
        named: where the labels by name come from; None: they are left out.
    """

    def __init__(
        self, config: Config, run: RunDir, fold: Fold, draw: int, columns: Set[str] | None = None, named: NamedLabels | None = None
    ):
        asked = {ROWS[row][1] for row in rows_of(config)} if columns is None else columns
        self.columns = asked & {IMAGE_LABEL, SWAPPED, TRUTH, *([NAMED] if named else [])}
        self.novel, self.named = fold.novel_indices, named
        self.truth = truth_source(config) if TRUTH in self.columns else None
        self.enhancer = Enhancer.from_run(run, draw, config, config.placement.device) if SWAPPED in self.columns else None

    def of(self, sample: StoredSample, image: np.ndarray, features: Tensor | None) -> dict[str, np.ndarray]:
        """Return the labels uint8 (H, W) of a sample by label column, as large as the image.

        Args:
            features: the frozen features (D, h, w) of the image, for control B; None leaves it out.
        """
        labels, target = {}, int(sample.record["class_id"])
        if IMAGE_LABEL in self.columns:
            labels[IMAGE_LABEL] = image_label(sample.labels["draft"], target, self.novel)
        if NAMED in self.columns and self.named is not None:
            labels[NAMED] = self.named.of(sample.record["sample_id"], image, target)
        if TRUTH in self.columns and self.truth is not None:
            truth = self.truth(sample.record, image.shape[0])
            labels[TRUTH] = np.full(image.shape[:2], UNLABELED, np.uint8) if truth is None else truth
        if SWAPPED in self.columns and features is not None and not sample.record["reason"]:
            labels[SWAPPED] = self._swapped(image, features, target)
        return labels

    def _swapped(self, image: np.ndarray, features: Tensor, target: int) -> np.ndarray:
        """Return control B: APF and APR where every novel class has the prototype of the next one."""
        assert self.enhancer is not None
        own, measured = self.enhancer.prototypes, self.enhancer.measured
        wrong = replace(self.enhancer, prototypes=self._next(own), measured=None if measured is None else self._next(measured))
        draft = wrong.draft(features.to(wrong.classifier.weight), image.shape, target)
        draft = wrong.compared(draft, wrong.look(image))
        relabeled = wrong.relabel(wrong.filter(draft, target).kept, draft.features, target)
        return wrong.to_image_shape(relabeled.label, image.shape)

    def _next(self, prototypes: np.ndarray) -> np.ndarray:
        """Return prototypes (1+B+M, D) in which every novel class has that of the next one."""
        swapped, novel = prototypes.copy(), list(self.novel)
        swapped[novel] = np.roll(swapped[novel], -1, axis=0)
        return swapped
