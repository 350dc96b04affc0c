"""Shared by the tests of `syn4seg init`: scenes of rectangles, painted pixel by pixel by the obvious loop."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

ROWS, COLUMNS = 24, 32


@pytest.fixture
def scene():
    """A function (number) -> rectangles (class 1..3, left, top, right, bottom) in whole pixels, later ones on top."""

    def make(number: int) -> list[tuple[int, int, int, int, int]]:
        rng = np.random.default_rng(number)
        boxes = []
        for value in (1, 2, 3)[: 3 if number % 3 == 0 else 2]:
            left, top = int(rng.integers(0, 20)), int(rng.integers(0, 14))
            boxes.append((value, left, top, left + int(rng.integers(4, 12)), top + int(rng.integers(4, 10))))
        return boxes

    return make


@pytest.fixture
def painted():
    """A function (rectangles) -> mask, by a loop over pixels."""

    def paint(boxes) -> np.ndarray:
        mask = np.zeros((ROWS, COLUMNS), np.uint8)
        for row in range(ROWS):
            for column in range(COLUMNS):
                for value, left, top, right, bottom in boxes:
                    if left <= column + 0.5 < right and top <= row + 0.5 < bottom:
                        mask[row, column] = value
        return mask

    return paint


@pytest.fixture
def save_photo():
    """A function (path, number) that writes a photo of the scene's size."""

    def save(path, number: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (ROWS, COLUMNS, 3), np.uint8)
        Image.fromarray(pixels).save(path)

    return save
