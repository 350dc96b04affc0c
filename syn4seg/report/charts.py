"""Draw the charts of a report as SVG: per-class bars, similarities with their limit, training curves, the stream over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from syn4seg.report.style import COLORS, figure, svg

WIDTH = 4.9
"""Width of a chart in inches: on a phone of 390 pixels its letters are still about 10 pixels high."""
PANELS = 12
"""Number of classes up to which each has its histogram; of more, one histogram shows the distance of all from the limit."""


def per_class(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], titles: Mapping[str, str]) -> str:
    """Draw the IoU of every class in percent, for two rows of the ablation.

    Args:
        rows: row -> class name -> spread of the IoU in [0, 1].
        names: classes from top to bottom.
        titles: row -> title, for the two rows.
    """
    with figure(WIDTH, 0.8 + 0.24 * len(names)) as (canvas, axes):
        y = np.arange(len(names))[::-1]
        for offset, color, (row, title) in zip((0.2, -0.2), (COLORS[3], COLORS[0]), titles.items(), strict=False):
            spreads = [rows[row][name] for name in names]
            values = [100 * v["mean"] if v["mean"] is not None else np.nan for v in spreads]
            errors = [100 * v["std"] if v["n"] > 1 else 0.0 for v in spreads]
            axes.barh(y + offset, values, 0.38, xerr=errors, color=color, label=title, error_kw={"lw": 0.8})
        axes.set_yticks(y, [name.replace("$", r"\$") for name in names])
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.set_xlim(0, 100)
        axes.set_xlabel("IoU (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
        return svg(canvas)


def similarity(regions: Mapping[str, tuple[np.ndarray, np.ndarray, float]]) -> str:
    """Draw histograms of s(r) of the target's regions, kept and freed, with lambda_keep (method.md 3.1).

    Args:
        regions: class name -> s(r) (N,), whether each was kept (N,), and lambda_keep.
    """
    if len(regions) > PANELS:
        margins = np.concatenate([values - least for values, _, least in regions.values()])
        kept = np.concatenate([kept for _, kept, _ in regions.values()])
        with figure(WIDTH, 3) as (canvas, axes):
            _stacked(axes, margins, kept, 0.0)
            axes.set_xlabel("similarity minus its limit, all classes")
            axes.legend(frameon=False)
            return svg(canvas)
    with figure(WIDTH, 0.9 + 1.05 * len(regions)) as (canvas, first):
        first.remove()
        panels = np.atleast_1d(canvas.subplots(len(regions), 1, sharex=True))
        for axes, (name, (values, kept, least)) in zip(panels, regions.items(), strict=True):
            _stacked(axes, values, kept, least)
            axes.set_ylabel(name.replace("$", r"\$"))
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        panels[0].legend(frameon=False, loc="upper left")
        panels[-1].set_xlabel("similarity of a region to the support images")
        return svg(canvas)


def _stacked(axes: Any, values: np.ndarray, kept: np.ndarray, least: float) -> None:
    low, high = min(float(values.min()), least), max(float(values.max()), least)
    bins = np.linspace(low, high + 1e-6, 33)
    axes.hist([values[kept], values[~kept]], bins, stacked=True, color=[COLORS[0], COLORS[1]], label=["kept", "freed"])
    axes.axvline(least, color="#000000", lw=1.2, ls="--", label=f"limit {least:.2f}")


def training(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Draw the loss over the steps.

    Args:
        curves: name -> steps (N,), losses (N,).
    """
    with figure(WIDTH, 3.2) as (canvas, axes):
        for i, (name, (steps, losses)) in enumerate(curves.items()):
            axes.plot(steps, losses, "-o", ms=2.5, lw=1.2, color=COLORS[i % len(COLORS)], label=name.replace("$", r"\$"))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(frameon=False, fontsize=8)
        return svg(canvas)


def over_time(stages: Mapping[str, Mapping[str, np.ndarray]], key: str, label: str, factor: float = 1.0) -> str:
    """Draw a line per stage of the stream over its seconds: the values of `key`, times `factor`."""
    with figure(WIDTH, 2.6) as (canvas, axes):
        for i, (name, series) in enumerate(stages.items()):
            axes.plot(series["seconds"], factor * series[key], lw=1.4, color=COLORS[i % len(COLORS)], label=name)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds of the stream")
        axes.set_ylabel(label)
        axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return svg(canvas)


def deltas(gains: Mapping[str, float], title: str) -> str:
    """Draw the differences by class, in percentage points, the largest gain first."""
    names = sorted(gains, key=lambda name: (-gains[name], name))
    with figure(WIDTH, 0.7 + 0.22 * len(names)) as (canvas, axes):
        values = np.array([gains[name] for name in names])
        bars = axes.barh(np.arange(len(names))[::-1], values, color=np.where(values < 0, COLORS[1], COLORS[0]))
        axes.bar_label(bars, [f"{v:+.1f}" for v in values], padding=3, fontsize=8)
        axes.set_yticks(np.arange(len(names))[::-1], [name.replace("$", r"\$") for name in names])
        axes.axvline(0, color="#000000", lw=0.8)
        axes.margins(x=0.12)
        axes.set_xlabel(title)
        return svg(canvas)
