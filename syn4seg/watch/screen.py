"""A `State` in a terminal, 80 columns and more: once, as a picture that is drawn anew, or line by line where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from syn4seg.errors import StoreError, UserError
from syn4seg.schema import FAULT
from syn4seg.terminal import TITLES, table_columns
from syn4seg.watch.state import State, Watcher

if TYPE_CHECKING:
    from syn4seg.store.rundir import RunDir

INTERVAL, OFF_TERMINAL = 2.0, 10.0
"""Seconds between two looks, in a terminal and elsewhere."""
BAR = 10
"""Characters of a bar."""
REASONS = 8
"""Reasons that are shown of a draw, the most frequent ones."""


def follow(
    run: RunDir,
    interval: float | None = None,
    once: bool = False,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Shows a run until it is finished.

    Args:
        run: a run directory, which may be none yet.
        interval: seconds between two looks.
        once: show it as it is now, and return.

    Raises:
        UserError: no run has begun there, and `once`.
        StoreError: it cannot be read, and `once`; otherwise that is shown, and tried again.
    """
    console = console or Console(highlight=False)
    watcher, wait = Watcher(run), interval or (INTERVAL if console.is_terminal else OFF_TERMINAL)
    if once:
        state = watcher.look()
        if state.kind == "waiting":
            raise UserError(f"{run.root}: no run has begun there (no config.yaml); without --once this waits for it")
        console.print(picture(state))
        return
    last = _followed(watcher, wait, console, sleep)
    console.print(picture(last))


