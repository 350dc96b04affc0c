"""Regions of other people's annotations as pixels: outlines (polygons) and COCO's run-length encodings, by pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np


def decode_runs(region: dict[str, Any], rows: int, columns: int) -> np.ndarray:
    """Decode a run-length encoding of COCO, counts as a list or compressed, to bool (H, W).

    Raises:
        ValueError: it is damaged, or does not fit the image; one line.
    """
    from pycocotools import mask as coder

    counts = region.get("counts")
    fits = region.get("size") == [rows, columns]
    try:
        if isinstance(counts, list):
            fits = fits and sum(counts) == rows * columns and min(counts) >= 0
        if not fits:
            raise ValueError(f"a run-length encoding does not fit {columns}x{rows} pixels")
        encoded: Any = coder.frPyObjects(cast(Any, region), rows, columns) if isinstance(counts, list) else region
        pixels = coder.decode(encoded)
        if isinstance(counts, str) and coder.encode(np.asfortranarray(pixels))["counts"] != counts.encode():
            raise ValueError("a run-length encoding does not fit: its runs do not add up to the image")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        told = str(error)
        raise ValueError(told if "does not fit" in told else f"damaged run-length encoding ({told})") from error
    return pixels.astype(bool)


def fill_outlines(outlines: Sequence[Sequence[float] | np.ndarray], rows: int, columns: int) -> np.ndarray:
    """Return the pixels inside any of several polygons as bool (H, W), as COCO's own tools count them.

    Args:
        outlines: per polygon its corners in pixels, column and row in turn; (0, 0) is the corner of the first pixel.

    Raises:
        ValueError: no number, less than three corners, or further outside of the image than it is large.
    """
    from pycocotools import mask as coder

    filled = np.zeros((rows, columns), bool)
    for outline in outlines:
        try:
            corners = np.asarray(outline, np.float64).reshape(-1, 2)
        except (ValueError, TypeError, OverflowError):
            raise ValueError("an outline is no list of pairs of numbers") from None
        if len(corners) < 3:
            raise ValueError(f"an outline has {len(corners)} corners; expected at least 3")
        size = np.array([columns, rows], np.float64)
        if not (np.isfinite(corners).all() and (corners >= -size).all() and (corners <= 2 * size).all()):
            raise ValueError(f"an outline has a corner far outside of its {columns}x{rows} pixels")
        runs: Any = coder.frPyObjects(cast(Any, [corners.ravel().tolist()]), rows, columns)
        filled |= coder.decode(runs)[:, :, 0].astype(bool)
    return filled
