"""The verb `sweep`; its imports wait inside, so that `--help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from syn4seg.errors import Interrupted
from syn4seg.options import Reuse, Settings, Trust, complete_study, read_config


def sweep(
    settings: Settings = None,
    study: Annotated[
        str, typer.Option(help="labels, shots, prompts, beta, lambda, all, or a YAML file.", autocompletion=complete_study)
    ] = "labels",
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
    trust: Trust = False,
) -> None:
    """Search keys of the configuration with Ray Tune and Optuna; a trial recomputes only what its keys change.

    Keys of the study itself may follow as study.KEY=VALUE: study.pruning=median study.window=8.
    """
    from tune.sweep import search_keys

    words = list(settings or [])
    changes = [word for word in words if word.startswith("study.")]
    try:
        search_keys(
            read_config([word for word in words if word not in changes], trusted=trust),
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
        )
    except Interrupted:
        raise Interrupted("stopped; the same command with --resume goes on from here") from None
