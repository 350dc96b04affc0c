"""What a person sees at the terminal: progress with rates and time left, and the tables at the end."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from syn4seg.baselines import title_of
from syn4seg.options import loudness

_ABLATION = {
    "support_only": "support only",
    "class_name_raw": "+ class-name prompts, raw masks",
    "hdig_raw": "+ HDIG, raw masks",
    "apf": "+ APF",
    "apr": "+ APF + APR",
    "syn4seg": "+ SABR (Syn4Seg)",
}
_CONTROLS = {
    "control_image_label": "control A: image's class only",
    "control_swapped": "control B: other prototype",
    "control_by_name": "control N: SAM 3 by name",
    "oracle": "control O: true masks",
}
_JOINT = {
    f"{row}_{part}": f"{title}, {text}"
    for row, title in {**_ABLATION, "syn4seg": "Syn4Seg", **_CONTROLS}.items()
    for part, text in (("decoder", "decoder trained"), ("all", "all trained"))
}
TITLES = {**_ABLATION, **_JOINT, **_CONTROLS}
"""Row of results.json -> its title, from the simplest row to the whole method, then controls."""
LINE_SECONDS = 10
"""Seconds between two lines about a progress where there is no terminal."""
NARROW = 80
"""Columns below which progress is numbers alone."""


def shows_bars(console: Console) -> bool:
    """Return whether a console can move a bar: a terminal, or a notebook with ipywidgets; another notebook gets lines."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class Terminal:
    """Progress bars and tables on standard output, or in a notebook; simple lines where neither can show a bar.

    With `-q` neither notes (but for warnings) nor progress are shown, with `-v` every note says when it was made.
    """

    def __init__(self) -> None:
        self.console, self.started = Console(highlight=False), time.monotonic()

    def note(self, text: str) -> None:
        """Print one line about the work, however long where this is not a terminal."""
        if loudness() >= 0 or text.startswith("warning: "):
            self.answer(f"[{time.monotonic() - self.started:.1f} s] {text}" if loudness() > 0 else text)

    def answer(self, text: str, style: str = "") -> None:
        """Print one line that was asked for."""
        self.console.print(text, style=style, markup=False, soft_wrap=not self.console.is_terminal)

    def warn(self, text: str) -> None:
        """Print one line in red."""
        self.answer(text, "bold red")

    @contextlib.contextmanager
    def bar(self, title: str) -> Iterator[Callable[..., None]]:
        """Show a bar with rate and time left (lines without a terminal); yield a callable (done, total, reasons=None)."""
        with self.bars(title) as (update,):
            yield update

    @contextlib.contextmanager
    def bars(self, *titles: str) -> Iterator[list[Callable[..., None]]]:
        """Show bars below each other, each once it has something to show; several threads may move them."""
        if not shows_bars(self.console) or loudness() < 0:
            yield [self._lines(title) if loudness() >= 0 else _no_progress for title in titles]
            return
        wide = self.console.width >= NARROW
        columns = (
            *((SpinnerColumn(),) if wide else ()),
            TextColumn("{task.description}"),
            *((BarColumn(bar_width=12),) if wide else ()),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            *((TimeElapsedColumn(),) if wide else ()),
            TimeRemainingColumn(),
            TextColumn("{task.fields[extra]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield [_bar(progress, title) for title in titles]

    def _lines(self, title: str) -> Callable[..., None]:
        """Return a callable that prints progress as a line now and then."""
        started, first, printed = time.time(), None, 0.0

        def update(done: int, total: int, reasons: Counter | None = None) -> None:
            nonlocal first, printed
            first = done if first is None else first
            now = time.time()
            if done < total and now - printed < LINE_SECONDS:
                return
            printed, rate = now, (done - first) / max(now - started, 1e-9)
            facts = [f"{title}: {done}/{total}", *([f"{format_rate(rate)}/s"] if rate else []), f"{now - started:.0f} s"]
            facts += [f"{(total - done) / rate:.0f} s left"] if rate and done < total else []
            self.note(f"{', '.join(facts)} {_rejected(reasons)}".rstrip())

        return update

    def funnel(self, draw: int, reasons: Counter) -> None:
        """Print how many samples a draw accepted, and why the others were rejected."""
        rejected = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()) if reason)
        counts = f"{reasons.get('', 0)} of {sum(reasons.values())} samples accepted"
        self.note(f"draw {draw}: {counts}" + (f"; {rejected}" if rejected else ""))

    def results(self, results: dict[str, Any]) -> None:
        """Print the ablation table, in percent, with the spread over support draws."""
        protocol = results["protocol"]
        for draw, counts in results["funnel"]["draws"].items():
            self.funnel(int(draw), Counter({"": counts["accepted"], **counts["rejected"]}))
        if protocol["queries"] == "none":
            self.note("no scores: the data set has no queries with masks (val.txt); the model is trained on what there is")
            return
        title = f"fold {protocol['fold']}, {protocol['shots']}-shot, {protocol['draws']} support draw(s), mIoU in %"
        table = Table("row", title=title, title_justify="left")
        columns = table_columns(protocol)
        for title in columns:
            table.add_column(title, justify="right", no_wrap=True)
        for name, baseline in results["baselines"].items():
            star = " *" if baseline["transductive"] else ""
            table.add_row(title_of(name) + star, *(format_percent(baseline["metrics"][c]) for c in columns.values()))
        if results["baselines"]:
            table.add_section()
        for row in sort_rows(results["rows"]):
            table.add_row(TITLES[row], *(format_percent(results["rows"][row][c]) for c in columns.values()))
        self.console.print(table)
        for line in result_notes(results):
            self.note(line)


