"""From the scores of a canvas to the pixels of an image: class and confidence of each, also where no memory holds all scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from syn4seg.data.canvas import Canvas
from syn4seg.segmenter.evaluation import best_classes, scores_at_pixels

LARGE = 2**28
"""Numbers (classes x pixels) above which the scores of an image are brought to its pixels class by class."""
Scores = Callable[[list[np.ndarray]], Tensor]
"""Takes images uint8 (H_i, W_i, 3); returns their scores (N, C, size, size) on the canvas."""


def label_pixels(scores: Tensor, canvas: Canvas, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return class indices uint8 (H, W) and the probability float32 (H, W) of each, of scores (1, C, size, size) on the canvas."""
    if scores.shape[1] * shape[0] * shape[1] <= LARGE:
        full = scores_at_pixels(scores, canvas, shape)[0]
        label = full.argmax(0)
        confidence = 1 / (full - full.amax(0)).exp().sum(0)
        return label.byte().cpu().numpy(), confidence.cpu().numpy()
    planes = scores.split(1, 1)
    label, best = best_classes(scores_at_pixels(plane, canvas, shape)[0, 0] for plane in planes)
    total = torch.zeros_like(best)
    for plane in planes:
        total += (scores_at_pixels(plane, canvas, shape)[0, 0] - best).exp()
    return label.cpu().numpy(), (1 / total).cpu().numpy()


def probabilities(scores: Tensor, canvas: Canvas, shape: tuple[int, int]) -> np.ndarray:
    """Return probabilities float32 (C, H, W) of scores (1, C, size, size) on the canvas."""
    return scores_at_pixels(scores, canvas, shape)[0].softmax(0).cpu().numpy()


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where the tiles along a side begin: as few as overlap by at least the share `overlap`, evenly laid."""
    if length <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = -(-(length - tile) // step) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def tiled_probabilities(
    image: np.ndarray, scores: Scores, canvas: Canvas, tile: int, overlap: float, batch: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield probabilities of a large image from overlapping tiles, from top to bottom: (first row, float32 (C, rows, W)).

    Each tile is brought to the canvas as a whole image would be. Where tiles overlap, their probabilities are averaged, with
    weights that fall off towards a tile's edge; only the rows that two rows of tiles share are in memory.

    Args:
        image: uint8 (H, W, 3).
        tile: side of a tile in pixels of the image.
        overlap: share of a tile that the next one covers, at least.
        batch: tiles that the network sees at a time.
    """
    rows, columns = image.shape[:2]
    tops, lefts = (starts(side, tile, overlap) for side in (rows, columns))
    height, width = min(tile, rows), min(tile, columns)
    down, across = _ramp(height), _ramp(width)
    places = [(top, left) for top in tops for left in lefts]
    sums, weights, first = None, np.zeros((0, columns), np.float32), 0
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        found = scores([image[top : top + height, left : left + width] for top, left in part])
        for (top, left), one in zip(part, found, strict=True):
            if sums is None:
                sums = np.zeros((len(one), 0, columns), np.float32)
            if top > first:  # the rows above it are finished
                yield first, sums[:, : top - first] / weights[: top - first]
                sums, weights, first = sums[:, top - first :], weights[top - first :], top
            missing = top + height - first - sums.shape[1]
            if missing > 0:
                sums = np.concatenate([sums, np.zeros((len(sums), missing, columns), np.float32)], 1)
                weights = np.concatenate([weights, np.zeros((missing, columns), np.float32)])
            weight = down[:, None] * across
            sums[:, :height, left : left + width] += probabilities(one[None], canvas, (height, width)) * weight
            weights[:height, left : left + width] += weight
    assert sums is not None
    yield first, sums / weights


def _ramp(length: int) -> np.ndarray:
    """Return weights float32 (length,) that rise from the edges to the middle."""
    near = np.arange(1, length + 1, dtype=np.float32)
    return np.minimum(near, near[::-1]) / length
