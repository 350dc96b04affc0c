"""APE and SABR on whole images (method.md 3 and 4): draft, filtering, relabeling, SAM, and an account of every pixel.

Rounding inside a batched forward pass may depend on the batch's size, and a label must never depend on its batch-mates: each
image goes through the segmenter alone, and through SAM's encoder in passes that always hold the same number of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from syn4seg.config.sections import LabelingConfig, RefinementConfig
from syn4seg.config.tree import Config
from syn4seg.data.canvas import Canvas
from syn4seg.errors import DamagedError
from syn4seg.labeling.components import Components, find_components
from syn4seg.labeling.filtering import Filtered, filter_regions, most_similar_cells
from syn4seg.labeling.grabcut import WITHOUT_WEIGHTS, ComponentMasks, GrabCut
from syn4seg.labeling.refinement import component_masks, hint_boxes, hint_points, refine_boundary
from syn4seg.labeling.relabeling import Relabeled, relabel
from syn4seg.models.device import resolve_device
from syn4seg.models.refiners import HintedRefiner, Hints
from syn4seg.models.sam_folders import is_transformers_sam
from syn4seg.schema import UNLABELED
from syn4seg.stages.setup import canvas_of
from syn4seg.stages.similarity import feature_network, image_part
from syn4seg.store.rundir import RunDir

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.feature_networks import FeatureNetwork
    from syn4seg.segmenter.network import Classifier, Segmenter


@dataclass(frozen=True)
class EnhancedLabels:
    """Labels uint8 (H, W) of one image after each step of APE, the account of what happened, and the reason of a rejection ("")."""

    draft: np.ndarray
    kept: np.ndarray
    relabeled: np.ndarray
    audit: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class DraftLabel:
    """The segmenter's own pseudo-label on whole grid cells: the image's rows and columns on the canvas, rounded up to the stride.

    Attributes:
        label: argmax uint8 (R, C).
        confidence: its probability float32 (R, C).
        features: float32 (D, r, c) on the image's part of the canvas: the segmenter's, or those that are `compared`.
        shape: rows and columns of the image itself.
        decided: share of the pixels that what is known of the image decided: "calibrated" (its class was preferred to others) and
            "seeded" (it had none of its class). Empty if no key asks for that.
    """

    label: np.ndarray
    confidence: np.ndarray
    features: np.ndarray
    shape: tuple[int, ...]
    decided: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Enhancer:
    """The registered segmenter with APF and APR.

    Attributes:
        segmenter: frozen base network.
        classifier: base and novel rows, registered on the support set (round 0), or trained in the round before.
        prototypes: float32 (1+B+M, D), global prototype of each class index, background first.
        thresholds: lambda_keep by class index of the novel classes.
        settings: the config section.
        canvas: of the segmenter.
        measured: float32 (1+B+M, D'), what APF and APR compare with where they compare by another network's features.
        network: that network (`labeling.features`); None where its features are given (`compared`), or where it is the segmenter.
    """

    segmenter: Segmenter
    classifier: Classifier
    prototypes: np.ndarray
    thresholds: dict[int, float]
    settings: LabelingConfig
    canvas: Canvas
    measured: np.ndarray | None = None
    network: FeatureNetwork | None = None

    @staticmethod
    def from_run(run: RunDir, draw: int, config: Config, device: str) -> Enhancer:
        """Return the enhancer of one support draw of a run, from its files; for `device` see `resolve_device`.

        In a later round (`labeling.rounds`) classifier and prototypes are those of the round before (`stages.rounds`).
        """
        from syn4seg.stages.support import Registration

        segmenter, registration = load_on_device(run, device), Registration.load(run.draw(draw), config.labeling.rounds)
        classifier = registration.classifier_on(segmenter.weight.device)
        prototypes, thresholds = registration.prototypes, registration.thresholds
        network = feature_network(config, segmenter.weight.device)
        if (network is None) != (registration.measured is None):
            raise DamagedError(
                f"{run.draw(draw).root}: registered with other features than labeling.features={config.labeling.features}; delete "
                "the folder and run again"
            )
        own = segmenter, classifier, prototypes, thresholds, config.labeling, canvas_of(config)
        return Enhancer(*own, registration.measured, network)

    def draft(self, features: Tensor, shape: tuple[int, ...], target: int) -> DraftLabel:
        """Return the pseudo-label of an image of `shape` (H, W, ...) that was made for class index `target`.

        Args:
            features: its `dense_features`.

        Raises:
            FloatingPointError: a feature is nan or infinite; such an image cannot be labeled.
        """
        import torch

        settings, side = self.settings, features.shape[-1]
        rows, columns = (self._pixels(cells, side) for cells in self._grid(side, shape))
        grid = self.grid_features(features, shape)
        if not np.isfinite(grid).all():
            raise FloatingPointError("the segmenter's features of this image are not finite")
        with torch.no_grad():
            logits = self.classifier.pixels(features[None], self.canvas.size)[..., :rows, :columns]
            plain = logits[0].argmax(0)
            if settings.mask_others:
                logits[:, [k for k in self.thresholds if k != target]] = -torch.inf
            logits[:, target] += settings.target_logit
            confidence, winner = logits.softmax(1)[0].max(0)
        label, decided = winner.byte().cpu().numpy(), {}
        if settings.mask_others or settings.target_logit:
            decided["calibrated"] = pixel_share((winner != plain).cpu().numpy())
        if settings.seed_share:
            decided["seeded"] = 0.0
            if not (label == target).any():
                cells = most_similar_cells(grid, self.prototypes[target], settings.seed_share).astype(np.uint8)
                seed = cv2.resize(cells, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT).view(bool)
                label[seed], decided["seeded"] = target, pixel_share(seed)
        return DraftLabel(label, confidence.float().cpu().numpy(), grid, shape[:2], decided)

    def look(self, image: np.ndarray) -> np.ndarray | None:
        """Return the other network's features float32 (D', r, c) of an RGB image uint8 (H, W, 3); None: the segmenter's count."""
        return None if self.network is None else self.network(image)

    def compared(self, draft: DraftLabel, features: np.ndarray | None) -> DraftLabel:
        """Return a draft as APF and APR compare it: by features that cover exactly its image, see `look`; as it is where None.

        Raises:
            FloatingPointError: a feature is nan or infinite.
        """
        if features is None:
            return draft
        if not np.isfinite(features).all():
            raise FloatingPointError(f"the features of this image by labeling.features={self.settings.features} are not finite")
        label, confidence = (image_part(self.canvas, values, draft.shape) for values in (draft.label, draft.confidence))
        return replace(draft, label=label, confidence=confidence, features=features)

    @property
    def _global(self) -> np.ndarray:
        """The prototypes that APF and APR compare with."""
        return self.prototypes if self.measured is None else self.measured

    @property
    def _corners(self) -> bool:
        """Whether the corner cells of the compared features lie on the corner pixels."""
        return self.classifier.align_corners and self.measured is None

    def grid_features(self, features: Tensor, shape: tuple[int, ...]) -> np.ndarray:
        """Return the part float32 (D, r, c) of `dense_features` that an image of `shape` (H, W, ...) covers."""
        rows, columns = self._grid(features.shape[-1], shape)
        return np.ascontiguousarray(features[:, :rows, :columns].cpu().numpy())

    def _grid(self, side: int, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the rows and columns of grid cells that an image covers, on a square grid of `side` cells."""
        if self.classifier.align_corners:
            step = (self.canvas.size - 1) / max(1, side - 1)
            rows, columns = (min(side, int(np.ceil((length - 1) / step)) + 1) for length in self.canvas.shape(shape))
        else:
            rows, columns = (int(np.ceil(length / (self.canvas.size / side))) for length in self.canvas.shape(shape))
        return rows, columns

    def _pixels(self, cells: int, side: int) -> int:
        """Return how many pixels of the canvas the first `cells` of `side` grid cells cover."""
        if self.classifier.align_corners:
            return round((cells - 1) * (self.canvas.size - 1) / max(1, side - 1)) + 1
        return round(cells * self.canvas.size / side)

    def filter(self, draft: DraftLabel, target: int) -> Filtered:
        """Apply APF on the grid of the draft of an image that was made for class index `target` (method.md 3.1)."""
        settings = self.settings
        scale = draft.label.size / (draft.shape[0] * draft.shape[1])
        return filter_regions(
            draft.label,
            draft.features,
            {k: self._global[k] for k in (target, *self._rivals(target))},
            target=target,
            novel=tuple(sorted(self.thresholds)),
            lambda_keep=self.thresholds[target],
            min_region=round(settings.min_region * scale),
            confidence=draft.confidence,
            tau_base=settings.tau_base,
            tau_background=settings.tau_background,
            rivals=self._rivals(target),
            rival_margin=settings.tau * math.log(settings.target_odds),
            align_corners=self._corners,
        )

    def _rivals(self, target: int) -> list[int]:
        """Return the novel classes that compete with the target of an image."""
        return [k for k in self.thresholds if k != target] if self.settings.rivals else []

    def relabel(self, kept: np.ndarray, features: np.ndarray, target: int) -> Relabeled:
        """Apply APR to the label uint8 (R, C) that filtering kept, with the features of the draft (method.md 3.2)."""
        settings = self.settings
        return relabel(
            kept,
            features,
            target=target,
            prototypes=dict(enumerate(self._global)),
            beta=settings.beta,
            tau=settings.tau,
            theta=settings.theta,
            lambda_keep=self.thresholds[target],
            rivals=self._rivals(target),
            rival_margin=settings.tau * math.log(settings.target_odds),
            min_target=settings.min_target,
            max_target=settings.max_target,
            align_corners=self._corners,
        )

    def to_image_shape(self, label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return a label on the grid of a draft at an image's own shape (H, W, ...): uint8 (H, W)."""
        rows, columns = self.canvas.shape(shape)
        label = label[:rows, :columns]
        if label.shape == shape[:2]:
            return np.ascontiguousarray(label)
        return cv2.resize(label, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)

    def __call__(self, image: np.ndarray, target: int) -> EnhancedLabels:
        """Return the draft, kept and relabeled labels of an RGB uint8 (H, W, 3) image that was made for class index `target`."""
        draft = self.draft(dense_features(self.segmenter, self.canvas, image), image.shape, target)
        draft = self.compared(draft, self.look(image))
        filtered = self.filter(draft, target)
        relabeled = self.relabel(filtered.kept, draft.features, target)
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
            "pixels": draft.decided
            | {
                "free": pixel_share(filtered.kept == UNLABELED),
                "relabeled": relabeled.changed / draft.label.size,
                "unlabeled": pixel_share(relabeled.label == UNLABELED),
                "target": pixel_share(relabeled.label == target),
            },
            "similarity_best": round(relabeled.similarity_best, 5),
        }
        labels = [self.to_image_shape(label, image.shape) for label in (draft.label, filtered.kept, relabeled.label)]
        return EnhancedLabels(*labels, audit=audit, reason=relabeled.reason)