def _bar(progress: Progress, title: str) -> Callable[..., None]:
    index = progress.add_task(title, start=False, total=None, visible=False, rate="", extra="")

    def update(done: int, total: int, reasons: Counter | None = None) -> None:
        task = next(t for t in progress.tasks if t.id == index)
        if not task.started:
            progress.start_task(index)
        rate = f"{format_rate(task.speed)}/s" if task.speed else ""
        progress.update(index, completed=done, total=total, visible=True, rate=rate, extra=_rejected(reasons))

    return update


def _no_progress(done: int, total: int, reasons: Counter | None = None) -> None:
    """Show nothing."""


def format_rate(rate: float) -> str:
    """Return a rate with three digits, never 0 for one that is not."""
    return f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}"


def _rejected(reasons: Counter | None) -> str:
    count = sum(n for reason, n in (reasons or {}).items() if reason)
    return f"{count} rejected" if count else ""


def table_columns(protocol: dict[str, Any]) -> dict[str, str]:
    """Return column title -> metric, as the protocol of a result has it."""
    with_background = protocol["base_mIoU"] == "with the background"
    base = {"base + bg": "base_with_background"} if with_background else {"base": "base"}
    mean = "total" if protocol["mean"].startswith("over all") else "mean"
    harmonic = "harmonic_with_background" if with_background else "harmonic"
    return {**base, "novel": "novel", mean: mean, "harmonic": harmonic}


def result_notes(results: dict[str, Any]) -> list[str]:
    """Return what must stand below a table of results: the protocol, every deviation from it, and what else decides the numbers."""
    protocol = results["protocol"]
    lines = [
        f"protocol {protocol['preset']}: {protocol['data']}, {protocol['train_list']}; support from the "
        f"{protocol['support_from']}, base pixels in it {protocol['base_in_support']}; scored on "
        f"{protocol['evaluation_space']}, {protocol['queries']}",
        *(f"deviation from {protocol['preset']}: {line}" for line in protocol["deviations"]),
        f"segmenter {protocol['backbone']} ({protocol['weights']}), canvas {protocol['canvas_kind']} {protocol['canvas']}; "
        f"masks {protocol['masks']}; base images {protocol['base_images']}{_base_data(protocol)}; support draws "
        f"{protocol['support_draw']}; base prototypes of {protocol['base_prototype_images']} base images",
        f"generator {protocol['generator']}; {protocol['replayed_base_images']} base images replayed; base mIoU: "
        f"{protocol['base_mIoU']}; mean {protocol['mean']}; spread: standard deviation over draws",
    ]
    if "by_name" in protocol:
        lines.append(f"control N: masks of {protocol['by_name']} for the name of the class")
    lines += _gain_lines(results.get("gains", {}).get("syn4seg", {}))
    if protocol["transductive"]:
        lines.append("transductive: imported images may be test images")
    for name, baseline in results["baselines"].items():
        star = "* transductive, it optimises on the test image; " if baseline["transductive"] else ""
        lines.append(f"{title_of(name)}: {star}{baseline['source']}; {len(baseline['deviations'])} differences, see results.json")
    lines.append(f"novel classes: {', '.join(protocol['novel'])}")
    return lines


def _base_data(protocol: dict[str, Any]) -> str:
    """Return what base images were after the base stage, if they were not labelled ones."""
    texts = {"predicted": ", later without masks (labels predicted)", "none": ", later none"}
    return texts.get(protocol.get("base_data", "labelled"), "")


def _gain_lines(gains: dict[str, Any]) -> list[str]:
    """Return a line per row over which the whole method is measured, draw by draw, and the share of the oracle's gain."""
    lines = []
    references = {"over_support_only": "support only", "over_hdig_raw": "raw labels", "over_control_image_label": "control A"}
    references |= {"over_control_by_name": "control N"}
    for key, text in references.items():
        if key not in gains or gains[key]["novel"]["mean"] is None:
            continue
        parts = [
            f"{metric} {100 * gains[key][metric]['mean']:+.1f} ± {100 * gains[key][metric]['std']:.1f}"
            for metric in ("base", "novel", "harmonic")
            if gains[key][metric]["mean"] is not None  # no query has a mask of a base class
        ]
        won = f"novel above 0 in {gains[key]['novel']['won']} of {gains[key]['novel']['n']} draws"
        lines.append(f"Syn4Seg over {text}, paired by draw: {', '.join(parts)}; {won}")
    share = gains.get("share_of_oracle", {}).get("novel")
    return lines + ([f"that is {100 * share:.0f} % of what true masks gain in novel mIoU"] if share is not None else [])


def sort_rows(rows: Iterable[str]) -> list[str]:
    """Return rows of the ablation from the simplest to the whole method; a file has them by name."""
    order = list(TITLES)
    return sorted(rows, key=lambda row: (order.index(row) if row in order else len(order), row))


def format_percent(value: dict[str, Any]) -> str:
    """Return a spread in percent, with its standard deviation where there are several values; "-" for none."""
    if value["mean"] is None:
        return "-"
    text = f"{100 * value['mean']:.1f}"
    return text + (f" ± {100 * value['std']:.1f}" if value["n"] > 1 else "")
