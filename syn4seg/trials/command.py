"""The verbs of the stage cache: list what it holds, and make room."""

from __future__ import annotations

import time

from rich.table import Table

from syn4seg.terminal import Terminal
from syn4seg.trials.cache import StageCache


def print_cache(cache: StageCache) -> None:
    """Entries, size and last use of every stage of a cache."""
    uses, display = cache.uses(), Terminal()
    if not uses:
        display.note(f"{cache.root}: empty")
        return
    table = Table(title=f"{cache.root}", title_justify="left")
    for title in ("stage", "entries", "MiB", "last used"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for use in uses:
        table.add_row(use.stage, f"{use.entries}", f"{use.bytes / 2**20:.1f}", time.strftime("%F %T", time.localtime(use.used)))
    table.add_section()
    table.add_row("all", f"{sum(u.entries for u in uses)}", f"{sum(u.bytes for u in uses) / 2**20:.1f}", "")
    display.console.print(table)