def dense_features(segmenter: Segmenter, canvas: Canvas, image: np.ndarray) -> Tensor:
    """Return the segmenter's raw features float32 (D, h, w), on its device, of an RGB uint8 (H, W, 3) image on its canvas."""
    import torch

    with torch.no_grad():
        return segmenter.features(segmenter.prepare(canvas.image(image)))[0].float()


def pixel_share(mask: np.ndarray) -> float:
    """Return the share of true pixels, rounded to 5 digits."""
    return round(float(np.count_nonzero(mask)) / mask.size, 5)


def load_on_device(run: RunDir, device: str) -> Segmenter:
    """Return the frozen base segmenter of a run, on the device that `resolve_device` takes `device` for."""
    from syn4seg.segmenter.network import load_segmenter

    return load_segmenter(run.base)[0].to(resolve_device(device)).eval()


@dataclass(frozen=True, eq=False)
class BoundaryRefiner:
    """SAM with hints, or what stands in its place, and SABR's arithmetic (method.md 4)."""

    sam: HintedRefiner | ComponentMasks
    settings: RefinementConfig

    @staticmethod
    def from_settings(settings: RefinementConfig, device: str) -> BoundaryRefiner:
        """Return the refiner that a config section describes; for `device` see `resolve_device`."""
        if settings.model in WITHOUT_WEIGHTS:
            return BoundaryRefiner(GrabCut(settings.band_width) if settings.model == "grabcut" else ComponentMasks(), settings)
        device = resolve_device(device)
        if is_transformers_sam(settings.model):
            from syn4seg.models.sam_transformers import TransformersRefiner, load_transformers_sam

            sam = TransformersRefiner(load_transformers_sam(settings.model), device, settings.images_per_pass)
            return BoundaryRefiner(sam, settings)
        from syn4seg.models.sam import SamRefiner, load_sam

        return BoundaryRefiner(SamRefiner(load_sam(settings.model), device, settings.images_per_pass), settings)

    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Refine N labels uint8 (H_i, W_i) of images uint8 (H_i, W_i, 3); those without a component never reach SAM's encoder.

        Returns:
            Per image the refined label and the account: SAM's agreement per component, accepted masks, changed pixels.

        Raises:
            FloatingPointError: SAM's predicted IoU of a mask is nan or infinite.
        """
        regions = [find_components(label) for label in labels]
        if isinstance(self.sam, ComponentMasks):
            answers = [self.sam.masks(image, r) for image, r in zip(images, regions, strict=True)]
        else:
            answers = self.sam.masks(images, [self.hints(r) for r in regions])
        return [self.refine_label(label, r, *answer) for label, r, answer in zip(labels, regions, answers, strict=True)]

    def hints(self, regions: Components) -> Hints:
        """Return what SAM is told of the components of a label (`refinement.hints`)."""
        told = self.settings.hints
        return Hints(
            hint_boxes(regions, self.settings.margin, regions.map.shape) if "box" in told else None,
            hint_points(regions) if "point" in told else None,
            component_masks(regions) if "mask" in told else None,
        )

    def refine_label(
        self, label: np.ndarray, regions: Components, masks: np.ndarray, ious: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Apply SABR to one label with SAM's answer to its `hints`: masks bool (R, H, W) and predicted IoU float32 (R,).

        Raises:
            FloatingPointError: SAM's predicted IoU of a mask is nan or infinite.
        """
        if not np.isfinite(ious).all():
            raise FloatingPointError("SAM's answer to this image is not finite")
        settings = self.settings
        refined = refine_boundary(label, regions, masks, ious, band_width=settings.band_width, min_agreement=settings.min_agreement)
        sam = {
            "agreement": [round(float(a), 4) for a in refined.agreement],
            "changed": refined.changed / label.size,
            "accepted": int(refined.accepted.sum()),
            "refused": int((~refined.accepted).sum()),
        }
        return refined.label, {"sam": sam}
