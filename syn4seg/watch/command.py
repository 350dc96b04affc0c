"""The verb `watch`; it imports its modules when it runs, so that `--help` is fast."""

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
