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

from syn4seg.config.sections import Labeling, Refinement
from syn4seg.config.tree import Config
from syn4seg.data.canvas import Canvas
from syn4seg.labeling.components import Components, components
from syn4seg.labeling.filtering import Filtered, filter_regions
from syn4seg.labeling.refinement import hint_boxes, refine_boundary
from syn4seg.labeling.relabeling import Relabeled, relabel
from syn4seg.schema import UNLABELED
from syn4seg.stages.setup import canvas_of

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.models.sam import SamRefiner
    from syn4seg.segmenter.network import Classifier, Segmenter


@dataclass(frozen=True)
class EnhancedLabels:
    """Labels uint8 (H, W) of one image after each step, the account of what happened, and why it was rejected, if it was."""

    draft: np.ndarray
    kept: np.ndarray
    relabeled: np.ndarray
    audit: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class DraftLabel:
    """The segmenter's own pseudo-label, on whole grid cells: the image's rows and columns on the canvas, rounded up to the stride.

    Attributes:
        label: argmax uint8 (R, C).
        confidence: its probability float32 (R, C).
        features: float32 (D, r, c) on the image's part of the canvas.
        shape: rows and columns of the image itself.
    """

    label: np.ndarray
    confidence: np.ndarray
    features: np.ndarray
    shape: tuple[int, ...]


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

    def __init__(
        self,
        segmenter: Segmenter,
        classifier: Classifier,
        prototypes: np.ndarray,
        thresholds: dict[int, float],
        settings: Labeling,
        canvas: Canvas,
    ):
        self.segmenter, self.classifier = segmenter, classifier
        self.prototypes, self.thresholds, self.settings, self.canvas = prototypes, thresholds, settings, canvas
        self.novel = tuple(sorted(thresholds))

    @staticmethod
    def from_run(root: str, draw: int, tree: dict[str, Any], device: str) -> Enhancer:
        """The enhancer of one support draw of a run, from its files."""
        from syn4seg.stages.support import Registration
        from syn4seg.store.rundir import RunDir

        config = Config.model_validate(tree)
        run = RunDir(root)
        segmenter = load_on_device(run, device)
        made = Registration.load(run.draw(draw))
        classifier = made.classifier_on(segmenter.weight.device)
        return Enhancer(segmenter, classifier, made.prototypes, made.thresholds, config.labeling, canvas_of(config))

    def draft(self, features: Tensor, shape: tuple[int, ...]) -> DraftLabel:
        """The pseudo-label of an image of `shape` (H, W, ...) from its `dense_features`.

        Raises:
            FloatingPointError: a feature is nan or infinite; no label could be told from such an image.
        """
        import torch

        r, c = self._cells(features.shape[-1], shape)
        step = self.canvas.size / features.shape[-1]
        with torch.no_grad():
            odds = self.classifier.pixels(features[None], self.canvas.size)
            odds = odds[..., : round(r * step), : round(c * step)].softmax(1)
            confidence, winner = odds[0].max(0)
        draft = DraftLabel(
            winner.byte().cpu().numpy(), confidence.float().cpu().numpy(), self.grid_features(features, shape), shape[:2]
        )
        if not np.isfinite(draft.features).all():
            raise FloatingPointError("the segmenter's features of this image are not finite")
        return draft

    def grid_features(self, features: Tensor, shape: tuple[int, ...]) -> np.ndarray:
        """The part float32 (D, r, c) of `dense_features` that an image of `shape` (H, W, ...) covers."""
        r, c = self._cells(features.shape[-1], shape)
        return np.ascontiguousarray(features[:, :r, :c].cpu().numpy())

    def _cells(self, side: int, shape: tuple[int, ...]) -> tuple[int, int]:
        rows, columns = self.canvas.shape(shape)
        step = self.canvas.size / side
        return int(np.ceil(rows / step)), int(np.ceil(columns / step))

    def filter(self, draft: DraftLabel, target: int) -> Filtered:
        """APF on the grid of the draft, for an image that was made for class index `target`."""
        settings = self.settings
        scale = draft.label.size / (draft.shape[0] * draft.shape[1])
        return filter_regions(
            draft.label,
            draft.features,
            {target: self.prototypes[target]},
            target=target,
            novel=self.novel,
            lambda_keep=self.thresholds[target],
            min_region=round(settings.min_region * scale),
            confidence=draft.confidence,
            tau_base=settings.tau_base,
            tau_background=settings.tau_background,
        )

    def relabel(self, kept: np.ndarray, features: np.ndarray, target: int) -> Relabeled:
        """APR of what filtering kept, uint8 (R, C), with the features of the draft."""
        settings = self.settings
        return relabel(
            kept,
            features,
            target=target,
            prototypes=dict(enumerate(self.prototypes)),
            beta=settings.beta,
            tau=settings.tau,
            theta=settings.theta,
            lambda_keep=self.thresholds[target],
            min_target=settings.min_target,
            max_target=settings.max_target,
        )

    def to_image_shape(self, label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A label on the grid of a draft brought to an image's own shape (H, W, ...): uint8 (H, W)."""
        rows, columns = self.canvas.shape(shape)
        return _native(label[:rows, :columns], shape[:2])

    def __call__(self, image: np.ndarray, target: int) -> EnhancedLabels:
        """Draft, kept and relabeled labels of an RGB uint8 (H, W, 3) image that was made for class index `target`."""
        draft = self.draft(dense_features(self.segmenter, self.canvas, image), image.shape)
        filtered = self.filter(draft, target)
        done = self.relabel(filtered.kept, draft.features, target)
        audit = {
            "lambda_keep": self.thresholds[target],
            "regions": [
                {
                    "class": r.class_index,
                    "area": r.area,
                    "similarity": None if np.isnan(r.similarity) else round(r.similarity, 5),
                    "why": r.why,
                }
                for r in filtered.regions
            ],
            "pixels": {
                "free": pixel_share(filtered.kept == UNLABELED),
                "relabeled": done.changed / draft.label.size,
                "unlabeled": pixel_share(done.label == UNLABELED),
                "target": pixel_share(done.label == target),
            },
            "similarity_best": round(done.similarity_best, 5),
        }
        labels = [self.to_image_shape(label, image.shape) for label in (draft.label, filtered.kept, done.label)]
        return EnhancedLabels(labels[0], labels[1], labels[2], audit, done.reason)


def dense_features(segmenter: Segmenter, canvas: Canvas, image: np.ndarray) -> Tensor:
    """The segmenter's raw features float32 (D, h, w), on its device, of an RGB uint8 (H, W, 3) image on its canvas."""
    import torch

    with torch.no_grad():
        return segmenter.features(segmenter.prepare(canvas.image(image)))[0].float()


def pixel_share(mask: np.ndarray) -> float:
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

    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Refines N labels uint8 (H_i, W_i) of images uint8 (H_i, W_i, 3); those without a component never reach SAM's encoder.

        Returns:
            Per image the refined label and the account: SAM's agreement per component, accepted masks, changed pixels.

        Raises:
            FloatingPointError: SAM's predicted IoU of a mask is nan or infinite.
        """
        regions = [components(label) for label in labels]
        made = self.sam.masks(images, [self.hints(r) for r in regions])
        return [self.refine_label(label, r, *answer) for label, r, answer in zip(labels, regions, made, strict=True)]

    def hints(self, found: Components) -> np.ndarray:
        """SAM's box hints float32 (R, 4) for the components of a label."""
        return hint_boxes(found, self.settings.margin, found.map.shape)

    def refine_label(
        self, label: np.ndarray, found: Components, masks: np.ndarray, ious: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """SABR of one label with SAM's answer to its `hints`: masks bool (R, H, W) and predicted IoU float32 (R,).

        Raises:
            FloatingPointError: SAM's predicted IoU of a mask is nan or infinite.
        """
        if not np.isfinite(ious).all():
            raise FloatingPointError("SAM's answer to this image is not finite")
        done = refine_boundary(
            label, found, masks, ious, band_width=self.settings.band_width, min_agreement=self.settings.min_agreement
        )
        audit = {
            "sam": {
                "agreement": [round(float(a), 4) for a in done.agreement],
                "changed": done.changed / label.size,
                "accepted": int(done.accepted.sum()),
                "refused": int((~done.accepted).sum()),
            }
        }
        return done.label, audit
