"""Show one sample in a notebook or a file: image, the four labels, the classes in them, the prompt and the reason."""

from __future__ import annotations

import base64
import difflib
import html
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.report.reading import STAGE_TITLES, GallerySample, class_names, read_pages, read_records
from syn4seg.report.sheets import class_colors, rgb_of
from syn4seg.schema import BACKGROUND, LABEL_COLUMNS, UNLABELED
from syn4seg.store.files import write_atomically
from syn4seg.store.images import encode_image
from syn4seg.store.partials import remove_abandoned
from syn4seg.store.rundir import RunDir, open_run

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

SPECIAL = {BACKGROUND: ("background", (24, 24, 24)), UNLABELED: ("unlabeled", (255, 255, 255))}
"""Names and RGB colours of the two label values that are not classes."""
CELL = 2.2
"""Inches of one panel in a PNG."""
COLUMNS = 24
"""Characters of the caption above one panel."""


def show(
    sample: GallerySample | RunDir | AnyPath | str, sample_id: str | None = None, draw: int = 0, *, names: Sequence[str] = ()
) -> Picture:
    """Return the picture of one sample: a notebook shows it, `save` writes it.

    Args:
        sample: the directory or URL of a run, or a sample of `syn4seg.report.reading`.
        sample_id: which sample of a run.
        draw: which support draw of a run.
        names: name of every class index, background first; by default those of the run, else the indices themselves.

    Raises:
        UserError: not a run, or it has no such draw or sample.
    """
    if isinstance(sample, GallerySample):
        return Picture(sample, tuple(names))
    run = sample if isinstance(sample, RunDir) else open_run(str(sample))
    draws = [stored.number for stored in run.draws()]
    if draw not in draws:
        raise UserError(f"draw is {draw}; expected one of {draws}, the draws of {run.root}: label them with `syn4seg refine`")
    records = read_records(run, draw)
    ids = records["sample_id"].to_pylist()
    if sample_id not in ids:
        near = difflib.get_close_matches(str(sample_id), ids, n=3, cutoff=0) or ["none: run `syn4seg refine` first"]
        raise UserError(
            f"sample_id is {sample_id!r}; expected one of the {len(ids)} samples of draw {draw}, e.g. {', '.join(near)}"
        )
    page = next(read_pages(run, draw, records.slice(ids.index(sample_id), 1)))
    return Picture(page[0], tuple(names) or class_names(run, load(run.config)))


class Picture:
    """The picture of a sample; notebooks show it.

    Args:
        sample: a fault has no image, and its reason is shown.
        names: name of every class index, background first; may be shorter than the largest index.
    """

    def __init__(self, sample: GallerySample, names: Sequence[str] = ()):
        self.sample, self.names = sample, names

    @property
    def caption(self) -> list[str]:
        """Lines with sample id and class, the prompt, the reason of a rejection, and the damage of its files."""
        record = self.sample.record
        lines = [f"{record.get('sample_id', '')} ({record.get('class', '')})", f"prompt: {record.get('prompt', '')}"]
        if record.get("reason"):
            lines.append(f"rejected: {record['reason']}")
        return lines + ([f"damaged: {self.sample.damage}"] if self.sample.damage else [])

    @property
    def panels(self) -> dict[str, np.ndarray]:
        """Title -> RGB uint8 (H, W, 3), in the order of display; a fault has none."""
        panels = {} if self.sample.image is None else {"image": self.sample.image}
        table = np.zeros((256, 3), np.uint8)
        for value, (_, color) in self._values.items():
            table[value] = color
        return panels | {STAGE_TITLES[s]: table[self.sample.labels[s]] for s in LABEL_COLUMNS if s in self.sample.labels}

    @property
    def legend(self) -> dict[str, tuple[int, int, int]]:
        """Name -> RGB of every label value that occurs, background first."""
        return dict(self._values.values())

    @property
    def _values(self) -> dict[int, tuple[str, tuple[int, int, int]]]:
        """Label value -> name and RGB, for the values that occur, sorted; classes have their colours of the report."""
        values = sorted({int(k) for label in self.sample.labels.values() for k in np.unique(label)})
        codes = class_colors(max([len(self.names), *(k + 1 for k in values if k not in SPECIAL)]))
        return {k: SPECIAL[k] if k in SPECIAL else (self._name(k), rgb_of(codes[k])) for k in values}

    def _name(self, index: int) -> str:
        return self.names[index] if index < len(self.names) else f"class {index}"

    def save(self, path: str | Path) -> None:
        """Write the picture as .png or as a page (.html).

        Raises:
            UserError: another suffix.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in (".png", ".html"):
            raise UserError(f"path is {str(path)!r}; expected a name that ends with .png or .html")
        page = f"<!doctype html>\n<meta charset='utf-8'>\n{self._repr_html_()}\n"
        remove_abandoned(Path(path).parent, Path(path).name)
        write_atomically(Path(path), self._repr_png_() if suffix == ".png" else page.encode())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<figure style='margin:0'><img alt='{html.escape(title)}' style='width:10rem;image-rendering:pixelated' "
            f"src='data:image/png;base64,{base64.b64encode(encode_image(pixels)).decode()}'><figcaption>{html.escape(title)}"
            "</figcaption></figure>"
            for title, pixels in self.panels.items()
        )
        keys = "".join(
            f"<span style='margin-right:1em'><span style='display:inline-block;width:.8em;height:.8em;border:1px solid #888;"
            f"background:rgb{rgb}'></span> {html.escape(name)}</span>"
            for name, rgb in self.legend.items()
        )
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in self.caption)
        return f"<div><div style='display:flex;flex-wrap:wrap;gap:.5rem'>{cells}</div><div>{keys}</div>{lines}</div>"

    def _repr_png_(self) -> bytes:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        panels, legend, data = self.panels, self.legend, io.BytesIO()
        lines = [part for line in self.caption for part in textwrap.wrap(line, COLUMNS * max(len(panels), 3))]
        with matplotlib.rc_context({"font.family": "sans-serif", "font.size": 9, "text.parse_math": False}):
            canvas = Figure(
                figsize=(CELL * max(len(panels), 3), CELL * bool(panels) + 0.6 + 0.2 * len(lines)), layout="constrained"
            )
            for column, (title, pixels) in enumerate(panels.items(), 1):
                axes = canvas.add_subplot(1, len(panels), column, title=title, xticks=[], yticks=[])
                axes.imshow(pixels, interpolation="nearest")
            canvas.suptitle("\n".join(lines), ha="left", x=0.01)  # matplotlib's wrapping would parse $ as mathematics
            patches = [Patch(facecolor=f"#{bytes(rgb).hex()}", edgecolor="#888888", label=k) for k, rgb in legend.items()]
            if patches:
                canvas.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), frameon=False)
            canvas.savefig(data, format="png", dpi=100, metadata={"Software": None})
        return data.getvalue()
