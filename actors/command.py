"""The verbs that make a run: `run`, and one for each of its steps. Imports wait inside, so that `--help` answers at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from syn4seg.errors import UserError, catch_signals
from syn4seg.options import Out, Reuse, Settings, Trust, reach_run, read_config

if TYPE_CHECKING:
    from actors.pipeline import Pipeline


def open_pipeline(settings: list[str] | None, out: str | None, reuse: str | None, trusted: bool = False) -> Pipeline:
    """Check everything that can be checked, then open the run directory; nothing is written before that.

    Args:
        settings: words of the command, see `read_config`.
        out: path or URL of the run directory; None: runs/NAME.
        reuse: path or URL of an earlier run whose fitting stages are taken over.
        trusted: as in `read_config`.

    Raises:
        UserError: the first thing that is wrong.
    """
    config = read_config(settings, out, trusted)
    from actors.cluster import check_out
    from actors.pipeline import Pipeline
    from syn4seg.data.sources import dataset_source
    from syn4seg.doctor import versions
    from syn4seg.loggers.following import check_loggers
    from syn4seg.stages.checks import check, check_files, check_models, note_checked_files
    from syn4seg.stages.reuse import reuse as take_over
    from syn4seg.stages.setup import digest_inputs, is_prepared
    from syn4seg.store.files import check_writable, exists
    from syn4seg.store.rundir import RunDir
    from syn4seg.store.samples import checked_name
    from syn4seg.terminal import Terminal

    check_out(out)
    check_writable(out or "runs", "--out")
    display = Terminal()
    run = RunDir(out or f"runs/{checked_name(config.name, 'name')}")
    run.check(config)
    check_loggers(config)
    if not is_prepared(config):
        check_models(config, run)
        prepare = dataset_source(config.data.source).prepare
        assert prepare is not None and config.data.root is not None
        with display.bar(f"preparing {config.data.source}") as progress:
            prepare(config.data.root, config.data.masks, progress=progress, note=display.note)
    dataset, fold = check(config, run)
    with display.bar("checking photos and masks") as progress:
        warnings = check_files(config, dataset, fold, run, progress)
    for warning in warnings:
        display.note(f"warning: {warning}")
    inputs = digest_inputs(config)
    run.check_inputs(inputs)
    pipeline = Pipeline(config, run, dataset, fold, display)
    pipeline.check()
    catch_signals()  # Ray brings handlers of its own
    if reuse is not None and not exists(reach_run(reuse).config):
        raise UserError(f"--reuse {reuse}: not a run (no config.yaml); give the directory of an earlier run")
    run.open(config)
    run.write_inputs(inputs)
    note_checked_files(dataset, run)
    run.write_provenance(config, versions())
    if reuse is not None:
        taken = take_over(RunDir(reuse), run, config)
        display.note(f"taken from {reuse}: {', '.join(taken) or 'nothing fits this configuration'}")
    return pipeline


@contextlib.contextmanager
def logged_pipeline(settings: list[str] | None, out: str | None, reuse: str | None, trusted: bool) -> Iterator[Pipeline]:
    """Open a pipeline as `open_pipeline` does, with the loggers of the run until the block ends."""
    from syn4seg.loggers.following import run_loggers

    pipeline = open_pipeline(settings, out, reuse, trusted)
    with run_loggers(pipeline.config, pipeline.run, pipeline.display.note):
        yield pipeline


def run(settings: Settings = None, out: Out = None, reuse: Reuse = None, trust: Trust = False) -> None:
    """The whole method: prompts, images, labels, training, scores, ablation table."""
    with logged_pipeline(settings, out, reuse, trust) as pipeline:
        _show_results(pipeline, pipeline.run_all())


def prompts(settings: Settings = None, out: Out = None, reuse: Reuse = None, trust: Trust = False) -> None:
    """HDIG: build the de-duplicated prompt bank and the plan."""
    with logged_pipeline(settings, out, reuse, trust) as pipeline:
        pipeline.prompts()
        pipeline.display.note(f"prompts and plan are in {pipeline.run.root}")


def synthesize(settings: Settings = None, out: Out = None, reuse: Reuse = None, trust: Trust = False) -> None:
    """Make the synthetic images (and the prompts, if there are none)."""
    with logged_pipeline(settings, out, reuse, trust) as pipeline:
        for reason, count in sorted(pipeline.synthesize().items()):
            if reason:
                pipeline.display.note(f"quarantined {count}: {reason}")
        pipeline.display.note(f"images are in {pipeline.run.root / 'images'}")


def refine(settings: Settings = None, out: Out = None, reuse: Reuse = None, trust: Trust = False) -> None:
    """APF, APR and SABR: draft, filter, relabel and refine the labels of every image."""
    with logged_pipeline(settings, out, reuse, trust) as pipeline:
        for draw, reasons in pipeline.refine().items():
            pipeline.display.funnel(draw, reasons)


def train(settings: Settings = None, out: Out = None, reuse: Reuse = None, trust: Trust = False) -> None:
    """Train the classifiers of every ablation row and draw on finished labels."""
    with logged_pipeline(settings, out, reuse, trust) as pipeline:
        pipeline.train(evaluate=False)
        pipeline.display.note(f"classifiers are in {pipeline.run.root / 'draws'}")


def evaluate(settings: Settings = None, out: Out = None, reuse: Reuse = None, trust: Trust = False) -> None:
    """Score the trained classifiers on the query images."""
    with logged_pipeline(settings, out, reuse, trust) as pipeline:
        _show_results(pipeline, pipeline.evaluate())


def _show_results(pipeline: Pipeline, results: dict[str, Any]) -> None:
    pipeline.display.results(results)
    pipeline.display.note(f"results: {pipeline.run.results}")
