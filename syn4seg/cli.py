"""The one command `syn4seg VERB`. Heavy imports wait inside the verbs, so `--help` answers at once.

Exit codes: 0 done, 1 a check failed (`verify`, `doctor`), 2 an error that a person can mend, 3 a fault of this program (the
traceback is kept in a file; SYN4SEG_DEBUG=1 shows it), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syn4seg.errors import UserError, explained
from syn4seg.exports.command import export
from syn4seg.report.command import compare, report

if TYPE_CHECKING:
    from actors.pipeline import Pipeline
    from syn4seg.config.tree import Config
    from syn4seg.store.rundir import RunDir

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Syn4Seg on Ray: generalized few-shot segmentation that makes up its missing data.",
)

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE ...]",
        show_default=False,
        help="A YAML file, a run, or embedded, pascal5i, coco20i...; then any keys: data.fold=1",
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        help="Where the run is kept: a directory, s3://BUCKET/RUN or gs://BUCKET/RUN; default runs/NAME.", show_default=False
    ),
]
Reuse = Annotated[str | None, typer.Option(help="Earlier run whose fitting stages (prompts, images, base) are taken over.")]


def _config(settings: list[str] | None, out: str | None = None) -> Config:
    """The configuration of the words of a command; without a file in them, that of the run in `out`, if there is one."""
    from syn4seg.config.loading import load
    from syn4seg.store.files import as_path, exists

    words = list(settings or [])
    path = None
    if words and "=" not in words[0]:
        path, packaged = as_path(words.pop(0)), Path(__file__).parent / "configs"
        if (path / "config.yaml").is_file():
            path = path / "config.yaml"
        elif not path.is_file():
            known = sorted(p.stem for p in packaged.glob("*.yaml"))
            if str(path) not in known:
                raise UserError(f"config {path}: no such file or run; expected a YAML file, a run, or {', '.join(known)}")
            path = packaged / f"{path}.yaml"
    elif out is not None and exists(_run(out).config):
        path = _run(out).config
    return load(path, words)


def _run(place: str) -> RunDir:
    """The run directory at a path or URL, which may be none yet.

    Raises:
        UserError: it cannot be reached.
    """
    from syn4seg.store.files import reach
    from syn4seg.store.rundir import RunDir

    run = RunDir(place)
    reach(run.root)
    return run


def _begin(settings: list[str] | None, out: str | None, reuse: str | None) -> Pipeline:
    """Checks everything that can be checked, then opens the run directory; nothing is written before that."""
    config = _config(settings, out)
    from actors.cluster import check_out
    from actors.pipeline import Pipeline
    from syn4seg.doctor import versions
    from syn4seg.loggers.following import check_loggers
    from syn4seg.stages import setup
    from syn4seg.stages.checks import check, check_models
    from syn4seg.stages.reuse import reuse as take_over
    from syn4seg.store import rundir
    from syn4seg.store.files import exists
    from syn4seg.store.samples import checked_name
    from syn4seg.terminal import Terminal

    check_out(out)
    display = Terminal()
    run = rundir.RunDir(out or f"runs/{checked_name(config.name, 'name')}")
    run.check(config)
    check_loggers(config)
    if not setup.is_prepared(config):
        assert config.data.root is not None
        check_models(config, run)
        with display.bar(f"preparing {config.data.source}") as progress:
            setup.prepare(config.data.source, config.data.root, config.data.masks, progress, display.note)
    dataset, fold = check(config, run)
    inputs = setup.inputs_of(config)
    run.check_inputs(inputs)
    pipeline = Pipeline(config, run, dataset, fold, display)
    pipeline.check()
    _catch_signals()  # Ray brings handlers of its own
    if reuse is not None and not exists(_run(reuse).config):
        raise UserError(f"--reuse {reuse}: not a run (no config.yaml); give the directory of an earlier run")
    run.open(config)
    run.write_inputs(inputs)
    run.write_provenance(config, versions())
    if reuse is not None:
        taken = take_over(rundir.RunDir(reuse), run, config)
        pipeline.display.note(f"taken from {reuse}: {', '.join(taken) or 'nothing fits this configuration'}")
    return pipeline


@contextlib.contextmanager
def _begun(settings: list[str] | None, out: str | None, reuse: str | None) -> Iterator[Pipeline]:
    """`_begin`, with the loggers of the run until the block ends."""
    from syn4seg.loggers.following import following

    pipeline = _begin(settings, out, reuse)
    with following(pipeline.config, pipeline.run, pipeline.display.note):
        yield pipeline


@app.command()
def run(settings: Settings = None, out: Out = None, reuse: Reuse = None) -> None:
    """The whole method: prompts, images, labels, training, scores, ablation table."""
    with _begun(settings, out, reuse) as pipeline:
        _finish(pipeline, pipeline.whole())


@app.command()
def prompts(settings: Settings = None, out: Out = None, reuse: Reuse = None) -> None:
    """HDIG: build the de-duplicated prompt bank and the plan."""
    with _begun(settings, out, reuse) as pipeline:
        pipeline.prompts()
        pipeline.display.note(f"prompts and plan are in {pipeline.run.root}")


@app.command()
def synthesize(settings: Settings = None, out: Out = None, reuse: Reuse = None) -> None:
    """Make the synthetic images (and the prompts, if there are none)."""
    with _begun(settings, out, reuse) as pipeline:
        for reason, count in sorted(pipeline.synthesize().items()):
            if reason:
                pipeline.display.note(f"quarantined {count}: {reason}")
        pipeline.display.note(f"images are in {pipeline.run.root / 'images'}")


@app.command()
def refine(settings: Settings = None, out: Out = None, reuse: Reuse = None) -> None:
    """APF, APR and SABR: draft, filter, relabel and refine the labels of every image."""
    with _begun(settings, out, reuse) as pipeline:
        for draw, reasons in pipeline.refine().items():
            pipeline.display.funnel(draw, reasons)


@app.command()
def train(settings: Settings = None, out: Out = None, reuse: Reuse = None) -> None:
    """Train the classifiers of every ablation row and draw on finished labels."""
    with _begun(settings, out, reuse) as pipeline:
        pipeline.train(evaluate=False)
        pipeline.display.note(f"classifiers are in {pipeline.run.root / 'draws'}")


@app.command()
def evaluate(settings: Settings = None, out: Out = None, reuse: Reuse = None) -> None:
    """Score the trained classifiers on the query images."""
    with _begun(settings, out, reuse) as pipeline:
        _finish(pipeline, pipeline.evaluate())


def _finish(pipeline: Pipeline, results: dict[str, Any] | None) -> None:
    assert results is not None
    pipeline.display.results(results)
    pipeline.display.note(f"results: {pipeline.run.results}")


@app.command()
def sweep(
    settings: Settings = None,
    study: Annotated[str, typer.Option(help="labels, shots, prompts, beta, lambda, all, or a YAML file.")] = "labels",
    trials: Annotated[int | None, typer.Option(min=1, help="Trials, with those done; default: as the study says.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Trials at a time; at most the study's window.")] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="novel, harmonic, mean...; several with commas: a Pareto front. test.novel is measured on the test list.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Where the sweep is kept; default runs/NAME-STUDY.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --out.")] = False,
    reuse: Reuse = None,
    cache: Annotated[str, typer.Option(help="Folder of the stage cache, shared by studies.")] = "runs/cache",
    cache_gib: Annotated[float, typer.Option(min=0.01, help="The cache is kept below this size.")] = 20.0,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first trial that fails.")] = False,
) -> None:
    """Search keys of the configuration with Ray Tune and Optuna; a trial recomputes only what its keys change.

    Keys of the study itself may follow as study.KEY=VALUE: study.pruning=median study.window=8.
    """
    from tune.command import sweep as search

    words = list(settings or [])
    changes = [word for word in words if word.startswith("study.")]
    config = _config([word for word in words if word not in changes])
    try:
        search(
            config,
            words=words,
            study=study,
            changes=changes,
            trials=trials,
            concurrency=concurrency,
            objective=objective,
            out=out,
            resume=resume,
            reuse=reuse,
            cache=cache,
            cache_bytes=int(cache_gib * 2**30),
            fail_fast=fail_fast,
            begin=_begin,
        )
    except Stopped:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("stopped; the same command with --resume goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None


store = typer.Typer(no_args_is_help=True, help="The stage cache of sweeps: what it holds, and making room.")
app.add_typer(store, name="cache")
Folder = Annotated[str, typer.Option("--cache", help="Folder of the cache.")]


@store.command("ls")
def list_cache(cache: Folder = "runs/cache") -> None:
    """What the cache holds, stage by stage."""
    from syn4seg.trials.cache import StageCache
    from syn4seg.trials.command import print_cache

    print_cache(StageCache(cache))


@store.command("prune")
def prune_cache(
    cache: Folder = "runs/cache",
    max_gib: Annotated[float, typer.Option(min=0, help="Delete the least recently used entries until this is left.")] = 0.0,
    stage: Annotated[str | None, typer.Option(help="Only entries of this stage.", show_default=False)] = None,
) -> None:
    """Delete the least recently used entries; whatever is asked for again is made again."""
    from syn4seg.terminal import Terminal
    from syn4seg.trials.cache import StageCache

    gone, freed = StageCache(cache).prune(int(max_gib * 2**30), stage)
    Terminal().note(f"deleted {gone} entries, {freed / 2**20:.1f} MiB")


@app.command()
def verify(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="Directory or URL of a run.")],
    quick: Annotated[bool, typer.Option("--quick", help="Decode no pixel: manifest, plan and what is there.")] = False,
) -> None:
    """Recompute every image's and label's digest; fail on any mismatch with the manifest."""
    from syn4seg.stages.results import verify as recompute
    from syn4seg.store.files import leftovers
    from syn4seg.store.rundir import opened

    run = opened(run_dir)
    digest, problems = recompute(run, quick)
    for line in problems:
        print(line, file=sys.stderr)
    if quick:
        print("quick: no pixel was decoded; this is the digest that the manifests claim", file=sys.stderr)
    if partial := leftovers(run.root):
        print(f"{partial} unfinished .partial files of earlier crashes; they count for nothing and may be deleted", file=sys.stderr)
    print(f"digest: {digest}")
    if problems:
        print(f"{len(problems)} mismatches", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def watch(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="Directory or URL of a run, which need not have begun.")],
    interval: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds between two looks; default 2, off a terminal 10.", show_default=False)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and end.")] = False,
) -> None:
    """Show how far a run is, until it is finished; reads only its directory, so any terminal or machine will do."""
    from syn4seg.watch.screen import follow

    try:
        follow(_run(run_dir), interval, once)
    except Stopped:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise typer.Exit(130) from None


app.command()(report)
app.command()(compare)
app.command()(export)


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(metavar="pascal|coco", help="VOC 2012 + SBD, or COCO 2014.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of the unpacked official archives.")],
    masks: Annotated[str, typer.Option(help="COCO: all_polygons, first_polygon (DIaM) or crowd255 (CAPL).")] = "all_polygons",
) -> None:
    """Check the official files, build masks, lists and index beside them; goes on where it was stopped."""
    from syn4seg.stages.setup import prepare as build
    from syn4seg.terminal import Terminal

    display = Terminal()
    with display.bar(f"preparing {source}") as progress:
        build(source, root, masks, progress, display.note)
    variant = f" data.masks={masks}" if source == "coco" else ""
    display.note(f"ready: data.source={source} data.root={root}{variant}")


@app.command()
def plan(
    settings: Settings = None,
    rates: Annotated[Path | None, typer.Option(help="Measured rates (JSON, as benchmarks/gpu.py writes them).")] = None,
    measure: Annotated[int, typer.Option(help="Measure this many images of every stage here first.")] = 0,
    card: Annotated[str, typer.Option(help="GPU for stated rates: h200, h100, a100, l40s, l4, 4090.")] = "h100",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a run would make and cost: images, GPU-hours, memory per actor, disk per stage. Starts nothing."""
    from syn4seg.planning.command import print_plan

    print_plan(_config(settings), rates, measure, card, as_json)


