"""APE and SABR on whole images: the segmenter's draft, filtering, relabeling, and SAM, with an account of every pixel.

Rounding inside a batched forward pass may depend on the batch's size, and a label must never depend on its batch-mates: each
image goes through the segmenter alone, and through SAM's encoder in passes that always hold the same number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from syn4seg.config import Config
from syn4seg.data.canvas import Canvas
from syn4seg.labeling.components import Components, components
from syn4seg.labeling.filtering import filter_regions
from syn4seg.labeling.refinement import hint_boxes, refine_boundary
from syn4seg.labeling.relabeling import relabel
from syn4seg.schema import UNLABELED
from syn4seg.sections import Labeling, Refinement

if TYPE_CHECKING:
    from syn4seg.models.sam import SamRefiner
    from syn4seg.segmenter.network import Classifier, Segmenter


@dataclass(frozen=True)
class Enhanced:
    """Labels uint8 (H, W) of one image after each step, the account of what happened, and why it was rejected, if it was."""

    draft: np.ndarray
    kept: np.ndarray
    relabeled: np.ndarray
    audit: dict[str, Any]
    reason: str


class Enhancer:
    """The registered segmenter with APF and APR.

    Args:
        segmenter: frozen base network.
        classifier: base and novel rows, registered on the support set (round 0).
        prototypes: float32 (1+B+M, D), global prototype of each class index, background first.
        thresholds: lambda_keep by class index of the novel classes.
        settings: the config section.
        canvas: of the segmenter.
    """

    def __init__(self, segmenter: Segmenter, classifier: Classifier, prototypes: np.ndarray, thresholds: dict[int, float],
                 settings: Labeling, canvas: Canvas):  # fmt: skip
        self.segmenter, self.classifier = segmenter, classifier
        self.prototypes, self.thresholds, self.settings, self.canvas = prototypes, thresholds, settings, canvas
        self.novel = tuple(sorted(thresholds))

    @staticmethod
    def from_run(root: str, draw: int, tree: dict[str, Any], device: str) -> Enhancer:
        """The enhancer of one support draw of a run, from its files."""
        from syn4seg.rundir import RunDir
        from syn4seg.stages.support import Registration

        config = Config.model_validate(tree)
        run = RunDir(root)
        segmenter = load_on_device(run, device)
        made = Registration.load(run.draw(draw))
        classifier = made.classifier_on(segmenter.weight.device)
        return Enhancer(
            segmenter, classifier, made.prototypes, made.thresholds, config.labeling, config.segmenter.on_canvas()
        )

    def draft(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Argmax uint8 (R, C), its probability float32 (R, C), and features float32 (D, r, c) on the image's part of the canvas.

        R, C are whole grid cells: the image's rows and columns on the canvas, rounded up to the stride.

        Raises:
            FloatingPointError: a feature is nan or infinite; no label could be told from such an image.
        """
        import torch

        rows, columns = self.canvas.shape(image.shape)
        with torch.no_grad():
            features = self.segmenter.features(self.segmenter.prepare(self.canvas.image(image)))
            step = self.canvas.size / features.shape[-1]
            r, c = int(np.ceil(rows / step)), int(np.ceil(columns / step))
            odds = self.classifier.pixels(features, self.canvas.size)
            odds = odds[..., : round(r * step), : round(c * step)].softmax(1)
            confidence, winner = odds[0].max(0)
        cells = features[0, :, :r, :c].float().cpu().numpy()
        if not np.isfinite(cells).all():
            raise FloatingPointError("the segmenter's features of this image are not finite")
        return winner.byte().cpu().numpy(), confidence.float().cpu().numpy(), np.ascontiguousarray(cells)

    def __call__(self, image: np.ndarray, target: int) -> Enhanced:
        """Draft, kept and relabeled labels of an RGB uint8 (H, W, 3) image that was made for class index `target`."""
        settings, limit = self.settings, self.thresholds[target]
        draft, confidence, features = self.draft(image)
        scale = draft.size / (image.shape[0] * image.shape[1])
        filtered = filter_regions(
            draft, features, {target: self.prototypes[target]}, target=target, novel=self.novel, lambda_keep=limit,
            min_region=round(settings.min_region * scale), confidence=confidence, tau_base=settings.tau_base,
            tau_background=settings.tau_background,
        )  # fmt: skip
        done = relabel(
            filtered.kept, features, target=target, prototypes=dict(enumerate(self.prototypes)), beta=settings.beta,
            tau=settings.tau, theta=settings.theta, lambda_keep=limit, min_target=settings.min_target,
            max_target=settings.max_target,
        )  # fmt: skip
        audit = {
            "lambda_keep": limit,
            "regions": [
                {"class": r.class_index, "area": r.area, "similarity": None if np.isnan(r.similarity) else round(r.similarity, 5),
                 "why": r.why} for r in filtered.regions
            ],
            "pixels": {"free": share(filtered.kept == UNLABELED), "relabeled": done.changed / draft.size,
                       "unlabeled": share(done.label == UNLABELED), "target": share(done.label == target)},
            "similarity_best": round(done.similarity_best, 5),
        }  # fmt: skip
        rows, columns = self.canvas.shape(image.shape)
        labels = [_native(label[:rows, :columns], image.shape[:2]) for label in (draft, filtered.kept, done.label)]
        return Enhanced(labels[0], labels[1], labels[2], audit, done.reason)


