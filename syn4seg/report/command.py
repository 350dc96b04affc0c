"""The verbs `report` and `compare`; they import their modules when they run, so that `--help` is fast."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def report(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="Directory or URL of a run, finished or not.")],
    to: Annotated[str | None, typer.Option(help="File to write; default RUN/report.html.", show_default=False)] = None,
    draw: Annotated[int | None, typer.Option(help="Draw to show; default the first.", show_default=False)] = None,
) -> None:
    """Write one HTML page about a run: results, funnel, prompts, every label with who decided each pixel."""
    from syn4seg.report.page import write_report
    from syn4seg.store.files import check_writable
    from syn4seg.store.rundir import open_run
    from syn4seg.terminal import Terminal

    check_writable(to or run_dir, "--to" if to else "RUN")
    display = Terminal()
    with display.bar("samples") as progress:
        target, damage = write_report(open_run(run_dir), draw, to, progress)
    _warn(damage)
    display.note(f"report: {target}")


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
