"""The look of figures and pages: colours that colour-blind people tell apart, SVG with the same bytes for the same data."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#999999", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's palette."""

STYLE = """
:root { color-scheme: light dark; --text: #1d2329; --back: #ffffff; --line: #d5dae0; --soft: #f4f6f8; --alarm: #b00020; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ec; --back: #15191d; --line: #39424b; --soft: #1f252b; --alarm: #ff6b78; } }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); }
main { max-width: 92rem; margin: auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 1.6rem 0 .6rem; }
.alarm { color: var(--alarm); border: 2px solid; padding: .6rem; font-weight: 700; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { white-space: normal; vertical-align: bottom; }
th:first-child, .left { text-align: left; white-space: normal; }
@media (max-width: 40rem) { table { font-size: .8rem; } th, td { padding: .25rem .3rem; white-space: normal; } }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; }
.chart { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; overflow-x: auto; max-width: 40rem; }
@media (prefers-color-scheme: dark) { .chart { filter: invert(.9) hue-rotate(180deg); } }
.chart svg { width: 100%; max-width: 100%; height: auto; display: block; }
figure p { margin: .3rem 0; font-size: .9rem; max-width: 46rem; }
"""


@contextlib.contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure of a size in inches, and its axes; it needs no display."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "syn4seg", "svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif"}):
        canvas = Figure(figsize=(width, height), layout="constrained")
        axes = canvas.add_subplot()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        yield canvas, axes


def svg(canvas: Figure) -> str:
    """Return the figure as an SVG element."""
    text = io.StringIO()
    canvas.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
