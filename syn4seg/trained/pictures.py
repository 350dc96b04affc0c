"""Masks to look at: overlays, and contact sheets with images beside their overlays and the colours of the classes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from syn4seg.errors import UserError
from syn4seg.report.sheets import shrink
from syn4seg.schema import BACKGROUND
from syn4seg.store.files import write_atomically
from syn4seg.store.partials import remove_abandoned

STRENGTH = 0.55
"""Share of a class's colour in an overlay."""
SIDE = 240
"""Longer side of a picture on a sheet, in pixels."""
GAP = 4
WIDE = 2 * SIDE + GAP
INCHES = 4.4
"""Width of an image with its overlay on a sheet."""
TITLE = 40
"""Characters of the name above a picture; of a longer one the end is shown."""


@dataclass(frozen=True)
class View:
    """An image uint8 (H, W, 3) with its mask uint8 (H, W), and its name."""

    name: str
    image: np.ndarray
    mask: np.ndarray


def overlay(image: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return an image with the classes drawn over it, uint8 (H, W, 3): the background stays, outlines are white.

    Args:
        image: uint8 (H, W, 3).
        mask: class indices uint8 (H, W).
        palette: RGB uint8 (C, 3).
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    mixed = cv2.addWeighted(image, 1 - STRENGTH, table[mask], STRENGTH, 0)
    shown = np.where((mask != BACKGROUND)[..., None], mixed, image)
    edge = np.zeros(mask.shape, bool)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:] |= mask[1:] != mask[:-1]
    width = max(mask.shape) // 800
    if width:
        edge = cv2.dilate(edge.astype(np.uint8), np.ones((2 * width + 1, 2 * width + 1), np.uint8)).astype(bool)
    shown[edge] = 255
    return shown


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Return uint8 (H, W, 3) RGB as JPEG."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    return data.tobytes()


def encode_palette(mask: np.ndarray, palette: np.ndarray) -> bytes:
    """Return class indices uint8 (H, W) as a palette PNG: the pixels are the indices, viewers show the colours."""
    picture, file = Image.fromarray(mask), io.BytesIO()
    picture.putpalette(np.ascontiguousarray(palette).tobytes())
    picture.save(file, "PNG")
    return file.getvalue()


class Views:
    """A sheet of images beside their overlays, with the colours of the classes that occur; notebooks show it.

    Args:
        names: by class index.
        palette: RGB uint8 (C, 3).
    """

    def __init__(self, views: Sequence[View], names: Sequence[str], palette: np.ndarray):
        self.views, self.names, self.palette = views, names, palette

    @property
    def panels(self) -> list[np.ndarray]:
        """Image and overlay side by side, each of at most `SIDE` x `SIDE`: uint8 (h, `WIDE`, 3) per view."""
        panels = []
        for view in self.views:
            drawn = overlay(view.image, view.mask, self.palette)
            parts = [_fitted(pixels) for pixels in (view.image, drawn)]
            left, right = (np.pad(p, ((0, 0), (0, SIDE - p.shape[1]), (0, 0)), constant_values=255) for p in parts)
            gap = np.full((len(left), GAP, 3), 255, np.uint8)
            narrow = SIDE - parts[0].shape[1]  # the image stands beside its overlay
            panels.append(np.hstack([np.roll(left, narrow, axis=1), gap, right]))
        return panels

    @property
    def legend(self) -> dict[str, tuple[int, int, int]]:
        """Name -> RGB of every class that occurs, without the background."""
        found = sorted({int(k) for view in self.views for k in np.unique(view.mask)} - {BACKGROUND})
        return {self.names[k]: (int(self.palette[k][0]), int(self.palette[k][1]), int(self.palette[k][2])) for k in found}

    def save(self, path: str | Path) -> None:
        """Write the picture as .png.

        Raises:
            UserError: another suffix.
        """
        if Path(path).suffix.lower() != ".png":
            raise UserError(f"path is {str(path)!r}; expected a name that ends with .png")
        remove_abandoned(Path(path).parent, Path(path).name)
        write_atomically(Path(path), self._repr_png_())

    def _repr_html_(self) -> str:
        data = base64.b64encode(self._repr_png_()).decode()
        return f"<img alt='images and masks' src='data:image/png;base64,{data}'>"

    def _repr_png_(self) -> bytes:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        panels, legend, data = self.panels, self.legend, io.BytesIO()
        columns = min(3, max(1, math.ceil(math.sqrt(len(panels) / 2))))
        heights = [max(len(panel) for panel in panels[i : i + columns]) for i in range(0, len(panels), columns)] or [SIDE]
        inches = [INCHES * height / WIDE + 0.3 for height in heights]
        with matplotlib.rc_context({"font.family": "sans-serif", "font.size": 8, "text.parse_math": False}):
            lines = -(-len(legend) // (3 * columns))
            canvas = Figure(figsize=(INCHES * columns, sum(inches) + 0.2 * lines + 0.1), layout="constrained")
            grid = canvas.add_gridspec(len(heights), columns, height_ratios=inches)
            for number, (view, panel) in enumerate(zip(self.views, panels, strict=True)):
                title = view.name if len(view.name) <= TITLE else "…" + view.name[-TITLE + 1 :]
                axes = canvas.add_subplot(grid[number // columns, number % columns])
                axes.set_axis_off()
                axes.set_title(title, fontsize=8)
                below = heights[number // columns] - len(panel)
                axes.imshow(np.pad(panel, ((0, below), (0, 0), (0, 0)), constant_values=255))
            patches = [Patch(facecolor=f"#{bytes(rgb).hex()}", edgecolor="#888888", label=k) for k, rgb in legend.items()]
            if patches:
                canvas.legend(handles=patches, loc="outside lower center", ncols=3 * columns, frameon=False)
            canvas.savefig(data, format="png", dpi=120, metadata={"Software": None})
        return data.getvalue()


def _fitted(pixels: np.ndarray) -> np.ndarray:
    """Return pixels (H, W, 3) with a longer side of at most `SIDE`; small ones are enlarged by a whole number."""
    times = SIDE // max(pixels.shape[:2])
    return pixels.repeat(times, axis=0).repeat(times, axis=1) if times > 1 else shrink(pixels, SIDE)
