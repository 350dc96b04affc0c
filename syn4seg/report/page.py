"""The report of a run: one HTML page that needs no network, with thumbnails inside and full pictures in the run directory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from syn4seg.baselines import title_of
from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.errors import DamagedError, UserError
from syn4seg.report import charts, numbers
from syn4seg.report.gallery import build_gallery, full_image_paths
from syn4seg.report.groups import BACKGROUNDS, PROMPTS, by_key, figures_of
from syn4seg.report.html import REASON_TEXTS, chart, environment, gallery_section, script, style
from syn4seg.report.outcome import draw_outcome, read_outcome
from syn4seg.report.reading import STAGE_TITLES, class_names, read_records
from syn4seg.report.sheets import WHO, WHO_COLORS, class_colors
from syn4seg.stages.setup import draws_of
from syn4seg.store.files import as_path, write_atomically
from syn4seg.store.partials import remove_abandoned
from syn4seg.store.readback import Facts, read_checked
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import broken_seals
from syn4seg.terminal import TITLES, format_percent, result_notes, sort_rows, table_columns

if TYPE_CHECKING:
    import pyarrow as pa

    from syn4seg.store.files import AnyPath

NOTES = 50
"""Number of quarantined samples that a page lists."""
PROMPT_ROWS = 100
"""Number of prompts of a class, accepted and refused, that a page lists."""


def write_report(run: RunDir, draw: int | None, to: str | None, progress: Callable[[int, int], None]) -> tuple[AnyPath, list[str]]:
    """Write the page of a run.

    Args:
        draw: whose samples are shown; None: the run's first.
        to: file to write; None: report.html in the run directory.
        progress: called with (done, total) samples.

    Returns:
        The file, and one line for each file of the run that is damaged or missing.

    Raises:
        UserError: the run has no such draw, or one of its tables is damaged.
        OSError: the file cannot be written.
    """
    target = as_path(to) if to is not None else run.root / "report.html"
    page, damage = make_report(run, draw, target, progress)
    remove_abandoned(target.parent, target.name)
    write_atomically(target, page)
    return target, damage


def make_report(
    run: RunDir, draw: int | None, target: AnyPath, progress: Callable[[int, int], None], live: str = ""
) -> tuple[bytes, list[str]]:
    """Return the page that `write_report` writes, and the lines about damaged files.

    Args:
        target: where the page will lie, or seem to lie: its links to pictures start there.
        live: version of the page of a server, which loads itself again when there is another one; "" for a file.
    """
    config = load(run.config)
    draw = select_draw(config, draw, run)
    records, names = read_records(run, draw), class_names(run, config)
    truth, prompt_map = numbers.truth_source(config), numbers.prompt_map(run)
    gallery = build_gallery(run, draw, records, class_colors(len(names)), progress, truth)
    panes = [{"title": "image", "photo": "image"}]
    panes += [{"title": title, "photo": "image", "label": stage, "who": "who"} for stage, title in STAGE_TITLES.items()]
    panes += [] if truth is None else [{"title": "truth", "photo": "image", "label": "truth"}]
    values = gallery_section(
        gallery,
        names,
        panes,
        list(zip(WHO, WHO_COLORS, strict=True))[1:],
        "who decided",
        files=_relative_paths(run, target, full_image_paths(run, draw)),
        beside=target.absolute().parent.name,
        map=prompt_map,
        words=_reason_texts(config),
        settings={"min_agreement": config.refinement.min_agreement},
    )
    quarantined, damage = _quarantine_notes(run)
    damage = [*broken_seals(run.root, missing=False), *gallery.damage, *damage]
    values |= _group_values(records, gallery.items)
    values |= _values(run, config, draw, records, names) | {"damage": damage, "map": prompt_map, "quarantined": quarantined}
    values |= {"live": live, "live_script": script("live.js")}
    return environment().get_template("report.html").render(values).encode("utf-8"), damage


def _reason_texts(config: Config) -> dict[str, str]:
    """Return `REASON_TEXTS` with the keys and values of the thresholds."""
    labeling = config.labeling
    return REASON_TEXTS | {
        "area": f"{REASON_TEXTS['area']} (labeling.min_region={labeling.min_region})",
        "confidence": f"{REASON_TEXTS['confidence']} (labeling.tau_base={labeling.tau_base:g}, "
        f"tau_background={labeling.tau_background:g})",
        "class_not_shown": f"{REASON_TEXTS['class_not_shown']} (synthesis.check_margin={config.synthesis.check_margin:g})",
        "target_too_small": f"{REASON_TEXTS['target_too_small']} (labeling.min_target={labeling.min_target:g})",
        "target_too_large": f"{REASON_TEXTS['target_too_large']} (labeling.max_target={labeling.max_target:g})",
    }


def select_draw(config: Config, draw: int | None, run: RunDir) -> int:
    """Return the draw of `--draw`, by default the first.

    Raises:
        UserError: the run has no such draw.
    """
    draws = draws_of(config)
    if draw is not None and draw not in draws:
        raise UserError(f"--draw {draw}: {run.root} has draws {draws[0]} to {draws[-1]} (data.first_draw, data.draws)")
    return draws[0] if draw is None else draw


def _quarantine_notes(run: RunDir) -> tuple[list[str], list[str]]:
    """Return a line for each of the first notes in quarantined/, and a line for each of them that is damaged."""
    lines, damage = [], []
    for sample_id in run.quarantined_ids()[:NOTES]:
        try:
            note = read_checked(run.quarantined(sample_id), Facts)
            lines.append(f"{sample_id}: {note['reason'] if isinstance(note, dict) else note}")
        except (DamagedError, KeyError, FileNotFoundError) as error:
            damage.append(f"{run.quarantined(sample_id)}: damaged ({error}); delete it, and the sample is made again")
    return lines, damage


def _relative_paths(run: RunDir, target: AnyPath, files: dict[str, str] | None) -> dict[str, str] | None:
    """Return the paths of the full pictures relative to the page; None if a browser cannot reach them."""
    if files is None or not isinstance(run.root, Path) or not isinstance(target, Path):
        return None
    try:
        base = os.path.relpath(run.root.absolute(), target.absolute().parent)
    except ValueError:  # another drive
        return None
    return {layer: Path(base, path).as_posix() for layer, path in files.items()}


def _values(run: RunDir, config: Config, draw: int, records: pa.Table, names: Sequence[str]) -> dict[str, Any]:
    """Return the values of the template, except those of the gallery."""
    lines, results, summary = numbers.read_metrics(run), numbers.read_results(run), numbers.summarize_labeling(records)
    prompts = [_bank(bank) for bank in numbers.prompt_banks(run)]
    drawn = {"results": _result_charts(results, names), "labels": _label_charts(summary), "time": _time_charts(lines)}
    outcome = draw_outcome(read_outcome(run, config, draw), names, class_colors(len(names)))
    sections = [("outcome", "pictures")] if outcome["rows"] else []
    sections += [("results", "results"), ("funnel", "funnel")]
    sections += [("labels", "labels"), ("samples", "samples")] if len(records) else [("samples", "samples")]
    sections += [("prompts", "prompt bank")] if prompts else []
    sections += [("time", "over time")] if drawn["time"] else []
    data = config.data
    return {
        "name": run.root.absolute().name,
        "about": f"{config.name}: {data.source}, fold {data.fold}, {data.shots}-shot, {data.draws} support draw"
        + ("" if data.draws == 1 else "s"),
        "style": style(),
        "sections": sections,
        "outcome": outcome,
        "headline": _headline(results),
        "draw": draw,
        "draws": data.draws,
        "unfinished": [step for step in numbers.run_progress(run, config) if step[1] < max(1, step[2])],
        "charts": drawn,
        "prompts": prompts,
        "words": REASON_TEXTS,
        "funnel": _funnel(run, records, summary),
        "quality": [
            (STAGE_TITLES[stage], ["-" if math.isnan(v) else f"{100 * v:.1f}" for v in values.values()])
            for stage, values in numbers.measure_run_quality(run, config, draw, records).items()
        ],
        "footer": f"Written by syn4seg report from {len(records)} records of draw {draw}; `--draw K` shows another draw.",
        **_result_table(results),
    }


def _group_values(records: pa.Table, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the values of the section about the labels of classes, verdicts, prompts and backgrounds."""
    figures = figures_of(records, items)
    whys = sorted({why for _, why in figures.regions if why})
    names = sorted({name for name, _ in figures.regions})
    groups = {
        "classes": by_key(figures, "class"),
        "verdicts": by_key(figures, "reason"),
        "prompts": by_key(figures, "prompt", PROMPTS),
        "backgrounds": by_key(figures, "background", BACKGROUNDS),
        "whys": whys,
        "regions": [(name, figures.regions[name, ""], [figures.regions[name, why] for why in whys]) for name in names],
    }
    measured = int(np.isfinite(figures.ious).any(0).sum())
    return {
        "groups": groups if len(figures.rejected) else None,
        "truth_known": figures.is_truth_known,
        "measured": measured,
        "stage_titles": list(STAGE_TITLES.values()),
    }


