"""The report of a sweep: one HTML page with its figures inside, which needs no network and nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from syn4seg.report.style import COLORS, STYLE, figure, svg
from syn4seg.store.files import write_atomically

BINS = 8
"""Bins of a curve over a range that was searched and not enumerated."""
TOP = 25
"""Trials in the table."""

Row = dict[str, Any]
"""A trial: number, state, params, draws (metric -> draw -> value in [0, 1]), reports, seconds, error."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sweep: {{ title }}</title>
<style>{{ style | safe }}</style>
<main>
<h1>Sweep: {{ title }}</h1>
{% if test %}
<p class="alarm" role="alert">The objective was measured on the TEST LIST. What is chosen here cannot be reported as a
result on it.</p>
{% endif %}
<p>{{ summary.trials }} trials: {{ summary.complete }} complete, {{ summary.pruned }} stopped early, {{ summary.failed }} failed.
Objective: {{ objective }}, measured on the {{ summary.on }}{% if not test %} ({{ study.validation.novel_images }} annotated images
per novel class beyond the support set, {{ study.validation.base_images }} base images){% endif %}. Values are mIoU in percent;
&plusmn; is the standard deviation over support draws.</p>
{% if summary.best %}
<h2>Best and default</h2>
<div class="scroll"><table>
<thead><tr><th>trial</th>{% for m in metrics %}<th>{{ m }}</th>{% endfor %}<th>values</th></tr></thead>
<tbody>
{% for name, told in chosen %}
<tr><th scope="row">{{ name }} ({{ told.number }})</th>
{% for m in metrics %}<td>{{ told["values"][m] | percent }}</td>{% endfor %}
<td class="left">{% for k, v in told.params.items() %}{{ k }}={{ v | short }} {% endfor %}</td></tr>
{% endfor %}
</tbody></table></div>
{% for line in verdicts %}<p>{{ line }}</p>{% endfor %}
{% endif %}
{% for chart in charts %}
<figure><figcaption>{{ chart.title }}</figcaption><div class="chart">{{ chart.svg | safe }}</div><p>{{ chart.text }}</p></figure>
{% endfor %}
<h2>Trials</h2>
<div class="scroll"><table>
<thead><tr><th>trial</th><th>state</th>{% for m in metrics %}<th>{{ m }}</th>{% endfor %}
{% for k in keys %}<th>{{ k }}</th>{% endfor %}<th>s</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row.number }}</th><td class="left">{{ row.state }}{% if row.error %}: {{ row.error }}{% endif %}</td>
{% for m in metrics %}<td>{{ row.shown[m] }}</td>{% endfor %}
{% for k in keys %}<td>{{ row.params.get(k) | short }}</td>{% endfor %}<td>{{ "%.1f" | format(row.seconds) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if more %}<p>{{ more }} more trials are in trials.parquet.</p>{% endif %}
</main>
</html>
"""


def write_sweep_report(
    path: Path, study: dict[str, Any], summary: dict[str, Any], rows: Sequence[Row], verdicts: Sequence[str]
) -> None:
    """Writes the page.

    Args:
        study: as plain values.
        summary: what came out of it, as summary.json.
        rows: every trial that ended.
        verdicts: sentences about the best and the default.
    """
    metrics = [name.removeprefix("test.") for name in study["objective"]]
    keys = list(study["space"])
    chosen = [(name, summary[key]) for name, key in (("best", "best"), ("default", "default")) if key in summary]
    ranked = sorted(rows, key=lambda row: (row["state"] != "complete", -(_mean(row, metrics[0]) or -1), row["number"]))
    shown = [row | {"shown": {m: _percent(_spread(row, m)) for m in metrics}} for row in ranked[:TOP]]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "short": _short}
    page = environment.from_string(PAGE).render(
        title=study["title"] or "study",
        test=study["objective"][0].startswith("test."),
        study=study,
        summary=summary,
        style=STYLE,
        objective=", ".join(study["objective"]),
        metrics=metrics,
        keys=keys,
        chosen=chosen,
        verdicts=verdicts,
        rows=shown,
        more=max(0, len(rows) - TOP),
        charts=draw_charts(metrics, keys, summary, rows),
    )
    write_atomically(path, page.encode())


def draw_charts(metrics: Sequence[str], keys: Sequence[str], summary: dict[str, Any], rows: Sequence[Row]) -> list[dict[str, str]]:
    """Title, SVG and a sentence for every figure that the trials suffice for."""
    done = [row for row in rows if row["state"] == "complete" and _mean(row, metrics[0]) is not None]
    if len(done) < 2:
        return []
    found = [
        {
            "title": "History",
            "svg": _history(metrics[0], rows),
            "text": f"{metrics[0]} of every trial in the order of their numbers; the line is the best so far, bars are the "
            "spread over draws, crosses were stopped early.",
        }
    ]
    if len(metrics) > 1:
        found.append(
            {
                "title": "Pareto front",
                "svg": _front(metrics, done, summary),
                "text": "Every complete trial; those on the line are beaten by no other in both objectives.",
            }
        )
    for metric, shares in summary["importance"].items():
        if shares:
            found.append(
                {
                    "title": f"Importance for {metric}",
                    "svg": _importance(shares),
                    "text": "Share of each key in the variance of the objective (fANOVA on the complete trials).",
                }
            )
    for key in keys:
        if len({_short(row["params"].get(key)) for row in done}) > 1:
            found.append(
                {
                    "title": f"{metrics[0]} over {key}",
                    "svg": _curve(metrics[0], key, done),
                    "text": "Dots are trials with their spread over draws; the line is the mean, the band the standard deviation "
                    "of the trials at a value (or in a bin of a range).",
                }
            )
    if len(keys) > 1:
        found.append(
            {
                "title": "Parallel coordinates",
                "svg": _parallel(metrics[0], keys, done),
                "text": f"One line per trial, from low ({metrics[0]}) in grey to high in blue.",
            }
        )
    return found


# ------------------------------------------------------------------------------------------------------- figures
def _history(metric: str, rows: Sequence[Row]) -> str:
    with figure(8, 3.2) as (canvas, axes):
        for state, marker, color in (("complete", "o", COLORS[0]), ("pruned", "x", COLORS[3])):
            some = [row for row in rows if row["state"] == state and _mean(row, metric) is not None]
            axes.errorbar(
                [r["number"] for r in some],
                [100 * (_mean(r, metric) or 0) for r in some],
                yerr=[100 * _spread(r, metric)["std"] for r in some],
                fmt=marker,
                color=color,
                ms=4,
                lw=1,
                alpha=0.7,
            )
        done = [row for row in rows if row["state"] == "complete" and _mean(row, metric) is not None]
        best = np.maximum.accumulate([100 * (_mean(r, metric) or 0) for r in done])
        axes.step([r["number"] for r in done], best, where="post", color=COLORS[1], lw=1.5)
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{metric} (%)")
        return svg(canvas)


def _front(metrics: Sequence[str], done: Sequence[Row], summary: dict[str, Any]) -> str:
    with figure(5, 4) as (canvas, axes):
        points = np.array([[100 * (_mean(row, m) or 0) for m in metrics[:2]] for row in done])
        axes.scatter(points[:, 0], points[:, 1], s=14, color=COLORS[0], alpha=0.5)
        best = np.array([[100 * told["values"][m]["mean"] for m in metrics[:2]] for told in summary["front"]])
        axes.plot(best[:, 0], best[:, 1], "-o", color=COLORS[1], ms=5)
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
    values, means, spreads = [], [], []
    for row in done:
        values.append(row["params"][key])
        means.append(100 * (_mean(row, metric) or 0))
        spreads.append(100 * _spread(row, metric)["std"])
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    names = [] if numbers else sorted({_short(v) for v in values})
    places = np.array(values, float) if numbers else np.array([names.index(_short(v)) for v in values], float)
    with figure(5, 3.4) as (canvas, axes):
        axes.errorbar(places, means, yerr=spreads, fmt="o", ms=3.5, lw=0.8, color=COLORS[0], alpha=0.55)
        groups = bin_means(places, np.array(means))
        if len(groups) > 1:
            x, middle, width = (np.array(column) for column in zip(*groups, strict=True))
            axes.plot(x, middle, color=COLORS[1], lw=1.8)
            axes.fill_between(x, middle - width, middle + width, color=COLORS[1], alpha=0.2, lw=0)
        if names:
            axes.set_xticks(range(len(names)), names)
        axes.set_xlabel(key)
        axes.set_ylabel(f"{metric} (%)")
        return svg(canvas)


def bin_means(places: np.ndarray, values: np.ndarray) -> list[tuple[float, float, float]]:
    """(place, mean, standard deviation) of the values at each place, or in `BINS` equally filled bins where places are many."""
    order = np.argsort(places, kind="stable")
    places, values = places[order], values[order]
    distinct = np.unique(places)
    if len(distinct) <= max(BINS, len(places) // 2):
        parts = [np.flatnonzero(places == place) for place in distinct]
    else:
        parts = [part for part in np.array_split(np.arange(len(places)), BINS) if len(part)]
    return [(float(places[p].mean()), float(values[p].mean()), float(values[p].std(ddof=1)) if len(p) > 1 else 0.0) for p in parts]


def _parallel(metric: str, keys: Sequence[str], done: Sequence[Row]) -> str:
    columns = []
    for key in keys:
        values = [row["params"].get(key) for row in done]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            numbers = np.array(values, float)
            labels = (_short(numbers.min()), _short(numbers.max()))
        else:
            names = sorted({_short(v) for v in values})
            numbers, labels = np.array([names.index(_short(v)) for v in values], float), (names[0], names[-1])
        span = np.ptp(numbers) or 1.0
        columns.append(((numbers - numbers.min()) / span, labels))
    scores = np.array([_mean(row, metric) or 0.0 for row in done])
    rank = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    with figure(8, 3.4) as (canvas, axes):
        for i in np.argsort(rank):
            axes.plot(
                range(len(keys) + 1),
                [*(column[i] for column, _ in columns), rank[i]],
                lw=0.5 + 1.5 * rank[i] ** 3,
                color=COLORS[0] if rank[i] > 0.5 else "0.6",
                alpha=0.15 + 0.75 * rank[i] ** 2,
            )
        axes.set_xticks(range(len(keys) + 1), [*(key.rpartition(".")[2] for key in keys), metric])
        ends = [*(labels for _, labels in columns), (f"{100 * scores.min():.1f}", f"{100 * scores.max():.1f}")]
        for x, (low, high) in enumerate(ends):
            axes.axvline(x, color="0.8", lw=0.8, zorder=0)
            axes.text(x, -0.03, low, ha="center", va="top", fontsize=8)
            axes.text(x, 1.03, high, ha="center", va="bottom", fontsize=8)
        axes.set_ylim(-0.15, 1.15)
        axes.yaxis.set_visible(False)
        return svg(canvas)


# -------------------------------------------------------------------------------------------------------- values
def _spread(row: Row, metric: str) -> dict[str, Any]:
    from syn4seg.stages.results import spread

    return spread(list(row["draws"].get(metric, {}).values()))


def _mean(row: Row, metric: str) -> float | None:
    return _spread(row, metric)["mean"]


def _percent(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "-"
    return f"{100 * value['mean']:.1f}" + (f" ± {100 * value['std']:.1f}" if value["n"] > 1 else "")


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)[:60]