def _followed(watcher: Watcher, wait: float, console: Console, sleep: Callable[[float], None]) -> State:
    """Shows every look until the run is finished; returns the last one, which is left to be shown."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            try:
                state = watcher.look()
                if state.kind == "finished":
                    return state
                shown: RenderableType = picture(state) if console.is_terminal else line(state)
            except StoreError as error:
                shown = _red(f"{error}; looking again in {wait:g} s")
            if console.is_terminal:
                live.update(shown, refresh=True)
            else:
                console.print(shown, soft_wrap=True)
            sleep(wait)


def line(state: State) -> Text:
    """A run in one line, for logs."""
    parts = [state.phase]
    for work in (work for work in state.works if work.open):
        rate, left = _rate(work.rate()), _duration(work.left(state.now))
        parts.append(" ".join([f"{work.title} {_ratio(work.done, work.total)}", f"{rate}/s, {left} left", work.note]).rstrip())
    if state.loads:
        parts.append(f"busy {', '.join(f'{load.name} {load.busy:.0%}' for load in state.loads)}")
    text = _clean("; ".join([*parts, *_facts(state)]))
    return _red(text) if state.stale else Text(text)


def picture(state: State) -> RenderableType:
    """A run as it is: works with bars, stages of the stream, draws with reasons, and the result of a finished one."""
    if state.kind == "waiting":
        return Text(_clean(state.phase))
    parts: list[RenderableType] = [Text(_clean(f"{state.name}: {state.phase}"), style="bold"), Text("; ".join(_facts(state)))]
    if state.stale:
        when = time.strftime("%F %T", time.localtime(state.now - (state.silent or 0)))
        parts.append(
            _red(
                f"no new line since {when}: the command has ended, or is in one long step; where it has ended, the same "
                "command goes on from there"
            )
        )
    if state.works:
        parts.append(_works(state))
    if state.loads and state.kind == "running":
        parts.append(_stages(state))
    parts += [Text(_clean(text)) for text in _funnel(state)]
    if state.results is not None:
        parts += [Text(_clean(text), style="bold") for text in headline(state.results)]
    return Group(*parts)


def headline(results: dict[str, Any]) -> list[str]:
    """What a run has found, in one line per row that matters: the method, and support only to compare it with."""
    about, rows = results["protocol"], results["rows"]
    found = [f"fold {about['fold']}, {about['shots']}-shot, {about['draws']} support draw(s), mIoU in %"]
    for row in ("support_only", "syn4seg"):
        means = {title: rows[row][key]["mean"] for title, key in table_columns(about).items() if row in rows}
        shown = [f"{title} {'-' if mean is None else f'{100 * mean:.1f}'}" for title, mean in means.items()]
        found += [f"{TITLES[row]}: {', '.join(shown)}"] if shown else []
    return found


def _facts(state: State) -> list[str]:
    found = [] if state.elapsed is None else [f"{'took' if state.kind == 'finished' else 'elapsed'} {_duration(state.elapsed)}"]
    if state.planned is not None:
        found.append(f"{state.planned} samples planned")
    if state.store_gib is not None and state.kind == "running":
        found.append(f"object store {state.store_gib:.2f} GiB")
    if state.faults:
        names = f": {', '.join(state.quarantined)}, ..." if state.quarantined else ""
        found.append(f"{state.faults} quarantined{names}")
    if state.kind != "finished" and state.silent is not None:
        found.append(f"last line {_duration(state.silent)} ago")
    return [_clean(text) for text in found]


def _works(state: State) -> Table:
    table = _table(("", "left"), ("done", "right"), ("", "left"), ("per s", "right"), ("left", "right"), ("", "left"))
    for work in state.works:
        filled = int(BAR * min(1.0, work.done / work.total)) if work.total else 0
        bar = "█" * filled + "░" * (BAR - filled) if work.total else ""
        cells = (work.title, _ratio(work.done, work.total), bar, _rate(work.rate()), _duration(work.left(state.now)), work.note)
        table.add_row(*(Text(_clean(cell)) for cell in cells))
    return table


def _stages(state: State) -> Table:
    table = _table(
        ("stage", "left"),
        *((title, "right") for title in ("done", "per s", "busy", "queued", "rejected", "faults", "actors", "left")),
    )
    for load in state.loads:
        cells = (
            load.name,
            _ratio(load.rows, load.total),
            f"{load.rate:.4g}",
            f"{load.busy:.0%}",
            f"{load.queued:.0f}",
            f"{load.rejected:.0f}",
            f"{load.quarantined:.0f}",
            f"{load.actors:.0f}",
            _duration(load.left),
        )
        table.add_row(*(Text(_clean(cell)) for cell in cells))
    return table


def _table(*columns: tuple[str, Any]) -> Table:
    """Without lines; a text that has no room ends with three dots."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for title, justify in columns:
        table.add_column(title, justify=justify, no_wrap=True, overflow="ellipsis")
    return table


def _funnel(state: State) -> list[str]:
    """One line per draw: accepted, and the reasons of the others, most frequent first."""
    found = []
    for draw, reasons in sorted(state.funnel.items(), key=lambda item: -1 if item[0] is None else item[0]):
        why = sorted(((n, reason) for reason, n in reasons.items() if reason), key=lambda pair: (-pair[0], pair[1]))
        shown = [f"{n} {reason}" for n, reason in why[:REASONS]] + (["..."] if len(why) > REASONS else [])
        what = "images" if draw is None else f"draw {draw}"
        said = "made" if draw is None else "accepted"
        found.append(
            "; ".join([f"{what}: {reasons.get('', 0)} of {sum(reasons.values())} {said}", *([", ".join(shown)] if shown else [])])
        )
        if draw is not None and any(reason.startswith(FAULT) for _, reason in why):
            found[-1] += " (notes in quarantined/)"
    return found


def _red(text: str) -> Text:
    return Text(_clean(text), style="bold red")


def _clean(text: str) -> str:
    """Without control characters, which a reason or a name could bring to the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _ratio(done: float, total: float) -> str:
    return f"{done:.0f}/{total:.0f}" if total else f"{done:.0f}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}"


def _duration(seconds: float | None) -> str:
    """Hours, minutes and seconds; "-" if it is not known."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02}"
