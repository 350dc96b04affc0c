"""The screen of `syn4seg watch`, 60 columns and more: once, as a live display, or line by line where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from syn4seg.errors import StoreError, UserError
from syn4seg.schema import FAULT
from syn4seg.store.rundir import RunDir
from syn4seg.terminal import NARROW, TITLES, table_columns
from syn4seg.watch.state import State, Watcher

INTERVAL, OFF_TERMINAL = 2.0, 10.0
"""Seconds between two polls, in a terminal and elsewhere."""
BAR = 10
"""Characters of a bar."""
REASONS = 8
"""Number of rejection reasons that are shown of a draw, the most frequent ones."""
STALE = "the command has ended, or is in one long step; where it has ended, the same command goes on from there"


def follow(
    run: RunDir,
    interval: float | None = None,
    once: bool = False,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show the state of a run until it is finished.

    Args:
        run: a run directory; the run need not have begun.
        interval: seconds between two polls; default `INTERVAL`, without a terminal `OFF_TERMINAL`.
        once: show the current state, and return.

    Raises:
        UserError: no run has begun there, and `once`.
        StoreError: the run cannot be read, and `once`; otherwise the error is shown, and the poll retried.
    """
    console = console or Console(highlight=False)
    watcher, wait = Watcher(run), interval or (INTERVAL if console.is_terminal else OFF_TERMINAL)
    if once:
        state = watcher.poll()
        if state.kind == "waiting":
            raise UserError(f"{run.root}: no run has begun there (no config.yaml); without --once this waits for it")
    else:
        state = _poll_until_finished(watcher, wait, console, sleep)
    console.print(render(state, console.width))