def share(mask: np.ndarray) -> float:
    """Share of true pixels, rounded to 5 digits."""
    return round(float(np.count_nonzero(mask)) / mask.size, 5)


def _native(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if label.shape == shape:
        return np.ascontiguousarray(label)
    return cv2.resize(label, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)


def load_on_device(run: Any, device: str) -> Segmenter:
    """The frozen base segmenter of a run, on `device` (`auto`: a GPU if this process has one)."""
    import torch

    from syn4seg.segmenter.network import load_segmenter

    segmenter, _ = load_segmenter(run.base)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return segmenter.to(where).eval()


class BoundaryRefiner:
    """SAM with box hints, and SABR's arithmetic."""

    def __init__(self, sam: SamRefiner, settings: Refinement):
        self.sam, self.settings = sam, settings

    @staticmethod
    def from_config(tree: dict[str, Any], device: str) -> BoundaryRefiner:
        """The refiner of a config tree."""
        import torch

        from syn4seg.models.sam import SamRefiner, load_sam

        settings = Config.model_validate(tree).refinement
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        return BoundaryRefiner(SamRefiner(load_sam(settings.model), where, settings.images_per_pass), settings)

    def __call__(
        self, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Refines N labels uint8 (H_i, W_i) of images uint8 (H_i, W_i, 3); those without a component never reach SAM's encoder.

        Returns:
            Per image the refined label and the account: SAM's agreement per component, accepted masks, changed pixels.

        Raises:
            FloatingPointError: SAM's predicted IoU of a mask is nan or infinite.
        """
        regions = [components(label) for label in labels]
        made = self.sam.masks(images, [hint_boxes(r, self.settings.margin, r.map.shape) for r in regions])
        if not all(np.isfinite(ious).all() for _, ious in made):
            raise FloatingPointError("SAM's answer to this image is not finite")
        return [self._redrawn(label, r, *answer) for label, r, answer in zip(labels, regions, made, strict=True)]

    def _redrawn(
        self, label: np.ndarray, found: Components, masks: np.ndarray, ious: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        done = refine_boundary(label, found, masks, ious, band_width=self.settings.band_width,
                               min_agreement=self.settings.min_agreement)  # fmt: skip
        audit = {"sam": {"agreement": [round(float(a), 4) for a in done.agreement], "changed": done.changed / label.size,
                         "accepted": int(done.accepted.sum()), "refused": int((~done.accepted).sum())}}  # fmt: skip
        return done.label, audit
