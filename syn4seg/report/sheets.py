"""Put the thumbnails of many samples into a few pictures: JPEG sheets of photos, palette PNG sheets of labels, as data URLs.

One sheet holds `ROW` x `ROW` cells of one layer; one file per thumbnail would need more bytes for headers than for pixels.
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
"""Number of cells in a row of a sheet, and of rows."""
WHO = ("", "draft, unchanged", "freed by APF, unlabeled", "relabeled by APR", "moved by SABR")
"""What decided a pixel, by code; 0 is unchanged background of the draft."""
WHO_COLORS = ("#000000", "#56b4e9", "#ffffff", "#e69f00", "#cc79a7")


def class_colors(count: int) -> list[str]:
    """Return a colour `#rrggbb` for each of `count` class indices; that of the background, the first, is never shown."""
    golden = 0.61803398875
    hues = [(0.58 + i * golden) % 1.0 for i in range(count)]
    return ["#000000", *(_hex(hue, 0.78 if i % 2 else 0.62, 0.95 if i % 3 else 0.78) for i, hue in enumerate(hues[1:]))][:count]


def _hex(hue: float, saturation: float, value: float) -> str:
    import colorsys

    return "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hsv_to_rgb(hue, saturation, value))


def rgb_of(color: str) -> tuple[int, int, int]:
    """Return the three bytes of `#rrggbb`."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue


def provenance(labels: dict[str, np.ndarray]) -> np.ndarray:
    """Return the last stage that changed each pixel, as codes uint8 (H, W) into `WHO`.

    Args:
        labels: label column -> uint8 (H, W). Code 2 is a pixel that APF freed and no stage labelled again. A sample that was
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
    """Reduce a photo (H, W, 3) by area means, or a label (H, W) by nearest codes, to a longer side of at most `side`."""
    scale = side / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    shape = tuple(max(1, round(n * scale)) for n in reversed(pixels.shape[:2]))
    return cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA if pixels.ndim == 3 else cv2.INTER_NEAREST_EXACT)


def tile(cells: Sequence[np.ndarray | None], side: int) -> np.ndarray:
    """Return one picture of at most ROW x ROW thumbnails, each in the upper left corner of its cell; zeros for None."""
    first = next((cell for cell in cells if cell is not None), np.zeros((1, 1), np.uint8))
    rows = -(-len(cells) // ROW)
    sheet = np.zeros((rows * side, ROW * side, *first.shape[2:]), np.uint8)
    for i, cell in enumerate(cells):
        if cell is not None:
            y, x = i // ROW * side, i % ROW * side
            sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return sheet


def encode_photo(pixels: np.ndarray) -> str:
    """Return a JPEG data URL of uint8 (H, W, 3) RGB."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def encode_labels(codes: np.ndarray, colors: Sequence[str]) -> str:
    """Return a palette PNG data URL of uint8 (H, W): `colors` by code, 0 transparent, 255 (unlabeled) white."""
    picture, file = Image.fromarray(codes), io.BytesIO()
    palette = np.full((256, 3), 255, np.uint8)
    for code, color in enumerate(colors):
        palette[code] = rgb_of(color)
    picture.putpalette(palette.tobytes())
    picture.save(file, "PNG", transparency=0, optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
