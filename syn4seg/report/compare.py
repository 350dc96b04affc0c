"""The comparison of runs: one HTML page with the settings, scores, classes, funnel steps and sample labels that differ."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.loading import load
from syn4seg.config.tree import Config, flatten
from syn4seg.errors import UserError
from syn4seg.report import charts, numbers
from syn4seg.report.gallery import PAGE, Gallery, describe_sample, fair_order
from syn4seg.report.html import chart, environment, gallery_section, style
from syn4seg.report.page import funnel_table, select_draw
from syn4seg.report.reading import GallerySample, exact_class_names, read_pages, read_records
from syn4seg.report.sheets import class_colors
from syn4seg.schema import FAULT, UNLABELED
from syn4seg.store.files import as_path, write_atomically
from syn4seg.store.partials import remove_abandoned
from syn4seg.store.rundir import RunDir
from syn4seg.terminal import TITLES, format_percent, sort_rows, table_columns

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

DIFFERS = "#d55e00"
"""Colour of the pixels whose labels differ."""
MOST = 5000
"""Number of samples whose labels a page compares."""


def write_comparison(
    runs: Sequence[RunDir], draw: int | None, to: str, progress: Callable[[int, int], None]
) -> tuple[AnyPath, list[str], list[str]]:
    """Write the page.

    Args:
        runs: two or more; the first is the yardstick, and samples are those of the first two.
        draw: whose samples are compared; None: the first of the first run.
        to: file to write.
        progress: called with (done, total) samples.

    Returns:
        The file, sentences for the terminal, and one line for each file that is damaged or missing.

    Raises:
        UserError: there are fewer than two runs, their classes differ, or the data set of an unfinished run is missing.
        OSError: the file cannot be written.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run given: expected two or more, RUN_A RUN_B ...")
    configs, labels = [load(run.config) for run in runs], _run_names(runs)
    names = exact_class_names(runs[0], configs[0])
    for run, config in zip(runs[1:], configs[1:], strict=True):
        if exact_class_names(run, config) != names:
            raise UserError(
                f"{run.root}: its classes are not those of {runs[0].root} (data.source or data.fold differs), so "
                "neither scores nor labels can be compared; give runs of the same data set and fold"
            )
    for run, config in zip(runs, configs, strict=True):
        draw = select_draw(config, draw, run)
    assert draw is not None
    results, records = [numbers.read_results(run) for run in runs], [read_records(run, draw) for run in runs]
    gallery, matched = _differing_samples(runs[:2], draw, records[:2], names, progress)
    panes = [{"title": labels[i], "photo": ("image", "other")[i], "label": "ab"[i], "who": "who"} for i in range(2)]
    table, sentences = _result_table(results, labels)
    values = gallery_section(gallery, names, panes, [("the labels differ", DIFFERS)], "where they differ") | {
        "runs": [
            {"name": name, "unfinished": _unfinished(run, config)} for name, run, config in zip(labels, runs, configs, strict=True)
        ],
        "settings": _differing_settings(configs),
        "table": table,
        "sentences": sentences,
        "charts": _charts(results, labels),
        "draw": draw,
        "style": style(),
        "funnel": _funnels(runs, records),
        "matched": matched,
        "damage": gallery.damage,
        "warnings": _warnings(results, labels),
    }
    target = as_path(to)
    remove_abandoned(target.parent, target.name)
    write_atomically(target, environment().get_template("compare.html").render(values).encode("utf-8"))
    return target, [*sentences, *matched], gallery.damage


def _run_names(runs: Sequence[RunDir]) -> list[str]:
    """Return the names of the runs' folders, or their whole paths where two names are the same."""
    names = [run.root.absolute().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.root) for run in runs]


def _unfinished(run: RunDir, config: Config) -> str:
    steps = numbers.run_progress(run, config)
    return ", ".join(f"{what} {done} of {planned or '?'}" for what, done, planned in steps if done < max(1, planned))


