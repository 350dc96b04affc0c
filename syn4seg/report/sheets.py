"""Thumbnails of many samples as few pictures: photos as JPEG sheets, label layers as palette PNG sheets, as data URLs.

One sheet holds `ROW` x `ROW` cells of one layer; a picture of its own per thumbnail would cost more in headers than in pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from syn4seg.schema import BACKGROUND, LABEL_COLUMNS, UNLABELED

ROW = 10
"""Cells in a row of a sheet, and rows."""

WHO = ("", "draft, unchanged", "freed by APF, unlabeled", "relabeled by APR", "moved by SABR")
"""Who decided a pixel, by code: 0 is background of the draft that nobody touched."""

WHO_COLORS = ("#000000", "#56b4e9", "#ffffff", "#e69f00", "#cc79a7")


def class_colors(count: int) -> list[str]:
    """A colour for each of `count` class indices; background first, and never shown."""
    golden = 0.61803398875
    hues = [(0.58 + i * golden) % 1.0 for i in range(count)]
    return ["#000000", *(_hex(hue, 0.78 if i % 2 else 0.62, 0.95 if i % 3 else 0.78) for i, hue in enumerate(hues[1:]))][:count]


def _hex(hue: float, saturation: float, value: float) -> str:
    import colorsys

    return "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hsv_to_rgb(hue, saturation, value))


def provenance(labels: dict[str, np.ndarray]) -> np.ndarray:
    """Which stage decided each pixel: codes uint8 (H, W) into `WHO`, from the labels uint8 (H, W) of all stages.

    The last stage that changed a pixel decided it; code 2 is one that APF freed and nobody labelled again. A sample that was
    rejected before SABR has no `label`.
    """
    draft, kept, relabeled = (labels[stage] for stage in LABEL_COLUMNS[:3])
    label = labels.get("label", relabeled)
    who = np.where(draft == BACKGROUND, 0, 1).astype(np.uint8)
    who[(kept != draft) & (label == UNLABELED)] = 2
    who[relabeled != kept] = 3
    who[label != relabeled] = 4
    return who


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """A photo (H, W, 3) or label (H, W) whose longer side is at most `side`; labels keep their values, small ones their size."""
    scale = side / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    shape = tuple(max(1, round(n * scale)) for n in reversed(pixels.shape[:2]))
    return cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA if pixels.ndim == 3 else cv2.INTER_NEAREST_EXACT)


def tile(cells: Sequence[np.ndarray | None], side: int) -> np.ndarray:
    """At most ROW x ROW thumbnails, each in the upper left corner of its cell; zeros where there is none."""
    first = next((cell for cell in cells if cell is not None), np.zeros((1, 1), np.uint8))
    rows = -(-len(cells) // ROW)
    made = np.zeros((rows * side, ROW * side, *first.shape[2:]), np.uint8)
    for i, cell in enumerate(cells):
        if cell is not None:
            y, x = i // ROW * side, i % ROW * side
            made[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return made


def encode_photo(pixels: np.ndarray) -> str:
    """A JPEG data URL of uint8 (H, W, 3) RGB."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def encode_labels(codes: np.ndarray, colors: Sequence[str]) -> str:
    """A palette PNG data URL of uint8 (H, W): `colors` by code, 0 transparent, 255 (unlabeled) white."""
    picture, file = Image.fromarray(codes), io.BytesIO()
    palette = np.full((256, 3), 255, np.uint8)
    for code, color in enumerate(colors):
        palette[code] = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    picture.putpalette(palette.tobytes())
    picture.save(file, "PNG", transparency=0, optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
