"""The report of a run: one HTML page that needs no network: thumbnails are inside, full pictures beside it in the run directory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from syn4seg.baselines import title_of
from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.errors import DamagedError, UserError
from syn4seg.report import charts, numbers
from syn4seg.report.gallery import build_gallery, full_image_paths
from syn4seg.report.html import WORDS, chart, environment, gallery_section, style
from syn4seg.report.reading import STAGE_TITLES, class_names, read_records
from syn4seg.report.sheets import WHO, WHO_COLORS, class_colors
from syn4seg.stages.setup import draws_of
from syn4seg.store.files import as_path, read_json, write_atomically
from syn4seg.store.rundir import RunDir
from syn4seg.terminal import TITLES, format_percent, result_notes, sort_rows, table_columns

if TYPE_CHECKING:
    import pyarrow as pa

    from syn4seg.store.files import AnyPath

NOTES = 50
"""Quarantined samples that a page lists."""
PROMPT_ROWS = 100
"""Prompts of a class, accepted and refused, that a page lists."""


def write_report(run: RunDir, draw: int | None, to: str | None, progress: Callable[[int, int], None]) -> tuple[AnyPath, list[str]]:
    """Writes the page of a run.

    Args:
        draw: whose samples are shown; None: the run's first.
        to: file to write; None: report.html in the run directory.
        progress: told (samples, of how many).

    Returns:
        The file, and one line for each file of the run that is damaged or missing.

    Raises:
        UserError: the run has no such draw, or one of its tables is damaged.
        OSError: the file cannot be written.
    """
    config = load(run.config)
    draw = select_draw(config, draw, run)
    records, names = read_records(run, draw), class_names(run, config)
    colors = class_colors(len(names))
    truth = numbers.truth_source(config)
    made = build_gallery(run, draw, records, colors, progress, truth)
    target, plane = as_path(to) if to is not None else run.root / "report.html", numbers.prompt_map(run)
    panes = [{"title": "image", "photo": "image"}]
    panes += [{"title": title, "photo": "image", "label": stage, "who": "who"} for stage, title in STAGE_TITLES.items()]
    panes += [] if truth is None else [{"title": "truth", "photo": "image", "label": "truth"}]
    shown = gallery_section(
        made,
        names,
        colors,
        panes,
        list(zip(WHO, WHO_COLORS, strict=True))[1:],
        "who decided",
        files=_seen_from(run, target, full_image_paths(run, draw)),
        map=plane,
        words=_words(config),
        settings={"min_agreement": config.refinement.min_agreement},
    )
    quarantined, spoiled = _quarantined(run)
    damage = made.damage + spoiled
    values = _values(run, config, draw, records, names) | shown | {"damage": damage, "map": plane, "quarantined": quarantined}
    write_atomically(target, environment().get_template("report.html").render(values).encode("utf-8"))
    return target, damage


def _words(config: Config) -> dict[str, str]:
    """`WORDS` with the keys and values that decided."""
    labeling = config.labeling
    return WORDS | {
        "area": f"too small an area (labeling.min_region={labeling.min_region})",
        "confidence": f"too little confidence (labeling.tau_base={labeling.tau_base:g}, "
        f"tau_background={labeling.tau_background:g})",
        "target_too_small": f"{WORDS['target_too_small']} (labeling.min_target={labeling.min_target:g})",
        "target_too_large": f"{WORDS['target_too_large']} (labeling.max_target={labeling.max_target:g})",
    }


def select_draw(config: Config, draw: int | None, run: RunDir) -> int:
    """The draw that `--draw` asks for, by default the first.

    Raises:
        UserError: the run has no such draw.
    """
    draws = draws_of(config)
    if draw is not None and draw not in draws:
        raise UserError(f"--draw {draw}: {run.root} has draws {draws[0]} to {draws[-1]} (data.first_draw, data.draws)")
    return draws[0] if draw is None else draw


def _quarantined(run: RunDir) -> tuple[list[str], list[str]]:
    """A line for each of the first notes in quarantined/, and one for each of them that is damaged."""
    told, damage = [], []
    for name in run.quarantined_ids()[:NOTES]:
        try:
            note = read_json(run.quarantined(name))
            told.append(f"{name}: {note['reason'] if isinstance(note, dict) else note}")
        except (DamagedError, KeyError, FileNotFoundError) as error:
            damage.append(f"{run.quarantined(name)}: damaged ({error}); delete it, and the sample is made again")
    return told, damage


def _seen_from(run: RunDir, target: AnyPath, files: dict[str, str] | None) -> dict[str, str] | None:
    """Places of the full pictures relative to the page; None where a browser could not reach them."""
    if files is None or not isinstance(run.root, Path) or not isinstance(target, Path):
        return None
    try:
        base = os.path.relpath(run.root.absolute(), target.absolute().parent)
    except ValueError:  # another drive
        return None
    return {layer: Path(base, path).as_posix() for layer, path in files.items()}


def _values(run: RunDir, config: Config, draw: int, records: pa.Table, names: Sequence[str]) -> dict[str, Any]:
    """Everything on the page but the gallery."""
    lines, results = numbers.read_metrics(run), numbers.read_results(run)
    progress = numbers.run_progress(run, config)
    prompts = [_bank(bank) for bank in numbers.prompt_banks(run)]
    quality = numbers.measure_run_quality(run, config, draw, records)
    totals = numbers.summarize_labeling(records)
    drawn = {"results": _result_charts(results, names), "labels": _label_charts(totals), "time": _time_charts(lines)}
    sections = [("results", "results"), ("funnel", "funnel"), ("samples", "samples")]
    sections += [("prompts", "prompt bank")] if prompts else []
    sections += [("time", "over time")] if drawn["time"] else []
    about = f"{config.name}: {config.data.source}, fold {config.data.fold}, {config.data.shots}-shot, {config.data.draws} draw(s)"
    return {
        "name": run.root.absolute().name,
        "about": about,
        "style": style(),
        "sections": sections,
        "draw": draw,
        "draws": config.data.draws,
        "unfinished": [p for p in progress if p[1] < max(1, p[2])],
        "charts": drawn,
        "prompts": prompts,
        "words": WORDS,
        "funnel": _funnel(run, records, totals),
        "quality": [
            (STAGE_TITLES[stage], ["-" if math.isnan(v) else f"{100 * v:.1f}" for v in found.values()])
            for stage, found in quality.items()
        ],
        "footer": f"Written by syn4seg report from {len(records)} records of draw {draw}; `--draw K` shows another draw.",
        **_table(results),
    }


def _table(results: dict[str, Any] | None) -> dict[str, Any]:
    if results is None:
        return {"table": [], "columns": [], "protocol": []}
    columns = table_columns(results["protocol"])
    groups = [
        [
            (f"{title_of(name)}{' *' if found['transductive'] else ''}", found["metrics"])
            for name, found in results["baselines"].items()
        ],
        [(TITLES.get(row, row), results["rows"][row]) for row in sort_rows(results["rows"])],
    ]
    table = [
        [(title, [format_percent(values[c]) for c in columns.values()]) for title, values in group] for group in groups if group
    ]
    return {"table": table, "columns": list(columns), "protocol": result_notes(results)}


def _funnel(run: RunDir, records: pa.Table, found: numbers.LabelingSummary) -> list[tuple[str, Any, dict[str, Any]]]:
    steps: list[tuple[str, Any, dict[str, Any]]] = [*numbers.count_funnel(run, records)]
    if found.samples:
        shares, masks = found.shares, found.masks
        freed = {f"freed, {WORDS.get(why, why)}": n for why, n in sorted(found.regions.items()) if why}
        steps += [
            ("regions kept by APF", found.regions[""], freed),
            ("pixels freed by APF", _share(shares.get("free")), {}),
            ("pixels relabeled by APR", _share(shares.get("relabeled")), {"stay unlabeled": _share(shares.get("unlabeled"))}),
            ("SAM masks accepted", masks["accepted"], {"refused (too little agreement)": masks["refused"]}),
            ("pixels moved by SABR", _share(shares.get("moved")), {}),
        ]
    if noted := len(run.quarantined_ids()):
        steps.append(("quarantined", noted, {}))
    return steps


def funnel_table(run: RunDir, records: pa.Table) -> dict[str, Any]:
    """The steps of the funnel and what was lost at them, flat, for tables with a column per run."""
    found: dict[str, Any] = {}
    for step, count, lost in _funnel(run, records, numbers.summarize_labeling(records)):
        found[step] = count
        found |= {f"{step}; not: {WORDS.get(why, why)}": n for why, n in lost.items()}
    return found


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _bank(bank: dict[str, Any]) -> dict[str, Any]:
    rows = sorted([*bank["accepted"], *bank["refused"]], key=lambda row: row["order"])
    told, plain = bank["diversity"], bank["diversity"].get("class_name_prompt", {})
    listed = [
        {key: row[key] for key in ("prompt", "nearest", "why")}
        | {"similarity": "-" if row["similarity"] is None else f"{row['similarity']:.3f}"}
        for row in rows[:PROMPT_ROWS]
    ]
    return bank | {
        "rows": listed,
        "left_out": max(0, len(rows) - PROMPT_ROWS),
        "cosine": _number(told.get("mean_cosine")),
        "vendi": _number(told.get("vendi")),
        "class_name_cosine": _number(plain.get("mean_cosine")),
        "class_name_vendi": _number(plain.get("vendi")),
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _result_charts(results: dict[str, Any] | None, names: Sequence[str]) -> list[Markup]:
    rows = sort_rows(results["per_class"]) if results else []
    if not results or len(rows) < 2:
        return []
    titles = {row: TITLES.get(row, row) for row in (rows[0], rows[-1])}
    return [
        chart(
            "IoU by class",
            charts.per_class(results["per_class"], names, titles),
            "Bars are means over draws, whiskers standard deviations.",
        )
    ]


def _label_charts(found: numbers.LabelingSummary) -> list[Markup]:
    if not found.similarity:
        return []
    text = "Regions left of the dashed line (lambda_keep) are freed; right of it, those that are too small or unsure."
    return [chart("Similarity of the target's regions", charts.similarity(found.similarity), text)]


def _time_charts(lines: Sequence[dict[str, Any]]) -> list[Markup]:
    made, curves, stages = [], numbers.loss_curves(lines), numbers.load_curves(lines)
    curves = {name: curve for name, curve in curves.items() if len(curve[0]) > 1}
    if curves:
        made.append(chart("Training", charts.training(curves), "Loss as the run wrote it down."))
    if any(len(series["seconds"]) > 1 for series in stages.values()):
        made.append(
            chart(
                "Throughput",
                charts.over_time(stages, "rows_per_second", "samples per second"),
                "Samples that each stage of the stream finished.",
            )
        )
        made.append(
            chart(
                "Busy share",
                charts.over_time(stages, "busy_share", "busy (%)", 100.0),
                "Share of its actors' time that each stage worked; the busiest stage decides the rate.",
            )
        )
    return made
