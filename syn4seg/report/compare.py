"""What differs between runs, as one HTML page: settings, scores, classes, funnel, and the samples whose labels differ."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.loading import load
from syn4seg.config.tree import flatten
from syn4seg.errors import UserError
from syn4seg.report import charts, numbers
from syn4seg.report.gallery import AT_ONCE, BUDGET, SIDES, Gallery, describe_sample, encode_layer, fair_order, iter_sheets
from syn4seg.report.html import chart, environment, gallery_section, style
from syn4seg.report.page import funnel_table, select_draw
from syn4seg.report.reading import GallerySample, exact_class_names, read_pages, read_records
from syn4seg.report.sheets import class_colors, encode_labels, shrink, tile
from syn4seg.schema import FAULT, UNLABELED
from syn4seg.store.files import as_path, write_atomically
from syn4seg.store.rundir import RunDir
from syn4seg.terminal import TITLES, format_percent, sort_rows, table_columns

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

DIFFERS = "#d55e00"
MOST = 5000
"""Samples of which a page looks for the labels."""


def write_comparison(
    runs: Sequence[RunDir], draw: int | None, to: str, progress: Callable[[int, int], None]
) -> tuple[AnyPath, list[str], list[str]]:
    """Writes the page.

    Args:
        runs: two or more; the first is the yardstick, and samples are those of the first two.
        draw: whose samples are compared; None: the first of the first run.
        to: file to write.
        progress: told (samples, of how many).

    Returns:
        The file, sentences for the terminal, and one line for each file that is damaged or missing.

    Raises:
        UserError: there are fewer than two runs, their classes differ, or an unfinished run's data set is not there.
        OSError: the file cannot be written.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run given: expected two or more, RUN_A RUN_B ...")
    configs, labels = [load(run.config) for run in runs], _labels(runs)
    names = exact_class_names(runs[0], configs[0])
    for run, config in zip(runs[1:], configs[1:], strict=True):
        if exact_class_names(run, config) != names:
            raise UserError(
                f"{run.root}: its classes are not those of {runs[0].root} (data.source or data.fold differs), so "
                "neither scores nor labels can be compared; give runs of the same data set and fold"
            )
    draw = select_draw(configs[0], draw, runs[0])
    for run, config in zip(runs[1:], configs[1:], strict=True):
        select_draw(config, draw, run)
    results = [numbers.read_results(run) for run in runs]
    records = [read_records(run, draw) for run in runs]
    made, matched = _differing(runs[:2], draw, records[:2], names, progress)
    panes = [
        {"title": labels[0], "photo": "image", "label": "a", "who": "who"},
        {"title": labels[1], "photo": "other", "label": "b", "who": "who"},
    ]
    table, sentences = _table(results, labels)
    values = gallery_section(
        made, names, class_colors(len(names)), panes, [("the labels differ", DIFFERS)], "where they differ"
    ) | {
        "runs": [
            {
                "name": label,
                "unfinished": ", ".join(
                    f"{what} {done} of {planned or '?'}"
                    for what, done, planned in numbers.run_progress(run, config)
                    if done < max(1, planned)
                ),
            }
            for label, run, config in zip(labels, runs, configs, strict=True)
        ],
        "settings": _settings(configs),
        "table": table,
        "sentences": sentences,
        "charts": _charts(results, labels),
        "draw": draw,
        "style": style(),
        "funnel": _funnels(runs, records),
        "matched": matched,
        "damage": made.damage,
        "warnings": _warnings(results, labels),
    }
    target = as_path(to)
    write_atomically(target, environment().get_template("compare.html").render(values).encode("utf-8"))
    return target, [*sentences, *matched], made.damage


def _labels(runs: Sequence[RunDir]) -> list[str]:
    """Names of the runs' folders; with their places where two are the same."""
    names = [run.root.absolute().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.root) for run in runs]


def _settings(configs: Sequence[Any]) -> list[tuple[str, list[str]]]:
    flat = [flatten(config.science()) for config in configs]
    keys = sorted({key for one in flat for key in one})
    return [(key, [str(one.get(key, "-")) for one in flat]) for key in keys if len({str(one.get(key)) for one in flat}) > 1]


