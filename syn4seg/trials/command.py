"""The verbs `cache ls` and `cache prune`; their imports wait inside, so that `--help` answers at once."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from syn4seg.errors import UserError, did_you_mean

cache = typer.Typer(no_args_is_help=True, help="The stage cache of sweeps: what it holds, and making room.")
Folder = Annotated[str, typer.Option("--cache", help="Folder of the cache.")]


@cache.command("ls")
def list_cache(cache: Folder = "runs/cache") -> None:
    """What the cache holds, stage by stage."""
    from rich.table import Table

    from syn4seg.terminal import Terminal
    from syn4seg.trials.cache import StageCache

    store, display = StageCache(cache), Terminal()
    uses = store.uses()
    if not uses:
        display.answer(f"{store.root}: empty")
        return
    table = Table(title=f"{store.root}", title_justify="left")
    for title in ("stage", "entries", "MiB", "last used"):
        table.add_column(title, justify="left" if title == "stage" else "right", no_wrap=title != "stage")
    for use in uses:
        table.add_row(use.kind, f"{use.entries}", f"{use.bytes / 2**20:.1f}", time.strftime("%F %T", time.localtime(use.used)))
    table.add_section()
    table.add_row("all", f"{sum(u.entries for u in uses)}", f"{sum(u.bytes for u in uses) / 2**20:.1f}", "")
    display.console.print(table)


@cache.command("prune")
def prune_cache(
    cache: Folder = "runs/cache",
    max_gib: Annotated[
        float | None,
        typer.Option(min=0, help="Delete the least recently used entries until this is left; 0: all.", show_default=False),
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Only entries of this stage.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
) -> None:
    """Delete the least recently used entries; whatever is asked for again is made again."""
    from syn4seg.terminal import Terminal
    from syn4seg.trials.cache import StageCache

    store = StageCache(cache)
    uses = {use.kind: use.bytes for use in store.uses()}
    if max_gib is None and stage is None:
        raise UserError(
            f"cache prune: --max-gib is not given, and {store.root} holds {sum(uses.values()) / 2**30:.2f} GiB; say how many may "
            "stay (0 deletes all), or name a --stage; --dry-run shows what would go"
        )
    if stage is not None and stage not in uses:
        expected = f"expected {', '.join(uses) or 'nothing, as it is empty'}{did_you_mean(stage, uses)}"
        raise UserError(f"--stage {stage}: {store.root} has no entries of it; {expected}")
    count, freed = store.prune(int((max_gib or 0) * 2**30), stage, dry=dry_run)
    Terminal().answer(f"{'would delete' if dry_run else 'deleted'} {count} entries, {freed / 2**20:.1f} MiB")
