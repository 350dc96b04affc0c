"""Generated images: float to uint8, and faults that no mask could repair."""

from __future__ import annotations

import numpy as np


def image_fault(image: np.ndarray) -> str:
    """Return what is wrong with an image that no mask could repair, or "".

    Args:
        image: (H, W, 3), uint8 or float in [0, 1].

    Returns:
        "nan" (some value is not finite), "black" (nothing above 2 of 255), "flat" (in every channel a standard
        deviation below 1 of 255), or "".
    """
    levels = image.astype(np.float32) * (1 if image.dtype == np.uint8 else 255)
    if not np.isfinite(levels).all():
        return "nan"
    if levels.max() <= 2:
        return "black"
    return "flat" if levels.std(axis=(0, 1)).max() < 1 else ""


def to_uint8(images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return float images (N, H, W, 3) in [0, 1] as uint8, with the fault of each; what is not finite becomes 0."""
    faults = [image_fault(image) for image in images]
    levels = np.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1) * 255
    return np.rint(levels).astype(np.uint8), faults
