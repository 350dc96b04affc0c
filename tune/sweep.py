"""`syn4seg sweep`: checks everything, makes what trials start from, runs the trials, tells what came out of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import syn4seg
from actors.cluster import connect
from actors.command import open_pipeline
from syn4seg.config.tree import Config
from syn4seg.config.yaml_text import parse_yaml
from syn4seg.errors import UserError
from syn4seg.stages.checks import check
from syn4seg.store.files import exists
from syn4seg.store.rundir import RunDir
from syn4seg.terminal import Terminal
from syn4seg.trials.cache import StageCache
from tune.records import Record, SweepDir, metric_value
from tune.space import ONCE, Range, Study, apply_overrides, check_study, default_value, from_choices, read_study, study_path
from tune.validation import open_sweep, trial_count, validation_images

LONGEST = 40
"""Characters of a value in a line about a trial."""


def search_keys(
    config: Config,
    *,
    words: Sequence[str],
    study: str,
    changes: Sequence[str],
    trials: int | None,
    concurrency: int | None,
    objective: str | None,
    out: str | None,
    resume: bool,
    reuse: str | None,
    cache: str,
    cache_bytes: int,
    fail_fast: bool,
) -> SweepDir:
    """Run or continue a sweep; return its folder.

    Args:
        words: configuration and overrides as given at the command line; the first may be a finished run, whose stages are used.
        changes: words `study.KEY=VALUE`.

    Raises:
        UserError: anything that is wrong, before a model loads.
        AllTrialsFailed: every trial failed.
    """
    spec = read_study(study_path(study, Path(syn4seg.__file__).parent / "configs" / "studies"), _changes(changes, objective))
    check_study(spec, config)
    StageCache(cache)  # refuses a URL
    count, at_once = trial_count(spec, trials or spec.trials), concurrency or spec.window
    _check_options(spec, config, out, at_once)
    display = Terminal()
    folder = SweepDir(Path(out) if out else Path("runs") / f"{config.name}-{Path(study).stem}")
    reference = _reference(words, folder)
    open_sweep(folder, spec, config, resume)
    announce(display, spec, folder, count)
    if other := [f"{key}={value}" for key, value in ONCE.items() if default_value(config, key) != value]:
        display.note(f"trials have {' and '.join(other)}: they stay cheap, and best.yaml has your own again")
    if reference is None:
        run_words = [word for word in words if not word.startswith("study.")]
        pipeline = open_pipeline(run_words, str(folder.run), reuse)
        pipeline.synthesize()
        pipeline.base()
        reference = folder.run
    connect(config.placement)  # before anything imports Ray: it reads its security settings when it is imported
    from tune.study import run_sweep

    done = len(folder.records())
    if done:
        display.note(f"{done} trials are done already")
    started = time.perf_counter()
    with display.bar("trials") as bar:
        bar(done, count)

        def ended(record: Record) -> None:
            nonlocal done
            done += 1
            display.note(trial_line(spec, record))
            bar(done, count)

        summary = run_sweep(
            folder,
            spec,
            config,
            trials=count,
            concurrency=at_once,
            cache=Path(cache),
            cache_bytes=cache_bytes,
            reference=RunDir(reference),
            fail_fast=fail_fast,
            on_record=ended,
        )
    from syn4seg.report.sweep import write_sweep_report

    sentences = [f"{metric}: {verdict(comparison)}." for metric, comparison in summary.get("comparison", {}).items()]
    write_sweep_report(folder.report, spec.model_dump(mode="json"), summary, _rows(spec, folder), sentences)
    print_summary(display, spec, folder, summary, time.perf_counter() - started)
    return folder


def _check_options(study: Study, config: Config, out: str | None, at_once: int) -> None:
    """Check the options of a sweep and every listed value of its keys, before anything starts.

    Raises:
        UserError: `out` is a URL, more trials at a time than the window, or a value that cannot be run.
    """
    if out is not None and "://" in out:
        raise UserError(
            f"--out {out}: a sweep is kept in a folder of this machine or a network mount; the run that it begins "
            "with may lie in an object store"
        )
    if at_once > study.window:
        raise UserError(
            f"--concurrency {at_once}: the study's window is {study.window}, the most trials at a time; "
            f"begin the study with study.window={at_once}"
        )
    check(apply_overrides(config, study.set))
    for key, space in study.space.items():
        for value in [] if isinstance(space, Range) else space:
            check(apply_overrides(config, {**study.set, key: value}))
    validation_images(study, config)


def _changes(changes: Sequence[str], objective: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in changes:
        key, sign, value = word.removeprefix("study.").partition("=")
        if not sign or key not in Study.model_fields or key in ("space", "set"):
            known = ", ".join(name for name in Study.model_fields if name not in ("space", "set"))
            raise UserError(f"{word}: expected study.KEY=VALUE with one of the keys {known}")
        try:
            values[key] = parse_yaml(value)
        except ValueError as error:
            raise UserError(f"{word[:80]}: the value is not readable ({error})") from None
    if objective is not None:
        values["objective"] = [name.strip() for name in objective.split(",")]
        if len(values["objective"]) > 1:  # trials are stopped early by one value
            values.setdefault("pruning", "none")
    return values


def _reference(words: Sequence[str], folder: SweepDir) -> Path | str | None:
    """Return the run whose prompts, images and base checkpoint trials use: the one on the command line, if it has them."""
    first = words[0] if words and "=" not in words[0] else ""
    if not first or not exists(RunDir(first).config):
        return None
    run = RunDir(first)
    return first if run.has_images() and exists(run.base) else None


def announce(display: Terminal, study: Study, folder: SweepDir, count: int) -> None:
    display.note(f"{folder.root}: {study.title or 'study'}; {count} trials of {', '.join(study.space)}")
    if study.test:
        display.warn("the objective is measured on the TEST LIST: what is chosen here must not be reported as a result on it")
    else:
        images = study.validation
        display.note(
            f"compared on {images.novel_images} annotated images per novel class and {images.base_images} base images of "
            "the train list; the test list is not read"
        )


def trial_line(study: Study, record: Record) -> str:
    """Return one line about an ended trial."""
    values = ", ".join(f"{m} {100 * (metric_value(record, m) or 0):.1f}" for m in study.metrics) if record["draws"] else "-"
    params = " ".join(f"{key.rpartition('.')[2]}={_short(v)}" for key, v in from_choices(study, record["params"]).items())
    error = f": {record['error'][:200]}" if record["state"] == "failed" else ""
    return f"trial {record['number']:3d} {record['state']:8} {values}  {params}  {record['seconds']:.1f} s{error}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:LONGEST]


def _rows(study: Study, folder: SweepDir) -> list[dict[str, Any]]:
    """Return what the report needs of every trial."""
    return [
        {
            "number": r["number"],
            "state": r["state"],
            "params": from_choices(study, r["params"]),
            "draws": r["draws"],
            "reports": r["reports"],
            "seconds": r["seconds"],
            "error": r.get("error", ""),
        }
        for _, r in sorted(folder.records().items())
    ]


def print_summary(display: Terminal, study: Study, folder: SweepDir, summary: dict[str, Any], seconds: float) -> None:
    states = f"{summary['complete']} complete, {summary['pruned']} stopped early, {summary['failed']} failed"
    display.note(f"{summary['trials']} trials: {states}; {seconds:.0f} s")
    best = summary["best"]
    if len(study.objective) > 1:
        for point in summary["front"]:
            display.note(f"front: trial {point['number']}: " + _values(study, point))
    display.note(
        f"best: trial {best['number']}: {_values(study, best)}  "
        + " ".join(f"{key}={_short(value)}" for key, value in best["params"].items())
    )
    if "default" in summary:
        display.note(f"the configuration's own values: {_values(study, summary['default'])}")
        for metric, shares in summary["comparison"].items():
            display.note(f"{metric}: {verdict(shares)}")
    for metric, shares in summary["importance"].items():
        if shares:
            display.note(f"importance for {metric}: " + ", ".join(f"{key} {share:.0%}" for key, share in shares.items()))
    if study.test:
        display.warn("chosen on the TEST LIST: not a result that can be reported")
    display.note(f"best.yaml, trials.parquet, study.journal, tensorboard and report.html are in {folder.root}")


def _values(study: Study, facts: dict[str, Any]) -> str:
    parts = []
    for metric in study.metrics:
        value = facts["values"][metric]
        spread = f" +- {100 * value['std']:.1f}" if value["n"] > 1 else ""
        parts.append(f"{metric} {100 * value['mean']:.1f}{spread}")
    return ", ".join(parts)


def verdict(comparison: dict[str, Any]) -> str:
    """Return whether the best is better than the default, in a sentence."""
    difference = f"best - default {100 * comparison['difference']:+.1f} points"
    if comparison["beyond"] is None:
        return f"{difference}; one draw, so nothing is known of the spread: set data.draws=5"
    spread = f"spread over {comparison['n']} draws {100 * max(comparison['spread'], comparison['std']):.1f}"
    return f"{difference}, {spread}: {'more' if comparison['beyond'] else 'not more'} than the spread"