def _headline(results: dict[str, Any] | None) -> str:
    """Return the sentence about novel classes above the pictures, over all draws.

    It compares two rows that train the same part, support only and the fullest one; a network that learned from the same labels as
    the latter comes after them, since it differs in two things.
    """
    novel = {row: values["novel"] for row, values in (results["rows"] if results else {}).items()}
    known = [row for row, value in novel.items() if value["mean"] is not None]
    method = next((row for row in ("syn4seg", "apr", "apf", "hdig_raw") if row in known), None)
    if method is None or "support_only" not in known:
        return ""
    more = [row for row in (f"{method}_decoder", f"{method}_all") if row in known]
    told = [f'{format_percent(novel[row])} % (row "{TITLES[row]}")' for row in (method, *more)]
    alone = f"{format_percent(novel['support_only'])} % from the support images alone"
    return f"Novel classes: mIoU {alone}; with synthetic images {', '.join(told)}."


def _result_table(results: dict[str, Any] | None) -> dict[str, Any]:
    if results is None:
        return {"table": [], "columns": [], "protocol": []}
    columns = table_columns(results["protocol"])
    baselines = [
        (title_of(name) + (" *" if facts["transductive"] else ""), facts["metrics"]) for name, facts in results["baselines"].items()
    ]
    rows = [(TITLES.get(row, row), results["rows"][row]) for row in sort_rows(results["rows"])]
    table = [
        [(title, [format_percent(metrics[key]) for key in columns.values()]) for title, metrics in group]
        for group in (baselines, rows)
        if group
    ]
    return {"table": table, "columns": list(columns), "protocol": result_notes(results)}


