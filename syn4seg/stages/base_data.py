"""Base images for the stages after the base stage, with labels from where `novel.base_data` says: from masks, from the base model's
own confident predictions on photos, or none at all.

Whatever reads base images in these stages asks here: the novel stage and the registration (`base_samples`), the joint stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.data.support import is_reserved
from syn4seg.data.unlabeled import UnlabeledPhotos
from syn4seg.errors import UserError
from syn4seg.schema import UNLABELED
from syn4seg.seeds import seeded
from syn4seg.stages.classifiers import base_classifier
from syn4seg.stages.setup import base_images, canvas_of

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.data.canvas import Canvas
    from syn4seg.segmenter.network import Classifier, Segmenter
    from syn4seg.segmenter.novel import TrainingSample

Features = Callable[[Sequence[str]], Sequence["Tensor"]]
"""Frozen features float16 (D, h, w) of real images by id, each computed alone (rounding depends on batch-mates)."""


class Photos(Protocol):
    """Where images are read by id: a data set, or a folder of unlabeled photos."""

    def image(self, sample_id: str) -> np.ndarray:
        """Return the RGB image uint8 (H, W, 3)."""
        ...


@dataclass(frozen=True)
class BaseSamples:
    """Base images as samples of the kind "replay": those that are replayed, and those that make base prototypes."""

    replayed: list[TrainingSample]
    prototype_images: list[TrainingSample]


def base_photos(config: Config, dataset: Dataset) -> Photos:
    """Return where the base images of a configuration are read: the folder `novel.base_photos`, or the data set.

    Raises:
        UserError: the folder is not there or empty.
    """
    folder = config.novel.base_photos
    if config.novel.base_data != "predicted" or folder is None:
        return dataset
    try:
        return UnlabeledPhotos(folder)
    except UserError as error:
        raise UserError(f"novel.base_photos={error}") from None


def shuffled_base_images(config: Config, dataset: Dataset, fold: Fold) -> list[str]:
    """Return the ids of the base images in the order in which they are drawn for replay and prototypes; none with `none`.

    With `predicted` no mask is looked at: without a folder they are the train list, whatever `base.images` says.
    """
    how = config.novel.base_data
    if how == "none":
        return []
    if how == "labelled":
        ids = base_images(config, dataset, fold)
    else:
        photos = base_photos(config, dataset)
        reserve = config.data.support_reserve
        ids = photos.ids if isinstance(photos, UnlabeledPhotos) else [s for s in dataset.train if not is_reserved(s, reserve)]
    return [ids[i] for i in seeded("replay", config.seed).permutation(len(ids))]


def base_samples(config: Config, segmenter: Segmenter, dataset: Dataset, fold: Fold, features: Features) -> BaseSamples:
    """Return base images with frozen features and base labels (novel objects background), drawn by a seed.

    The first `novel.replay_images` of the draw are replayed, the first `labeling.base_prototype_images` make prototypes.

    Args:
        segmenter: of the base stage, which labels them with `novel.base_data=predicted`.
        features: of the images of `base_photos`.
    """
    from syn4seg.segmenter.novel import TrainingSample

    replay, prototypes, _ = config.base_images_used
    ids = shuffled_base_images(config, dataset, fold)[: max(replay, prototypes)]
    table, canvas, photos = fold.to_base_index, canvas_of(config), base_photos(config, dataset)
    classifier, least = base_classifier(segmenter), config.novel.base_confidence

    def label(sample_id: str, feature: Tensor) -> np.ndarray:
        if config.novel.base_data == "labelled":
            return canvas.label(table[dataset.mask(sample_id)])
        return predicted_label(classifier, feature, canvas, photos.image(sample_id).shape, least)

    found = zip(ids, features(ids), strict=True)
    samples = {i: TrainingSample(i, feature, label(i, feature), "replay") for i, feature in found}
    return BaseSamples([samples[i] for i in sorted(ids[:replay])], [samples[i] for i in sorted(ids[:prototypes])])


def predicted_label(classifier: Classifier, features: Tensor, canvas: Canvas, shape: tuple[int, ...], least: float) -> np.ndarray:
    """Return what a base model is sure of, as a label uint8 (size, size) on the canvas; 255 elsewhere and beside the image.

    Args:
        classifier: rows (1+B, D), on the CPU.
        features: frozen ones of the image (D, h, w).
        shape: of the image, (H, W, ...).
        least: probability that a class needs.
    """
    import torch

    with torch.no_grad():
        confidence, winner = classifier.pixels(features.float()[None], canvas.size)[0].softmax(0).max(0)
    rows, columns = canvas.shape(shape)
    label = np.full((canvas.size, canvas.size), UNLABELED, np.uint8)
    sure = torch.where(confidence >= least, winner, UNLABELED).byte().numpy()
    label[:rows, :columns] = sure[:rows, :columns]
    return label
