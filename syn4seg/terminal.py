"""What a person sees at the terminal: progress with rates and time left, the tables at the end, the doctor."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    pass

TITLES = {
    "support_only": "support only",
    "class_name_raw": "+ class-name prompts, raw masks",
    "hdig_raw": "+ HDIG, raw masks",
    "apf": "+ APF",
    "apr": "+ APF + APR",
    "syn4seg": "+ SABR (Syn4Seg)",
}

BASELINES = {"imprinting": "prototype imprinting", "finetuning": "support fine-tuning", "diam": "DIaM", "bcm": "BCM"}


class Terminal:
    """Progress bars and tables on standard output; plain lines where that is not a terminal."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def note(self, text: str) -> None:
        """One line, however long where this is not a terminal."""
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def warn(self, text: str) -> None:
        """One line in red."""
        self.console.print(text, style="bold red", markup=False, soft_wrap=not self.console.is_terminal)

    @contextlib.contextmanager
    def bar(self, title: str) -> Iterator[Callable[..., None]]:
        """A bar with rate and time left (a line every ten seconds off a terminal); yields (done, total, reasons=None)."""
        with self.bars(title) as (update,):
            yield update

    @contextlib.contextmanager
    def bars(self, *titles: str) -> Iterator[list[Callable[..., None]]]:
        """Bars below each other, each shown once it has something to show; they may be moved by several threads."""
        if not self.console.is_terminal:
            yield [self._lines(title) for title in titles]
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[extra]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield [_bar(progress, title) for title in titles]

    def _lines(self, title: str) -> Callable[..., None]:
        begun, first, said = time.time(), None, 0.0

        def update(done: int, total: int, reasons: Counter | None = None) -> None:
            nonlocal first, said
            first = done if first is None else first
            now = time.time()
            if done < total and now - said < 10:
                return
            said, rate = now, (done - first) / max(now - begun, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
            self.note(f"{title}: {done}/{total}, {rate:.2f}/s, {now - begun:.0f} s{left} {_rejected(reasons)}".rstrip())

        return update

    def funnel(self, draw: int, reasons: Counter) -> None:
        """How many samples a draw accepted, and why the others were not."""
        rejected = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()) if reason)
        self.note(
            f"draw {draw}: {reasons.get('', 0)} of {sum(reasons.values())} samples accepted" + (f"; {rejected}" if rejected else "")
        )

    def results(self, results: dict[str, Any]) -> None:
        """The ablation table, in percent, with the spread over support draws."""
        about = results["protocol"]
        for draw, counts in results["funnel"]["draws"].items():
            self.funnel(int(draw), Counter({"": counts["accepted"], **counts["rejected"]}))
        table = Table(
            title=f"fold {about['fold']}, {about['shots']}-shot, {about['draws']} support draw(s), mIoU in %", title_justify="left"
        )
        table.add_column("row")
        columns = table_columns(about)
        for title in columns:
            table.add_column(title, justify="right")
        for name, found in results["baselines"].items():
            star = " *" if found["transductive"] else ""
            table.add_row(BASELINES[name] + star, *(format_percent(found["metrics"][c]) for c in columns.values()))
        if results["baselines"]:
            table.add_section()
        for row in sort_rows(results["rows"]):
            values = results["rows"][row]
            table.add_row(TITLES[row], *(format_percent(values[c]) for c in columns.values()))
        self.console.print(table)
        for line in result_notes(results):
            self.note(line)


def _bar(progress: Progress, title: str) -> Callable[..., None]:
    task = progress.add_task(title, start=False, total=None, visible=False, rate="", extra="")

    def update(done: int, total: int, reasons: Counter | None = None) -> None:
        mine = next(t for t in progress.tasks if t.id == task)
        if not mine.started:
            progress.start_task(task)
        rate = f"{mine.speed:.1f}/s" if mine.speed else ""
        progress.update(task, completed=done, total=total, visible=True, rate=rate, extra=_rejected(reasons))

    return update


def table_columns(about: dict[str, Any]) -> dict[str, str]:
    """Column title -> metric, as the protocol of a result has it."""
    with_background = about["base_mIoU"] == "with the background"
    base = {"base + bg": "base_with_background"} if with_background else {"base": "base"}
    mean = {"total": "total"} if about["mean"].startswith("over all") else {"mean": "mean"}
    return {**base, "novel": "novel", **mean, "harmonic": "harmonic_with_background" if with_background else "harmonic"}


def result_notes(results: dict[str, Any]) -> list[str]:
    """What must stand below a table of results: the protocol, every deviation from it, and what else decides the numbers."""
    about = results["protocol"]
    lines = [
        f"protocol {about['preset']}: {about['data']}, {about['train_list']}; support from the {about['support_from']}, base "
        f"pixels in it {about['base_in_support']}; scored on {about['evaluation_space']}, {about['queries']}"
    ]
    lines += [f"deviation from {about['preset']}: {line}" for line in about["deviations"]]
    lines.append(
        f"segmenter {about['backbone']} ({about['weights']}), canvas {about['canvas_kind']} {about['canvas']}; masks "
        f"{about['masks']}; base images {about['base_images']}; support draws {about['support_draw']}; base prototypes of "
        f"{about['base_prototype_images']} base images"
    )
    lines.append(
        f"generator {about['generator']}; {about['replayed_base_images']} base images replayed; base mIoU: "
        f"{about['base_mIoU']}; mean {about['mean']}; spread: standard deviation over draws"
    )
    if about["transductive"]:
        lines.append("transductive: imported images may be test images")
    for name, found in results["baselines"].items():
        star = "* transductive, it optimises on the test image; " if found["transductive"] else ""
        lines.append(f"{BASELINES[name]}: {star}{found['source']}; {len(found['deviations'])} differences, see results.json")
    lines.append(f"novel classes: {', '.join(about['novel'])}")
    return lines


def _rejected(reasons: Counter | None) -> str:
    count = sum(n for reason, n in (reasons or {}).items() if reason)
    return f"{count} rejected" if count else ""


def sort_rows(rows: Iterable[str]) -> list[str]:
    """Rows of the ablation from the plainest to the whole method; a file has them by name."""
    known = list(TITLES)
    return sorted(rows, key=lambda row: (known.index(row) if row in known else len(known), row))


def format_percent(value: dict[str, Any]) -> str:
    """A spread in percent, with its standard deviation where there are several values; "-" for none."""
    if value["mean"] is None:
        return "-"
    text = f"{100 * value['mean']:.1f}"
    return text + (f" ± {100 * value['std']:.1f}" if value["n"] > 1 else "")