def _differing_settings(configs: Sequence[Config]) -> list[tuple[str, list[str]]]:
    settings = [flatten(config.science()) for config in configs]
    keys = sorted(key for key in set().union(*settings) if len({str(values.get(key)) for values in settings}) > 1)
    return [(key, [str(values.get(key, "-")) for values in settings]) for key in keys]


def _warnings(results: Sequence[dict[str, Any] | None], labels: Sequence[str]) -> list[str]:
    """Return a line for each run whose scores cannot be compared with those of the first, because the protocol differs."""
    warnings, first = [], results[0]
    for label, result in zip(labels[1:], results[1:], strict=True):
        if first and result:
            ignored = ("generator", "deviations")
            keys = [k for k, v in first["protocol"].items() if k not in ignored and result["protocol"].get(k) != v]
            if keys:
                warnings.append(
                    f"{label} was scored under another protocol ({', '.join(keys)}): its numbers and those of {labels[0]} "
                    "do not answer the same question."
                )
    return warnings


def _result_table(
    results: Sequence[dict[str, Any] | None], labels: Sequence[str]
) -> tuple[list[tuple[str, str, list[str]]], list[str]]:
    """Return (row, metric, values and differences) of every row of a run, and sentences about the last row for the terminal."""
    present = [result for result in results if result]
    if len(present) < 2:
        return [], ["fewer than two of the runs have results; scores are not compared"]
    rows = sort_rows({row for result in present for row in result["rows"]})
    table, sentences = [], []
    for row in rows:
        for title, metric in table_columns(present[0]["protocol"]).items():
            spreads = [result["rows"].get(row, {}).get(metric) if result else None for result in results]
            percents = [format_percent(spread) if spread else "-" for spread in spreads]
            values = percents[:1]
            for percent, spread in zip(percents[1:], spreads[1:], strict=True):
                values += [percent, _difference(spreads[0], spread)]
            table.append((TITLES.get(row, row), title, values))
            if row == rows[-1] and metric == "novel":
                scores = ", ".join(f"{label} {percent}" for label, percent in zip(labels, percents, strict=True))
                sentences = [f"{TITLES.get(row, row)}, novel mIoU: {scores}"]
    if table and all(value in ("+0.0", values[0]) for _, _, values in table for value in values[1:]):
        sentences.append("every score is the same")
    return table, sentences


