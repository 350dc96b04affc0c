"""The verb `plan`: print what a run would make and cost. Its imports wait inside, so that `--help` answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from syn4seg.options import Settings, Trust, read_config


def plan(
    settings: Settings = None,
    rates: Annotated[Path | None, typer.Option(help="Measured rates (JSON, as benchmarks/gpu.py writes them).")] = None,
    measure: Annotated[int, typer.Option(help="Measure this many images of every stage here first.")] = 0,
    card: Annotated[str, typer.Option(help="GPU for stated rates: h200, h100, a100, l40s, l4, 4090.")] = "h100",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust: Trust = False,
) -> None:
    """What a run would make and cost: images, GPU-hours, memory per actor, disk per stage. Starts nothing."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from syn4seg.planning.estimate import table
    from syn4seg.planning.measure import plan_run
    from syn4seg.stages.setup import is_prepared
    from syn4seg.terminal import NARROW

    config = read_config(settings, trusted=trust)
    estimate = plan_run(config, rates, measure, card)
    if as_json:
        print(json.dumps(estimate.as_json(), indent=1))
        return
    header, rows, footnotes = table(estimate)
    console = Console(highlight=False)
    shown = Table(title=f"plan of {config.name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    origins = {text: chr(ord("a") + i) for i, text in enumerate(dict.fromkeys(row[-1] for row in rows[:-1]))}
    left_out = ("each", "memory/actor") if console.width < NARROW else ()
    used = [i for i in range(len(header) - 1) if any(row[i] not in ("", "1") for row in rows[:-1]) and header[i] not in left_out]
    for i in used:
        title = header[i].partition("/")[0]
        shown.add_column(title, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows[:-1]:
        shown.add_row(*(f"{row[i]} {origins[row[-1]]}" if header[i] == "each" else row[i] for i in used))
    shown.add_section()
    shown.add_row(*(rows[-1][i] for i in used))
    console.print(shown)
    if not is_prepared(config):
        console.print(f"data.root={config.data.root} is not prepared: the published numbers of images are assumed", markup=False)
    for line in [*(f"{letter}: {text}" for text, letter in origins.items()), *footnotes]:
        console.print(line, markup=False)
