"""The verbs `watch` and `ls`; they import their modules when they run, so that `--help` is fast."""

from __future__ import annotations

from typing import Annotated

import typer

from syn4seg.errors import Interrupted
from syn4seg.options import reach_run


def watch(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="Directory or URL of a run, which need not have begun.")],
    interval: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds between two looks; default 2, off a terminal 10.", show_default=False)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and end.")] = False,
) -> None:
    """Show how far a run is, until it is finished; reads only its directory, so any terminal or machine will do."""
    from syn4seg.store.rundir import refuse_sweep
    from syn4seg.watch.screen import follow

    run = reach_run(run_dir)
    refuse_sweep(run)
    try:
        follow(run, interval, once)
    except Interrupted:
        raise Interrupted("") from None  # only the display was stopped


def ls(
    folder: Annotated[str, typer.Argument(metavar="[DIR]", help="Folder or URL with runs in it, or a run.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs and sweeps of a folder: state, scores, size, age; the last one to show a sign of life first."""
    import dataclasses
    import json

    from syn4seg.store.files import as_path, check_reachable
    from syn4seg.watch.overview import list_runs, show_runs

    root = as_path(folder)
    check_reachable(root)
    runs, others = list_runs(root)
    if as_json:
        print(json.dumps([dataclasses.asdict(run) for run in runs], indent=1))
    else:
        show_runs(folder, runs, others)