def _poll_until_finished(watcher: Watcher, wait: float, console: Console, sleep: Callable[[float], None]) -> State:
    """Show every state of the run but the finished one, which is returned."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            try:
                state = watcher.poll()
                if state.kind == "finished":
                    return state
                output: RenderableType = render(state, console.width) if console.is_terminal else render_line(state)
            except StoreError as error:
                output = _red(f"{error}; looking again in {wait:g} s")
            if console.is_terminal:
                live.update(output, refresh=True)
            else:
                console.print(output, soft_wrap=True)
            sleep(wait)


def render_line(state: State) -> Text:
    """Return the state of a run in one line, for logs."""
    parts = [state.phase]
    for item in (item for item in state.items if item.unfinished):
        progress, remaining = f"{item.title} {_ratio(item.done, item.total)}", _duration(item.seconds_left(state.now))
        parts.append(f"{progress} {_rate(item.rate())}/s, {remaining} left {item.note}".rstrip())
    if state.loads:
        parts.append(f"busy {', '.join(f'{load.name} {load.busy:.0%}' for load in state.loads)}")
    text = clean("; ".join([*parts, *_facts(state)]))
    return _red(text) if state.stale else Text(text)


def render(state: State, width: int = NARROW) -> RenderableType:
    """Return the state of a run: work items with bars, stages of the stream, draws with reasons, results of a finished run.

    Below `NARROW` columns there are no bars, and of the stages only what says how fast they are.
    """
    if state.kind == "waiting":
        return Text(clean(state.phase))
    parts: list[RenderableType] = [Text(clean(f"{state.name}: {state.phase}"), style="bold"), Text("; ".join(_facts(state)))]
    if state.stale:
        since = time.strftime("%F %T", time.localtime(state.now - (state.silent or 0)))
        parts.append(_red(f"no new line since {since}: {STALE}"))
    if state.items:
        parts.append(_item_table(state, width >= NARROW))
    if state.loads and state.kind == "running":
        parts.append(_stage_table(state, width >= NARROW))
    parts += [Text(clean(text)) for text in _funnel(state)]
    if state.results is not None:
        parts += [Text(clean(text), style="bold") for text in headline(state.results)]
    return Group(*parts)


def headline(results: dict[str, Any]) -> list[str]:
    """Return the results of a run in three lines: the protocol, support only (to compare), and the whole method."""
    protocol, rows = results["protocol"], results["rows"]
    lines = [f"fold {protocol['fold']}, {protocol['shots']}-shot, {protocol['draws']} support draw(s), mIoU in %"]
    for row in ("support_only", "syn4seg"):
        means = {title: rows[row][key]["mean"] for title, key in table_columns(protocol).items() if row in rows}
        scores = [f"{title} {'-' if mean is None else f'{100 * mean:.1f}'}" for title, mean in means.items()]
        lines += [f"{TITLES[row]}: {', '.join(scores)}"] if scores else []
    return lines


def _facts(state: State) -> list[str]:
    facts = [] if state.elapsed is None else [f"{'took' if state.kind == 'finished' else 'elapsed'} {_duration(state.elapsed)}"]
    if state.planned is not None:
        facts.append(f"{state.planned} samples planned")
    if state.store_gib is not None and state.kind == "running":
        facts.append(f"object store {state.store_gib:.2f} GiB")
    if state.faults:
        names = f": {', '.join(state.quarantined)}, ..." if state.quarantined else ""
        facts.append(f"{state.faults} quarantined{names}")
    if state.kind != "finished" and state.silent is not None:
        facts.append(f"last line {_duration(state.silent)} ago")
    return [clean(text) for text in facts]


def _item_table(state: State, wide: bool) -> Table:
    rows = []
    for item in state.items:
        filled = int(BAR * min(1.0, item.done / item.total)) if item.total else 0
        bar = ["█" * filled + "░" * (BAR - filled) if item.total else ""] if wide else []
        progress, remaining = _ratio(item.done, item.total), _duration(item.seconds_left(state.now))
        rows.append((item.title, progress, *bar, _rate(item.rate()), remaining, item.note))
    bars: list[tuple[str, Any]] = [("", "left")] if wide else []
    return _table([("", "left"), ("done", "right"), *bars, ("per s", "right"), ("left", "right"), ("", "left")], rows, wide)


def _stage_table(state: State, wide: bool) -> Table:
    titles = ("done", "per s", "busy", "queued", "rejected", "faults", "actors", "left")
    shown = [i for i, title in enumerate(titles) if wide or title not in ("queued", "actors", "faults")]
    rows = [
        (
            load.name,
            _ratio(load.rows, load.total),
            f"{load.rate:.4g}",
            f"{load.busy:.0%}",
            *(f"{count:.0f}" for count in (load.queued, load.rejected, load.quarantined, load.actors)),
            _duration(load.seconds_left),
        )
        for load in state.loads
    ]
    columns: list[tuple[str, Any]] = [("stage", "left"), *((titles[i], "right") for i in shown)]
    return _table(columns, [(row[0], *(row[1 + i] for i in shown)) for row in rows], wide)


def _table(columns: list[tuple[str, Any]], rows: list[tuple[str, ...]], wide: bool) -> Table:
    """Return a table without lines, with columns (title, `left` or `right`); a text that is too long ends with three dots.

    Where it is not wide, texts are wrapped, so that numbers stay whole.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for title, justify in columns:
        table.add_column(title, justify=justify, no_wrap=wide or justify == "right", overflow="ellipsis" if wide else "fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    return table


def _funnel(state: State) -> list[str]:
    """Return one line per draw: the number of accepted samples, and the reasons of the others, most frequent first."""
    lines = []
    for draw, reasons in sorted(state.funnel.items(), key=lambda pair: -1 if pair[0] is None else pair[0]):
        counts = sorted(((n, reason) for reason, n in reasons.items() if reason), key=lambda pair: (-pair[0], pair[1]))
        texts = [f"{n} {reason}" for n, reason in counts[:REASONS]] + (["..."] if len(counts) > REASONS else [])
        subject, verb = ("images", "made") if draw is None else (f"draw {draw}", "accepted")
        line = f"{subject}: {reasons.get('', 0)} of {sum(reasons.values())} {verb}" + (f"; {', '.join(texts)}" if texts else "")
        notes = draw is not None and any(reason.startswith(FAULT) for _, reason in counts)
        lines.append(line + " (notes in quarantined/)" if notes else line)
    return lines


def _red(text: str) -> Text:
    return Text(clean(text), style="bold red")


def clean(text: str) -> str:
    """Replace control characters, which a reason or a name could send to the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _ratio(done: float, total: float) -> str:
    return f"{done:.0f}/{total:.0f}" if total else f"{done:.0f}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}"


def _duration(seconds: float | None) -> str:
    """Return hours, minutes and seconds; "-" for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02}"