def _funnel(run: RunDir, records: pa.Table, summary: numbers.LabelingSummary) -> list[tuple[str, Any, dict[str, Any]]]:
    steps: list[tuple[str, Any, dict[str, Any]]] = [*numbers.count_funnel(run, records)]
    if summary.samples:
        share, masks = {key: f"{100 * value:.1f} %" for key, value in summary.shares.items()}, summary.masks
        freed = {f"freed, {REASON_TEXTS.get(why, why)}": n for why, n in sorted(summary.regions.items()) if why}
        known = {
            "calibrated": "pixels of drafts decided by the image's class",
            "seeded": "pixels of drafts taken from the prototype",
        }
        steps += [(text, share[key], {}) for key, text in known.items() if key in share]
        steps += [
            ("regions kept by APF", summary.regions[""], freed),
            ("pixels freed by APF", share.get("free", "-"), {}),
            ("pixels relabeled by APR", share.get("relabeled", "-"), {"stay unlabeled": share.get("unlabeled", "-")}),
            ("SAM masks accepted", masks["accepted"], {"refused (too little agreement)": masks["refused"]}),
            ("pixels moved by SABR", share.get("moved", "-"), {}),
        ]
    if quarantined := len(run.quarantined_ids()):
        steps.append(("quarantined", quarantined, {}))
    return steps


def funnel_table(run: RunDir, records: pa.Table) -> dict[str, Any]:
    """Return the steps of the funnel and the losses at them as title -> number or share, for tables with a column per run."""
    rows: dict[str, Any] = {}
    for step, count, lost in _funnel(run, records, numbers.summarize_labeling(records)):
        rows |= {step: count} | {f"{step}; not: {REASON_TEXTS.get(why, why)}": n for why, n in lost.items()}
    return rows


def _bank(bank: dict[str, Any]) -> dict[str, Any]:
    rows = sorted([*bank["accepted"], *bank["refused"]], key=lambda row: row["order"])
    diverse, class_name = bank["diversity"], bank["diversity"].get("class_name_prompt", {})
    return bank | {
        "rows": [row | {"similarity": _number(row["similarity"], 3)} for row in rows[:PROMPT_ROWS]],
        "left_out": max(0, len(rows) - PROMPT_ROWS),
        "cosine": _number(diverse.get("mean_cosine")),
        "vendi": _number(diverse.get("vendi")),
        "class_name_cosine": _number(class_name.get("mean_cosine")),
        "class_name_vendi": _number(class_name.get("vendi")),
    }


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _result_charts(results: dict[str, Any] | None, names: Sequence[str]) -> list[Markup]:
    rows = sort_rows(results["per_class"]) if results else []
    if not results or len(rows) < 2:
        return []
    svg = charts.per_class(results["per_class"], names, {row: TITLES.get(row, row) for row in (rows[0], rows[-1])})
    return [chart("IoU by class", svg, "Bars are means over draws, whiskers standard deviations.")]


def _label_charts(summary: numbers.LabelingSummary) -> list[Markup]:
    if not summary.similarity:
        return []
    text = (
        "Regions left of the dashed line, the limit, are freed; right of it, only those that are too small, unsure or more like "
        "another class."
    )
    return [chart("Regions of the class, by similarity to its support images", charts.similarity(summary.similarity), text)]


def _time_charts(lines: Sequence[dict[str, Any]]) -> list[Markup]:
    figures, stages = [], numbers.load_curves(lines)
    losses = {name: curve for name, curve in numbers.loss_curves(lines).items() if len(curve[0]) > 1}
    if losses:
        figures.append(chart("Training", charts.training(losses), "Loss as the run wrote it down."))
    if any(len(curve["seconds"]) > 1 for curve in stages.values()):
        rates = charts.over_time(stages, "rows_per_second", "samples per second")
        figures.append(chart("Throughput", rates, "Samples that each stage of the stream finished."))
        text = "Share of its actors' time that each stage worked; the busiest stage decides the rate."
        figures.append(chart("Busy share", charts.over_time(stages, "busy_share", "busy (%)", 100.0), text))
    return figures
