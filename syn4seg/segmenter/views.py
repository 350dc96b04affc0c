"""What training on images learns from: random views of them, in batches, made here or ahead by readers.

Base stage and joint stage name every batch by the number of its step and every view by the names in it, so whoever makes them, and
how far ahead, changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np

from syn4seg.schema import UNLABELED

if TYPE_CHECKING:
    from syn4seg.segmenter.novel import Kind


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image.

    Attributes:
        crop: side of the square training crop in pixels.
        scale: range of the random scale.
        native: scales multiply the image's own size and are uniform (BAM, DIaM, BCM); otherwise the image's long side is brought to
            the crop first, and scales are uniform in their logarithm.
        rotate: largest rotation in degrees, applied half of the time.
        blur: chance of a 5x5 Gaussian blur.
        flip: chance of a mirror image.
        colour: brightness, contrast and saturation each change by a factor of up to 1 + this, or its inverse.
    """

    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    native: bool = False
    rotate: float = 10.0
    blur: float = 0.5
    flip: float = 0.5
    colour: float = 0.0


@dataclass(frozen=True)
class ViewBatch:
    """One process's share of the images of a step.

    Attributes:
        images: uint8 (N, crop, crop, 3).
        labels: class indices uint8 (N, crop, crop), 255 ignored.
        kinds: of each image; in the base stage all of them are "replay".
    """

    images: np.ndarray
    labels: np.ndarray
    kinds: list[Kind]


class StepViews(Protocol):
    """The views of every step; small and picklable, so that a reader may be a process of its own."""

    def __getitem__(self, step: int) -> ViewBatch:
        """Return this process's share of a step."""
        ...

    def count(self, step: int) -> int:
        """Return the number of images in this process's share of a step."""
        ...


ViewStream = Callable[[range], Iterable[ViewBatch]]
"""Yields this process's share of every step in a range, in order."""


def read_here(views: StepViews) -> ViewStream:
    """Return what makes every batch in this process, when it is asked for."""
    return lambda steps: (views[step] for step in steps)


def augment(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, augmentation: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """Return one random view: uint8 (crop, crop, 3) and uint8 (crop, crop), 255 where the view leaves the image.

    Scale, rotation, mirror and crop are a single warp (bilinear for the image, nearest for the label).
    """
    size, (rows, columns) = augmentation.crop, label.shape
    low, high = augmentation.scale
    if augmentation.native:
        scale = rng.uniform(low, high)
    else:
        scale = math.exp(rng.uniform(math.log(low), math.log(high))) * size / max(rows, columns)
    angle = math.radians(rng.uniform(-augmentation.rotate, augmentation.rotate)) if rng.random() < 0.5 else 0.0
    mirror = -1.0 if rng.random() < augmentation.flip else 1.0
    turn = scale * np.array([[math.cos(angle) * mirror, -math.sin(angle)], [math.sin(angle) * mirror, math.cos(angle)]])
    spare = np.abs(np.array([columns, rows]) * scale - size) / 2
    middle = np.array([(columns - 1) / 2, (rows - 1) / 2])
    shift = (size - 1) / 2 + rng.uniform(-1, 1, 2) * spare - turn @ middle
    warp = np.concatenate([turn, shift[:, None]], 1)
    view = cv2.warpAffine(image, warp, (size, size), flags=cv2.INTER_LINEAR, borderValue=(124, 116, 104))
    target = cv2.warpAffine(label, warp, (size, size), flags=cv2.INTER_NEAREST, borderValue=UNLABELED)
    if rng.random() < augmentation.blur:
        view = cv2.GaussianBlur(view, (5, 5), 0)
    if augmentation.colour:
        view = _change_colour(view, np.exp(rng.uniform(-1, 1, 3) * math.log1p(augmentation.colour)))
    return view, target


def _change_colour(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return an image uint8 (H, W, 3) with brightness, contrast and saturation multiplied by `factors` (3,)."""
    brightness, contrast, saturation = factors
    view = image.astype(np.float32) * brightness
    view = view.mean() + (view - view.mean()) * contrast
    grey = view.mean(2, keepdims=True)
    return np.clip(grey + (view - grey) * saturation + 0.5, 0, 255).astype(np.uint8)
