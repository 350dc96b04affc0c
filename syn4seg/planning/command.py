"""The verb `plan`: print what a run would make and cost."""

from __future__ import annotations

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from syn4seg.config.tree import Config


def print_plan(config: Config, rates: Path | None, measured: int, card: str, as_json: bool) -> None:
    """Prints what a run would make and cost, as a table or as JSON.

    Raises:
        UserError: unreadable rates, an unknown card, or a model whose size is not known.
    """
    from syn4seg.planning.estimate import table
    from syn4seg.planning.measure import plan_run
    from syn4seg.stages.setup import is_prepared

    found = plan_run(config, rates, measured, card)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    header, rows, footnotes = table(found)
    console = Console(highlight=False)
    shown = Table(title=f"plan of {config.name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    origins = {text: chr(ord("a") + i) for i, text in enumerate(dict.fromkeys(row[-1] for row in rows[:-1]))}
    used = [i for i in range(len(header) - 1) if any(row[i] not in ("", "1") for row in rows[:-1])]
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
