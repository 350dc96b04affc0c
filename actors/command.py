"""The verbs that make a run, and `predict` and `serve`, which use it. Imports wait inside, so that `--help` answers at once."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from syn4seg.errors import Interrupted, UserError, catch_signals
from syn4seg.options import Out, Reuse, Settings, Trust, reach_run, read_config

if TYPE_CHECKING:
    from actors.pipeline import Pipeline
    from syn4seg.config.tree import Config
    from syn4seg.data.datasets import Dataset, Fold
    from syn4seg.store.rundir import RunDir
    from syn4seg.terminal import Terminal


def check_settings(
    settings: list[str] | None, out: str | None, display: Terminal, trusted: bool = False, prepares: bool = True
) -> tuple[Config, RunDir, tuple[Dataset, Fold] | None]:
    """Check everything that can be checked without Ray; return configuration, run directory, and data set with fold.

    Args:
        settings: words of the command, see `read_config`.
        out: path or URL of the run directory; None: runs/NAME.
        trusted: as in `read_config`.
        prepares: prepare an official data set beside its files where that was not done; False: return None in its place.

    Raises:
        UserError: the first thing that is wrong.
    """
    config = read_config(settings, out, trusted)
    from actors.cluster import check_out
    from syn4seg.data.sources import dataset_source
    from syn4seg.loggers.following import check_loggers
    from syn4seg.stages.checks import check, check_files, check_models
    from syn4seg.stages.setup import is_prepared
    from syn4seg.store.files import check_writable
    from syn4seg.store.rundir import RunDir
    from syn4seg.store.samples import checked_name

    check_out(out)
    check_writable(out or "runs", "--out")
    run = RunDir(out or f"runs/{checked_name(config.name, 'name')}")
    run.check(config)
    check_loggers(config)
    if not is_prepared(config):
        check_models(config, run)
        if not prepares:
            return config, run, None
        prepare = dataset_source(config.data.source).prepare
        assert prepare is not None and config.data.root is not None
        with display.bar(f"preparing {config.data.source}") as progress:
            prepare(config.data.root, config.data.masks, progress=progress, note=display.note)
    dataset, fold = check(config, run)
    with display.bar("checking photos and masks") as progress:
        warnings = check_files(config, dataset, fold, run, progress)
    for warning in warnings:
        display.note(f"warning: {warning}")
    return config, run, (dataset, fold)


def open_pipeline(settings: list[str] | None, out: str | None, reuse: str | None, trusted: bool = False) -> Pipeline:
    """Check everything that can be checked, then open the run directory; nothing is written before that.

    Args:
        settings, out, trusted: see `check_settings`.
        reuse: path or URL of an earlier run whose fitting stages are taken over.

    Raises:
        UserError: the first thing that is wrong.
    """
    from syn4seg.terminal import Terminal

    display = Terminal()
    config, run, data = check_settings(settings, out, display, trusted)
    assert data is not None, "it has been prepared"
    from actors.pipeline import Pipeline
    from syn4seg.doctor import versions
    from syn4seg.stages.checks import note_checked_files
    from syn4seg.stages.reuse import reuse as take_over
    from syn4seg.stages.setup import digest_inputs

    inputs = digest_inputs(config)
    run.check_inputs(inputs)
    pipeline = Pipeline(config, run, *data, display)
    pipeline.check()
    catch_signals()  # Ray brings handlers of its own
    earlier = check_reuse(reuse)
    run.open(config)
    run.write_inputs(inputs)
    note_checked_files(data[0], run)
    run.write_provenance(config, versions())
    if earlier is not None:
        taken = take_over(earlier, run, config)
        display.note(f"taken from {reuse}: {', '.join(taken) or 'nothing fits this configuration'}")
    return pipeline


def check_reuse(reuse: str | None) -> RunDir | None:
    """Return the run of `--reuse`, if one is given.

    Raises:
        UserError: it is not a run.
    """
    from syn4seg.store.files import exists

    if reuse is None:
        return None
    if not exists(reach_run(reuse).config):
        raise UserError(f"--reuse {reuse}: not a run (no config.yaml); give the directory of an earlier run")
    return reach_run(reuse)


@contextlib.contextmanager
def logged_pipeline(settings: list[str] | None, out: str | None, reuse: str | None, trusted: bool) -> Iterator[Pipeline]:
    """Open a pipeline as `open_pipeline` does, with the loggers of the run until the block ends."""
    from syn4seg.loggers.following import run_loggers

    pipeline = open_pipeline(settings, out, reuse, trusted)
    with run_loggers(pipeline.config, pipeline.run, pipeline.display.note):
        yield pipeline


def run(
    settings: Settings = None,
    out: Out = None,
    reuse: Reuse = None,
    trust: Trust = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made and what it costs; write nothing.")] = False,
) -> None:
    """The whole method: prompts, images, labels, training, scores, ablation table."""
    if dry_run:
        show_dry_run(settings, out, reuse, trust)
        return
    with logged_pipeline(settings, out, reuse, trust) as pipeline:
        _show_results(pipeline, pipeline.run_all())


def show_dry_run(settings: list[str] | None, out: str | None, reuse: str | None, trusted: bool = False) -> None:
    """Check what `open_pipeline` checks without Ray, and print what would be made and what it costs; write nothing."""
    from syn4seg.planning.dry_run import dry_run
    from syn4seg.stages.setup import digest_inputs
    from syn4seg.terminal import Terminal

    display = Terminal()
    config, run, data = check_settings(settings, out, display, trusted, prepares=False)
    earlier = check_reuse(reuse)
    inputs = digest_inputs(config) if data is not None else {}
    run.check_inputs(inputs)
    dry_run(config, run, data, inputs, earlier, display)


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


def extend(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="Folder or URL of a model, or of a finished run.")],
    data: Annotated[str, typer.Option(help="Folder of the new classes: images/, masks/, classes.json; see docs/model.md.")],
    settings: Settings = None,
    to: Out = None,
    trust: Trust = False,
) -> None:
    """Teach a trained model new classes from 1 to 5 annotated images each, without its base training data."""
    from syn4seg.terminal import Terminal
    from syn4seg.trained.extending import extension_words

    words, line = extension_words(model, data, settings or [], trust)
    Terminal().note(line)
    with logged_pipeline(words, to, None, trust) as pipeline:
        _show_results(pipeline, pipeline.run_all())


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="Folder or URL of a model, or of a finished run.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Files, folders, globs, s3:// URLs; .parquet and .tar shards too.")
    ],
    to: Annotated[str, typer.Option(help="Where masks, overlays and predictions.jsonl go: a folder, or s3://BUCKET/NAME.")],
    palette: Annotated[bool, typer.Option("--palette", help="Masks are palette PNGs (OpenCV reads them as colours).")] = False,
    overlays: Annotated[bool, typer.Option(help="Write the image with its classes drawn over it.")] = True,
    probabilities: Annotated[
        str, typer.Option(help="classes (all, float16 .npy) or winner (the mask's class, 8-bit PNG).", show_default=False)
    ] = "",
    tile: Annotated[
        int | None, typer.Option(help="See larger images in overlapping tiles of this side, in pixels.", show_default=False)
    ] = None,
    overlap: Annotated[float, typer.Option(help="Share of a tile that the next one covers.")] = 0.25,
    batch: Annotated[int, typer.Option(help="Images that the network sees at a time.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    runner: Annotated[str, typer.Option(help="inline, ray, or auto: Ray for 4000 images or more.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Actors under Ray; default: as many as fit.", show_default=False)
    ] = None,
    address: Annotated[str, typer.Option(help="Ray cluster: here, auto or HOST:PORT.")] = "here",
    trust: Annotated[bool, typer.Option("--trust", help="Run the code that the model names as its backbone.")] = False,
) -> None:
    """Segment images with a trained model; the same command goes on after a kill."""
    from actors.predicting import MANY, predict_chunks, start_ray
    from syn4seg.segmenter.model_folder import find_model, own_config
    from syn4seg.store.files import as_path, check_writable, is_local
    from syn4seg.terminal import Terminal
    from syn4seg.trained.inputs import find_images
    from syn4seg.trained.output import PredictionFolder
    from syn4seg.trained.prediction import ChunkPredictor, PredictionOptions
    from syn4seg.trust import trust as trust_code

    for option, value, allowed in (("runner", runner, ("auto", "inline", "ray")), ("device", device, ("auto", "cpu", "cuda"))):
        if value not in allowed:
            raise UserError(f"--{option} {value}: expected {', '.join(allowed)}")
    options = PredictionOptions(palette, overlays, cast(Any, probabilities), tile, overlap, batch)
    options.check()
    check_writable(to, "--to")
    folder, display = find_model(model), Terminal()
    config = own_config(folder)
    if trust and isinstance(config.network.backbone, str) and ":" in config.network.backbone:
        trust_code(config.network.backbone)
    target, sources = PredictionFolder(to, config, options), find_images(images, as_path(to))
    here, there = (str(path.absolute()) if is_local(path) else str(path) for path in (folder, as_path(to)))
    if runner == "ray" or (runner == "auto" and len(sources) >= MANY):
        count, gpus = start_ray(address, workers, there, {"MODEL": here} | {s.label: s.place for s in sources[:1]})
        catch_signals()  # Ray brings handlers of its own
        run_chunks = functools.partial(
            predict_chunks, model=here, to=there, options=options, device=device, workers=count, gpus=gpus
        )
    else:
        run_chunks = ChunkPredictor(here, there, options, device).run
    with display.bar("images") as progress:
        lines = target.predict(sources, run_chunks, progress, lambda line: print(line, file=sys.stderr))
    bad = sum("error" in line for line in lines)
    display.note(f"{to}: {len(lines) - bad} masks in masks/, {len(config.classes)} classes; see index.html, predictions.jsonl")
    if bad:
        print(f"{bad} of {len(lines)} images could not be read; they are named in {to}/predictions.jsonl", file=sys.stderr)
        raise typer.Exit(1)


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="Folder or URL of a model, or of a finished run.")],
    host: Annotated[str, typer.Option(help="Address to listen on; nobody is asked for a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that each hold the model.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    gpus: Annotated[
        float | None, typer.Option(min=0, help="Share of a GPU per replica; default 0.5 where there is one.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(help="Images that the network sees at a time, at most.")] = 8,
    max_bytes: Annotated[str, typer.Option(help="Largest upload: bytes, or as 25MB.")] = "25MB",
    address: Annotated[str, typer.Option(help="Ray cluster: here, auto or HOST:PORT.")] = "here",
    trust: Annotated[bool, typer.Option("--trust", help="Run the code that the model names as its backbone.")] = False,
) -> None:
    """Serve a trained model with Ray Serve: a page to drop pictures on, and HTTP, until Ctrl-C."""
    from actors.serving import check_installed, check_port, is_loopback, read_options, serving
    from syn4seg.segmenter.model_folder import check_weights, find_model, own_config
    from syn4seg.store.files import is_local
    from syn4seg.terminal import Terminal
    from syn4seg.trust import check_trusted

    check_installed()
    folder, display = find_model(model), Terminal()
    config = own_config(folder)
    check_weights(folder, config)
    if not trust and isinstance(config.network.backbone, str) and ":" in config.network.backbone:
        check_trusted(config.network.backbone)
    place = str(folder.absolute()) if is_local(folder) else str(folder)
    asked = {"device": device, "replicas": replicas, "batch": batch, "max_bytes": max_bytes, "trust": trust}
    options = read_options({"model": place, **asked})
    check_port(host, port)
    if not is_loopback(host):
        display.warn(
            f"--host {host}: whoever reaches this machine may use the model; there is no password and no encryption, so put a "
            "proxy that has both in front of it"
        )
    display.note(f"starting Ray Serve with {len(config.classes)} classes of {model}")
    try:
        with serving(options, gpus, host, port, address) as found:
            shown = f"[{host}]" if ":" in host else host
            share = f", {found.gpus:g} GPU each" if found.gpus else ""
            display.note(f"http://{shown}:{port}: {replicas} replica(s){share}; Ctrl-C ends it")
            while True:
                time.sleep(3600)
    except Interrupted:
        raise Interrupted("") from None  # nothing is left that could go on


def _show_results(pipeline: Pipeline, results: dict[str, Any]) -> None:
    pipeline.display.results(results)
    for line in next_steps(str(pipeline.run.root), str(pipeline.run.model)):
        pipeline.display.note(line)


def next_steps(run: str, model: str) -> list[str]:
    """Return what to type after a finished run: a line per command, short enough for a narrow terminal where the names are."""
    run, model = shlex.quote(run), shlex.quote(model)
    return [
        f"done: {run}; next:",
        f"  syn4seg report {run}",
        f"  syn4seg verify {run}",
        f"  syn4seg predict {model} IMAGES --to DIR",
    ]