def _warnings(results: Sequence[dict[str, Any] | None], labels: Sequence[str]) -> list[str]:
    """What makes numbers of different runs no match: another protocol, other draws."""
    found, first = [], results[0]
    for label, result in zip(labels[1:], results[1:], strict=True):
        if first and result:
            theirs, ignored = result["protocol"], ("generator", "deviations")
            keys = [k for k, v in first["protocol"].items() if k not in ignored and theirs.get(k) != v]
            if keys:
                found.append(
                    f"{label} was scored under another protocol ({', '.join(keys)}): its numbers and those of {labels[0]} "
                    "do not answer the same question."
                )
    return found


def _table(results: Sequence[dict[str, Any] | None], labels: Sequence[str]) -> tuple[list[tuple[str, str, list[str]]], list[str]]:
    """(row, metric, values and differences) of every row that a run has; and a sentence about the last row for the terminal."""
    there = [result for result in results if result]
    if len(there) < 2:
        return [], ["fewer than two of the runs have results; scores are not compared"]
    columns, rows = (table_columns(there[0]["protocol"]), sort_rows({row for result in there for row in result["rows"]}))
    table, sentences = [], []
    for row in rows:
        for title, metric in columns.items():
            spreads = [result["rows"].get(row, {}).get(metric) if result else None for result in results]
            values = [format_percent(spreads[0]) if spreads[0] else "-"]
            for spread in spreads[1:]:
                values += [format_percent(spread) if spread else "-", _difference(spreads[0], spread)]
            table.append((TITLES.get(row, row), title, values))
            if row == rows[-1] and metric == "novel":
                told = [f"{label} {format_percent(s) if s else '-'}" for label, s in zip(labels, spreads, strict=True)]
                sentences = [f"{TITLES.get(row, row)}, novel mIoU: {', '.join(told)}"]
    shown = [values for _, _, values in table]
    if shown and all(value in ("+0.0", values[0]) for values in shown for value in values[1:]):
        sentences.append("every score is the same")
    return table, sentences


