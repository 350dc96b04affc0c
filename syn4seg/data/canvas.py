"""The square canvas on which the segmenter sees every image: the image in the top left corner, nothing labelled beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from syn4seg.schema import UNLABELED


@dataclass(frozen=True)
class Canvas:
    """How images of any shape are brought to one size.

    Attributes:
        size: side in pixels; an image's long side is brought to it.
        kind: "plain" rounds the sides, shrinks by area and pads with ImageNet's mean colour [C]. "diam" is the canvas of
            BAM, DIaM and BCM: sides floored to a multiple of 8, bilinear, black beside the image (method.md 7.7).
    """

    size: int
    kind: Literal["plain", "diam"] = "plain"

    def shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the rows and columns that an image of `shape` (rows, columns, ...) fills."""
        longest = max(shape[:2])
        if self.kind == "diam":
            rows, columns = (int(n * (self.size / longest)) if n < longest else self.size for n in shape[:2])
            return max(8, rows // 8 * 8), max(8, columns // 8 * 8)
        rows, columns = (max(1, round(n * (self.size / longest))) for n in shape[:2])
        return rows, columns

    def image(self, image: np.ndarray) -> np.ndarray:
        """Return an RGB image uint8 (H, W, 3) on the canvas, uint8 (size, size, 3)."""
        rows, columns = self.shape(image.shape)
        if image.shape[:2] != (rows, columns):
            by_area = rows < image.shape[0] and self.kind == "plain"
            image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if by_area else cv2.INTER_LINEAR)
        if rows == columns == self.size:
            return image
        canvas = np.empty((self.size, self.size, 3), np.uint8)
        canvas[:] = (124, 116, 104) if self.kind == "plain" else 0
        canvas[:rows, :columns] = image
        return canvas

    def label(self, label: np.ndarray) -> np.ndarray:
        """Return a label or mask uint8 (H, W) on the canvas: nearest neighbour, 255 beside the image; uint8 (size, size)."""
        rows, columns = self.shape(label.shape)
        if label.shape != (rows, columns):
            nearest = cv2.INTER_NEAREST if self.kind == "diam" else cv2.INTER_NEAREST_EXACT
            label = cv2.resize(label, (columns, rows), interpolation=nearest)
        canvas = np.full((self.size, self.size), UNLABELED, np.uint8)
        canvas[:rows, :columns] = label
        return canvas