@app.command()
def audit(run_dir: Annotated[str, typer.Argument(metavar="RUN", help="Directory or URL of a run.")]) -> None:
    """Prove from the run's records that no test image, support image or novel mask leaked; exit 1 on a leak."""
    from syn4seg.config.loading import load
    from syn4seg.stages.audit import audit as examine
    from syn4seg.stages.setup import load_dataset
    from syn4seg.store.rundir import opened
    from syn4seg.terminal import Terminal

    run = opened(run_dir)
    settings = load(run.config)
    dataset, fold = load_dataset(settings)
    findings = examine(settings, run, dataset, fold)
    display = Terminal()
    for finding in findings:
        display.note(f"{finding.verdict:8}{finding.claim}: {finding.evidence}")
    if any(finding.verdict == "LEAK" for finding in findings):
        raise typer.Exit(1)


@app.command()
def config(settings: Settings = None) -> None:
    """Print the whole configuration, annotated, as YAML."""
    from syn4seg.config.tree import annotated

    print(annotated(_config(settings)), end="")


@app.command()
def doctor() -> None:
    """Say what is installed, what is missing, and what to do about it."""
    from syn4seg.doctor import diagnose

    if not diagnose():
        raise typer.Exit(1)


class Stopped(BaseException):
    """Ctrl-C or a termination signal; a class of its own, because the command line library swallows KeyboardInterrupt."""


def _stop(*_: object) -> None:
    raise Stopped


def _catch_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def main() -> None:
    """Entry point: what a person can mend is one message and exit code 2, a fault of ours exit code 3, Ctrl-C 130."""
    _catch_signals()
    sys.path.insert(0, str(Path.cwd()))  # segmenter.backbone may name a module of the user's
    try:
        app()
    except Stopped:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - every exception ends as one line
        code, line = explained(error)
        print(f"error: {line}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