def _difference(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    if not before or not after or before["mean"] is None or after["mean"] is None:
        return "-"
    return f"{100 * (after['mean'] - before['mean']):+.1f}"


def _charts(results: Sequence[dict[str, Any] | None], labels: Sequence[str]) -> list[Any]:
    found, first = [], results[0]
    for label, result in zip(labels[1:], results[1:], strict=True):
        if not first or not result:
            continue
        common = sort_rows(first["per_class"].keys() & result["per_class"].keys())
        if not common:
            continue
        before, after = (r["per_class"][common[-1]] for r in (first, result))
        gains = {
            name: 100 * (after[name]["mean"] - before[name]["mean"])
            for name in before
            if before[name]["mean"] is not None and after.get(name, {}).get("mean") is not None
        }
        if any(gains.values()):
            found.append(
                chart(
                    f"IoU by class: {label} minus {labels[0]}",
                    charts.deltas(gains, "difference in points"),
                    f"{TITLES.get(common[-1], common[-1])}; blue is a gain over the first run.",
                )
            )
    return found


def _funnels(runs: Sequence[RunDir], records: Sequence[pa.Table]) -> list[tuple[str, list[Any]]]:
    columns = [funnel_table(run, table) for run, table in zip(runs, records, strict=True)]
    steps = dict.fromkeys(step for column in columns for step in column)
    return [(step, [column.get(step, "-") for column in columns]) for step in steps]


# -------------------------------------------------------------------------------------------------------- samples
def _differing(
    runs: Sequence[RunDir], draw: int, records: Sequence[pa.Table], names: Sequence[str], progress: Callable[[int, int], None]
) -> tuple[Gallery, list[str]]:
    """The samples that two runs both have and whose final labels or verdicts differ: classes in turn, at most `MOST`."""
    whole = [t.filter(pc.invert(pc.starts_with(t["reason"], FAULT))) for t in records]
    common = [t.filter(pc.is_in(t["sample_id"], o["sample_id"].combine_chunks())) for t, o in zip(whole, whole[::-1], strict=True)]
    a, b = (table.sort_by("sample_id") for table in common)
    other_image, other_label = (pc.not_equal(pc.fill_null(a[key], ""), pc.fill_null(b[key], "")) for key in ("image", "label"))
    turned = pc.not_equal(pc.equal(a["reason"], ""), pc.equal(b["reason"], ""))
    images, labels, verdicts = (pc.sum(column).as_py() or 0 for column in (other_image, other_label, turned))
    lines = [
        f"{len(a)} samples are in both; {images} have another image, {labels} another label, {verdicts} are accepted in "
        "one of the two only."
    ]
    differs = pc.or_(other_label, turned)
    a, b = a.filter(differs), b.filter(differs)
    order = fair_order(a)[:MOST]
    made = Gallery(next(side for most, side in SIDES if len(order) <= most), total=len(a))
    if not len(order):
        return made, lines
    colors, spent, which = class_colors(len(names)), 0, _labels(runs)
    two = (read_pages(run, draw, table.take(order), AT_ONCE) for run, table in zip(runs, (a, b), strict=True))
    both = (list(zip(x, y, strict=True)) for x, y in zip(*two, strict=True))
    for thumbs, items in iter_sheets(
        both, lambda pair: _thumbs(pair[0], pair[1], made.side), lambda pair: _item(pair[0], pair[1], names, which)
    ):
        urls = {layer: encode_layer(layer, thumbs, made.side, colors) for layer in ("image", "other", "a", "b")}
        urls["who"] = encode_labels(tile([one.get("who") for one in thumbs], made.side), ["#000000", DIFFERS])
        spent += sum(map(len, urls.values())) + len(json.dumps(items))
        if spent > BUDGET:
            break
        for layer, url in urls.items():
            made.sheets.setdefault(layer, []).append(url)
        made.items += items
        made.damage += [item["damage"] for item in items if "damage" in item]
        progress(len(made.items), len(order))
    return made, lines


def _where(x: GallerySample, y: GallerySample) -> np.ndarray | None:
    """Codes uint8 (H, W): 1 where the final labels of two runs differ; None if they cannot be laid over each other."""
    a, b = x.labels.get("label"), y.labels.get("label")
    return None if a is None or b is None or a.shape != b.shape else (a != b).astype(np.uint8)


def _thumbs(x: GallerySample, y: GallerySample, side: int) -> dict[str, np.ndarray]:
    found = {"image": x.image, "other": y.image, "a": x.labels.get("label"), "b": y.labels.get("label"), "who": _where(x, y)}
    return {layer: shrink(pixels, side) for layer, pixels in found.items() if pixels is not None}


def _item(x: GallerySample, y: GallerySample, names: Sequence[str], which: Sequence[str]) -> dict[str, Any]:
    """The first run's sample, with what the second one says about it as `lines`."""
    item, where = describe_sample(x), _where(x, y)
    if damage := x.damage or y.damage:
        item["damage"] = damage
    item["stages"] = [layer for layer, shown in (("a", x), ("b", y)) if "label" in shown.labels]
    verdicts = [f"{name}: {s.record.get('reason', '') or 'accepted'}" for name, s in zip(which, (x, y), strict=True)]
    item["lines"], item["changed"] = (["; ".join(verdicts) + "."], 1.0 if where is None else round(float(where.mean()), 4))
    if where is None:
        lacks = [name for name, s in zip(which, (x, y), strict=True) if "label" not in s.labels]
        why = f"{' and '.join(lacks)} has no final label" if lacks else "the images have other sizes"
        item["lines"].append(f"The labels cannot be laid over each other: {why}.")
    else:
        item["lines"].append(f"{100 * item['changed']:.1f} % of the pixels have another label.")
        a, b = x.labels["label"], y.labels["label"]
        pairs, counts = np.unique(np.stack([a[where == 1], b[where == 1]]), axis=1, return_counts=True)
        best = np.argsort(-counts, kind="stable")[:4]
        item["lines"] += [f"{counts[i]} pixels: {_name(pairs[0, i], names)} became {_name(pairs[1, i], names)}." for i in best]
    return item


def _name(code: int, names: Sequence[str]) -> str:
    return "unlabeled" if code == UNLABELED else names[code] if code < len(names) else f"class {code}"
