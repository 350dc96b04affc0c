"""The verbs `report` and `compare`; they import their modules when they run, so that `--help` is fast."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from syn4seg.errors import Interrupted, UserError

if TYPE_CHECKING:
    from syn4seg.terminal import Terminal


def report(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="Directory or URL of a run, finished or not.")],
    to: Annotated[str | None, typer.Option(help="File to write; default RUN/report.html.", show_default=False)] = None,
    draw: Annotated[int | None, typer.Option(help="Draw to show; default the first.", show_default=False)] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Write nothing; show it on this machine, live while the run goes on.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of --serve; default 8765 if it is free.", show_default=False)
    ] = None,
) -> None:
    """Write one HTML page about a run: results, funnel, prompts, every label with who decided each pixel."""
    from syn4seg.report.page import write_report
    from syn4seg.store.files import check_writable
    from syn4seg.store.rundir import open_run
    from syn4seg.terminal import Terminal

    display = Terminal()
    if serve:
        if to:
            raise UserError(f"--to {to}: --serve writes no file; leave one of them out")
        _serve(run_dir, draw, port, display)
        return
    if port is not None:
        raise UserError(f"--port {port}: nothing is served; add --serve, or leave it out")
    check_writable(to or run_dir, "--to" if to else "RUN")
    with display.bar("samples") as progress:
        target, damage = write_report(open_run(run_dir), draw, to, progress)
    _warn(damage)
    display.note(f"report: {target}")


def _serve(run_dir: str, draw: int | None, port: int | None, display: Terminal) -> None:
    """Serve the report until Ctrl-C, which ends it with one line."""
    from syn4seg.report.serving import LivePage, open_server, serve_live
    from syn4seg.store.rundir import open_run

    live = LivePage(open_run(run_dir), draw)
    server = open_server(live, port)
    try:
        with display.bar("samples") as progress:
            live.make(progress)
        _warn(live.damage)
        display.note(f"report: http://{server.server_address[0]}:{server.server_address[1]}/ (Ctrl-C ends it)")
        serve_live(live, server, display.warn)
    except Interrupted:
        raise Interrupted("the report is no longer served") from None


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN_A RUN_B ...", help="Two or more runs; the first is the yardstick.")],
    to: Annotated[str, typer.Option(help="File to write.")] = "compare.html",
    draw: Annotated[int | None, typer.Option(help="Draw to compare; default the first.", show_default=False)] = None,
) -> None:
    """Write one HTML page about what differs between runs: settings, scores, classes, funnel, labels."""
    from syn4seg.report.compare import write_comparison
    from syn4seg.store.files import check_writable
    from syn4seg.store.rundir import open_run
    from syn4seg.terminal import Terminal

    check_writable(to, "--to")
    display = Terminal()
    with display.bar("samples") as progress:
        target, lines, damage = write_comparison([open_run(place) for place in runs], draw, to, progress)
    for line in lines:
        display.note(line)
    _warn(damage)
    display.note(f"comparison: {target}")


def _warn(damage: list[str]) -> None:
    for line in damage[:20]:
        print(line, file=sys.stderr)
    if damage:
        print(f"{len(damage)} samples have damaged or missing files; `syn4seg verify RUN` names all of them", file=sys.stderr)
