"""Similarity by another network than the segmenter (`labeling.features`, method.md 3): its prototypes of the same pixels.

Drafts, classifiers and training stay the segmenter's; only what APF and APR compare is another feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.canvas import Canvas
from syn4seg.data.datasets import Fold
from syn4seg.errors import UserError
from syn4seg.labeling.prototypes import normalize, pool, region_map
from syn4seg.models.device import resolve_device
from syn4seg.schema import BACKGROUND, UNLABELED
from syn4seg.stages.setup import canvas_of

if TYPE_CHECKING:
    import torch

    from syn4seg.segmenter.feature_networks import FeatureNetwork
    from syn4seg.segmenter.network import Segmenter
    from syn4seg.segmenter.novel import TrainingSample


@dataclass(frozen=True, eq=False)
class FeatureView:
    """What the other network sees of an image: features float32 (D, r, c) that cover it, and the image's own shape (H, W, ...)."""

    features: np.ndarray
    shape: tuple[int, ...]

    @staticmethod
    def of(network: FeatureNetwork, image: np.ndarray) -> FeatureView:
        """Return the view of an RGB image uint8 (H, W, 3)."""
        return FeatureView(network(image), image.shape)


def feature_network(config: Config, device: str | torch.device) -> FeatureNetwork | None:
    """Return the network of `labeling.features` on a device (see `resolve_device`), or None where it is the segmenter.

    Raises:
        UserError: there is no such network, or its weights do not fit.
    """
    labeling = config.labeling
    if not labeling.by_other_features:
        return None
    from syn4seg.segmenter.feature_networks import FeatureNetwork

    place = resolve_device(device) if isinstance(device, str) else device
    return FeatureNetwork.load(labeling.feature_backbone, labeling.feature_weights, feature_side(config), place)


def feature_side(config: Config) -> int:
    """Return the pixels to which the other network's images are brought: `labeling.feature_size`, else the segmenter's canvas."""
    return config.labeling.feature_size or config.segmenter.size


def check_features(config: Config) -> None:
    """Check what can be checked of `labeling.features` before anything loads.

    Raises:
        UserError: there is no such network, its weights do not fit, or a key says something of the segmenter's own features.
    """
    labeling = config.labeling
    if not labeling.by_other_features:
        for key in ("feature_weights", "feature_size"):
            if (value := getattr(labeling, key)) is not None:
                raise UserError(
                    f"labeling.{key}={value}: labeling.features=segmenter compares by the segmenter's own features; leave it "
                    "empty, or name another network in labeling.features"
                )
        return
    from syn4seg.segmenter.feature_networks import check_network

    weights = labeling.feature_weights
    try:
        check_network(labeling.feature_backbone, weights, feature_side(config))
    except UserError as error:
        raise UserError(f"labeling.features={labeling.features}, labeling.feature_weights={weights}: {error}") from None


def image_part(canvas: Canvas, label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the part (R, C) of an array (H, W) on the canvas that an image of `shape` (rows, columns, ...) fills."""
    rows, columns = canvas.shape(shape)
    return np.ascontiguousarray(label[:rows, :columns])


def viewed(
    canvas: Canvas, samples: Iterable[TrainingSample], views: Iterable[FeatureView]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the features (D, r, c) of samples, and the parts (R, C) of their labels that these cover."""
    pairs = zip(samples, views, strict=True)
    both = [(view.features, image_part(canvas, sample.label, view.shape)) for sample, view in pairs]
    return [features for features, _ in both], [label for _, label in both]


def base_predictions(config: Config, segmenter: Segmenter, samples: Iterable[TrainingSample]) -> list[np.ndarray]:
    """Return what the base model calls every pixel of some samples: uint8 (H, W) on the canvas."""
    import torch

    with torch.no_grad():
        logits = (segmenter.classifier.pixels(s.features.to(segmenter.weight)[None], config.segmenter.size)[0] for s in samples)
        return [one.argmax(0).byte().cpu().numpy() for one in logits]


def measured_prototypes(
    config: Config,
    segmenter: Segmenter,
    fold: Fold,
    support: Sequence[TrainingSample],
    support_views: Sequence[FeatureView],
    images: Iterable[TrainingSample],
    image_views: Iterable[FeatureView],
) -> np.ndarray:
    """Return unit prototypes float32 (1+B+M, D) in the other network's features, from the pixels that make the segmenter's own.

    Novel classes are from the support set, base classes from base images; the background from the first of these that has any:
    support pixels on which the base model agrees, all support pixels (only where base classes have masks), base images. A class
    without a pixel has none (0), as every base class with `novel.base_data=none`: in an image its local prototype stands alone.

    Args:
        images: base images with base labels; with their views they are looked at one at a time.
    """
    canvas, classes = canvas_of(config), 1 + len(fold.base)
    features, labels = viewed(canvas, support, support_views)
    predictions = zip(base_predictions(config, segmenter, support), support_views, strict=True)
    predicted = [image_part(canvas, prediction, view.shape) for prediction, view in predictions]
    agreed = [np.where(base == BACKGROUND, label, UNLABELED) for label, base in zip(labels, predicted, strict=True)]
    background = _sums(zip(features, agreed, strict=True), [BACKGROUND])
    if not background.any() and config.novel.base_data == "labelled":
        background = _sums(zip(features, labels, strict=True), [BACKGROUND])
    pairs = ((view.features, image_part(canvas, s.label, view.shape)) for s, view in zip(images, image_views, strict=True))
    base = np.zeros((classes, features[0].shape[0]), np.float32) + _sums(pairs, range(classes))
    if background.any():
        base[BACKGROUND] = background[0]
    return normalize(np.concatenate([base, _sums(zip(features, labels, strict=True), fold.novel_indices)]))


def _sums(pairs: Iterable[tuple[np.ndarray, np.ndarray]], classes: Sequence[int]) -> np.ndarray:
    """Return the sum of the features over the pixels of each class, float32 (C, D), of pairs of features and label; () of none."""
    sums = [pool(features, region_map(label, classes), len(classes)) for features, label in pairs]
    return np.asarray(np.sum(sums, axis=0, dtype=np.float32))