def _difference(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    if not before or not after or before["mean"] is None or after["mean"] is None:
        return "-"
    return f"{100 * (after['mean'] - before['mean']):+.1f}"


def _charts(results: Sequence[dict[str, Any] | None], labels: Sequence[str]) -> list[Any]:
    figures, first = [], results[0]
    for label, result in zip(labels[1:], results[1:], strict=True):
        common = sort_rows(first["per_class"].keys() & result["per_class"].keys()) if first and result else []
        if not first or not result or not common:
            continue
        before, after = first["per_class"][common[-1]], result["per_class"][common[-1]]
        gains = {
            name: 100 * (after[name]["mean"] - before[name]["mean"])
            for name in before
            if before[name]["mean"] is not None and after.get(name, {}).get("mean") is not None
        }
        if any(gains.values()):
            title, text = TITLES.get(common[-1], common[-1]), "blue is a gain over the first run."
            svg = charts.deltas(gains, "difference in points")
            figures.append(chart(f"IoU by class: {label} minus {labels[0]}", svg, f"{title}; {text}"))
    return figures


def _funnels(runs: Sequence[RunDir], records: Sequence[pa.Table]) -> list[tuple[str, list[Any]]]:
    columns = [funnel_table(run, table) for run, table in zip(runs, records, strict=True)]
    steps = dict.fromkeys(step for column in columns for step in column)
    return [(step, [column.get(step, "-") for column in columns]) for step in steps]


def _differing_samples(
    runs: Sequence[RunDir], draw: int, records: Sequence[pa.Table], names: Sequence[str], progress: Callable[[int, int], None]
) -> tuple[Gallery, list[str]]:
    """Return at most `MOST` common samples of two runs whose final labels or verdicts differ, and a sentence with all counts."""
    a, b = (table.filter(pc.invert(pc.starts_with(table["reason"], FAULT))).sort_by("sample_id") for table in records)
    a, b = (x.filter(pc.is_in(x["sample_id"], y["sample_id"].combine_chunks())) for x, y in ((a, b), (b, a)))
    images, labels = (pc.not_equal(pc.fill_null(a[key], ""), pc.fill_null(b[key], "")) for key in ("image", "label"))
    verdicts = pc.not_equal(pc.equal(a["reason"], ""), pc.equal(b["reason"], ""))
    counts = [pc.sum(column).as_py() or 0 for column in (images, labels, verdicts)]
    line = "{} samples are in both; {} have another image, {} another label, {} are accepted in one of the two only."
    differs = pc.or_(labels, verdicts)
    lines, a, b = [line.format(len(a), *counts)], a.filter(differs), b.filter(differs)
    order, colors, labels_of = fair_order(a)[:MOST], class_colors(len(names)), _run_names(runs)
    layers = {"image": (), "other": (), "a": colors, "b": colors, "who": ("#000000", DIFFERS)}
    gallery = Gallery(layers, len(order), len(a))
    if len(order):
        pages = (read_pages(run, draw, table.take(order), PAGE) for run, table in zip(runs, (a, b), strict=True))
        pairs = (zip(x, y, strict=True) for x, y in zip(*pages, strict=True))
        gallery.fill(pairs, _layers_of, lambda pair: _describe_pair(pair[0], pair[1], names, labels_of), progress)
    return gallery, lines


def _difference_mask(x: GallerySample, y: GallerySample) -> np.ndarray | None:
    """Return uint8 (H, W): 1 where the final labels of two runs differ; None if a label is missing or their sizes differ."""
    a, b = x.labels.get("label"), y.labels.get("label")
    return None if a is None or b is None or a.shape != b.shape else (a != b).astype(np.uint8)


def _layers_of(pair: tuple[GallerySample, GallerySample]) -> dict[str, np.ndarray]:
    x, y = pair
    layers = {"image": x.image, "other": y.image, "a": x.labels.get("label"), "b": y.labels.get("label")}
    return {layer: pixels for layer, pixels in (layers | {"who": _difference_mask(x, y)}).items() if pixels is not None}


def _describe_pair(x: GallerySample, y: GallerySample, names: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Return the facts about the first run's sample, with the differences of the second run's as `lines`."""
    item, mask = describe_sample(x), _difference_mask(x, y)
    if damage := x.damage or y.damage:
        item["damage"] = damage
    item["stages"] = [layer for layer, sample in (("a", x), ("b", y)) if "label" in sample.labels]
    verdicts = [f"{label}: {s.record.get('reason', '') or 'accepted'}" for label, s in zip(labels, (x, y), strict=True)]
    item["lines"], item["changed"] = ["; ".join(verdicts) + "."], 1.0 if mask is None else round(float(mask.mean()), 4)
    if mask is None:
        missing = [label for label, s in zip(labels, (x, y), strict=True) if "label" not in s.labels]
        why = f"{' and '.join(missing)} has no final label" if missing else "the images have other sizes"
        item["lines"].append(f"The labels cannot be laid over each other: {why}.")
    else:
        item["lines"].append(f"{100 * item['changed']:.1f} % of the pixels have another label.")
        changes = np.stack([sample.labels["label"][mask == 1] for sample in (x, y)])
        pairs, counts = np.unique(changes, axis=1, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:4]
        item["lines"] += [f"{counts[i]} pixels: {_name(pairs[0, i], names)} became {_name(pairs[1, i], names)}." for i in most]
    return item


def _name(code: int, names: Sequence[str]) -> str:
    return "unlabeled" if code == UNLABELED else names[code] if code < len(names) else f"class {code}"
