"""The report of a sweep: one HTML page with its figures inside, which needs no network and no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from syn4seg.report.html import chart, environment, escape_invisible
from syn4seg.report.style import COLORS, STYLE, figure, svg
from syn4seg.stages.results import spread
from syn4seg.store.files import write_atomically
from syn4seg.terminal import format_percent

BINS = 8
"""Number of bins of a curve over a continuous range."""
TOP = 25
"""Number of trials in the table."""

Row = dict[str, Any]
"""A trial: number, state, params, draws (metric -> draw -> value in [0, 1]), reports, seconds, error."""


def write_sweep_report(
    path: Path, study: dict[str, Any], summary: dict[str, Any], rows: Sequence[Row], verdicts: Sequence[str]
) -> None:
    """Write the page.

    Args:
        study: the study as JSON values.
        summary: the content of summary.json.
        rows: every trial that ended.
        verdicts: sentences that compare the best trial with the default.
    """
    metrics = [name.removeprefix("test.") for name in study["objective"]]
    keys = list(study["space"])
    ranked = sorted(rows, key=lambda row: (row["state"] != "complete", -(_mean(row, metrics[0]) or -1), row["number"]))
    pages = environment()
    pages.filters |= {"percent": format_percent, "short": _short}
    page = pages.get_template("sweep.html").render(
        title=study["title"] or "study",
        test=study["objective"][0].startswith("test."),
        study=study,
        summary=summary,
        style=Markup(STYLE),
        objective=", ".join(study["objective"]),
        metrics=metrics,
        keys=keys,
        best=[(name, summary[name]) for name in ("best", "default") if name in summary],
        verdicts=verdicts,
        rows=[row | {"percents": {m: format_percent(_spread(row, m)) for m in metrics}} for row in ranked[:TOP]],
        more=max(0, len(rows) - TOP),
        charts=draw_charts(metrics, keys, summary, rows),
    )
    write_atomically(path, page.encode())


def draw_charts(metrics: Sequence[str], keys: Sequence[str], summary: dict[str, Any], rows: Sequence[Row]) -> list[Markup]:
    """Return the figures for which there are enough trials."""
    metric = metrics[0]
    done = _measured(rows, "complete", metric)
    if len(done) < 2:
        return []
    text = (
        f"{metric} of every trial in the order of their numbers; the line is the best so far, bars are the "
        "spread over draws, crosses were stopped early."
    )
    figures = [chart("History", _history(metric, rows), text)]
    if len(metrics) > 1:
        text = "Every complete trial; those on the line are beaten by no other in both objectives."
        figures.append(chart("Pareto front", _front(metrics, done, summary), text))
    text = "Share of each key in the variance of the objective (fANOVA on the complete trials)."
    for name, shares in summary["importance"].items():
        if shares:
            figures.append(chart(f"Importance for {name}", _importance(shares), text))
    text = (
        "Dots are trials with their spread over draws; the line is the mean, the band the standard deviation "
        "of the trials at a value (or in a bin of a range)."
    )
    for key in keys:
        if len({_short(row["params"].get(key)) for row in done}) > 1:
            figures.append(chart(f"{metric} over {key}", _curve(metric, key, done), text))
    if len(keys) > 1:
        text = f"One line per trial, from low ({metric}) in grey to high in blue."
        figures.append(chart("Parallel coordinates", _parallel(metric, keys, done), text))
    return figures


def _history(metric: str, rows: Sequence[Row]) -> str:
    with figure(8, 3.2) as (canvas, axes):
        for state, marker, color in (("complete", "o", COLORS[0]), ("pruned", "x", COLORS[3])):
            trials = _measured(rows, state, metric)
            means, stds = _percents(trials, metric)
            numbers = [row["number"] for row in trials]
            axes.errorbar(numbers, means, yerr=stds, fmt=marker, color=color, ms=4, lw=1, alpha=0.7)
        done = _measured(rows, "complete", metric)
        best = np.maximum.accumulate(_percents(done, metric)[0])
        axes.step([row["number"] for row in done], best, where="post", color=COLORS[1], lw=1.5)
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{metric} (%)")
        return svg(canvas)


def _front(metrics: Sequence[str], done: Sequence[Row], summary: dict[str, Any]) -> str:
    with figure(5, 4) as (canvas, axes):
        x, y = (_percents(done, metric)[0] for metric in metrics[:2])
        axes.scatter(x, y, s=14, color=COLORS[0], alpha=0.5)
        front = np.array([[100 * trial["values"][m]["mean"] for m in metrics[:2]] for trial in summary["front"]])
        axes.plot(front[:, 0], front[:, 1], "-o", color=COLORS[1], ms=5)
        axes.set_xlabel(f"{metrics[0]} (%)")
        axes.set_ylabel(f"{metrics[1]} (%)")
        return svg(canvas)


def _importance(shares: dict[str, float]) -> str:
    with figure(8, 0.5 + 0.35 * len(shares)) as (canvas, axes):
        names = sorted(shares, key=lambda name: shares[name])
        bars = axes.barh(names, [100 * shares[name] for name in names], color=COLORS[0])
        axes.bar_label(bars, fmt="%.0f %%", padding=3)
        axes.margins(x=0.15)
        axes.xaxis.set_visible(False)
        return svg(canvas)


def _curve(metric: str, key: str, done: Sequence[Row]) -> str:
    x, names = _coordinates([row["params"][key] for row in done])
    means, stds = _percents(done, metric)
    with figure(5, 3.4) as (canvas, axes):
        axes.errorbar(x, means, yerr=stds, fmt="o", ms=3.5, lw=0.8, color=COLORS[0], alpha=0.55)
        bins = bin_means(x, means)
        if len(bins) > 1:
            centre, mean, std = (np.array(column) for column in zip(*bins, strict=True))
            axes.plot(centre, mean, color=COLORS[1], lw=1.8)
            axes.fill_between(centre, mean - std, mean + std, color=COLORS[1], alpha=0.2, lw=0)
        if names:
            axes.set_xticks(range(len(names)), names)
        axes.set_xlabel(key)
        axes.set_ylabel(f"{metric} (%)")
        return svg(canvas)


def bin_means(x: np.ndarray, values: np.ndarray) -> list[tuple[float, float, float]]:
    """Return (x, mean, standard deviation) of the values at each x, or in `BINS` equally filled bins if there are many x.

    Args:
        x, values: (N,).
    """
    order = np.argsort(x, kind="stable")
    x, values = x[order], values[order]
    distinct = np.unique(x)
    if len(distinct) <= max(BINS, len(x) // 2):
        parts = [np.flatnonzero(x == value) for value in distinct]
    else:
        parts = [part for part in np.array_split(np.arange(len(x)), BINS) if len(part)]
    return [(float(x[p].mean()), float(values[p].mean()), float(values[p].std(ddof=1)) if len(p) > 1 else 0.0) for p in parts]


def _parallel(metric: str, keys: Sequence[str], done: Sequence[Row]) -> str:
    heights, ends = [], []
    for key in keys:
        y, names = _coordinates([row["params"].get(key) for row in done])
        heights.append((y - y.min()) / (np.ptp(y) or 1.0))
        ends.append((names[0], names[-1]) if names else (_short(y.min()), _short(y.max())))
    scores = np.array([_mean(row, metric) or 0.0 for row in done])
    rank = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    heights, ends = [*heights, rank], [*ends, (f"{100 * scores.min():.1f}", f"{100 * scores.max():.1f}")]
    with figure(8, 3.4) as (canvas, axes):
        for i in np.argsort(rank):
            axes.plot(
                range(len(heights)),
                [height[i] for height in heights],
                lw=0.5 + 1.5 * rank[i] ** 3,
                color=COLORS[0] if rank[i] > 0.5 else "0.6",
                alpha=0.15 + 0.75 * rank[i] ** 2,
            )
        axes.set_xticks(range(len(heights)), [*(key.rpartition(".")[2] for key in keys), metric])
        for x, (low, high) in enumerate(ends):
            axes.axvline(x, color="0.8", lw=0.8, zorder=0)
            axes.text(x, -0.03, low, ha="center", va="top", fontsize=8)
            axes.text(x, 1.03, high, ha="center", va="bottom", fontsize=8)
        axes.set_ylim(-0.15, 1.15)
        axes.yaxis.set_visible(False)
        return svg(canvas)


def _coordinates(values: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """Return the values as numbers (N,); values of other types as indices into their sorted names, which come second."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return np.array(values, float), []
    names = sorted({_short(v) for v in values})
    return np.array([names.index(_short(v)) for v in values], float), names


def _measured(rows: Sequence[Row], state: str, metric: str) -> list[Row]:
    return [row for row in rows if row["state"] == state and _mean(row, metric) is not None]


def _spread(row: Row, metric: str) -> dict[str, Any]:
    return spread(list(row["draws"].get(metric, {}).values()))


def _mean(row: Row, metric: str) -> float | None:
    return _spread(row, metric)["mean"]


def _percents(rows: Sequence[Row], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of each trial over its draws, in percent, (N,) each."""
    spreads = [_spread(row, metric) for row in rows]
    percents = np.array([[100 * (values[key] or 0) for key in ("mean", "std")] for values in spreads]).reshape(-1, 2)
    return percents[:, 0], percents[:, 1]


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else escape_invisible(str(value)[:60])
