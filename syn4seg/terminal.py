"""What a person sees at the terminal: progress with rates and time left, the tables at the end, the doctor."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from syn4seg.cache import StageCache
    from syn4seg.config import Config

PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "segment-anything",
    "numpy",
    "pyarrow",
    "optuna",
)
SMALL_PACKAGES = (
    "scipy",
    "opencv-python-headless",
    "pillow",
    "safetensors",
    "pydantic",
    "pyyaml",
    "typer",
    "rich",
    "matplotlib",
)
TITLES = {"support_only": "support only", "class_name_raw": "+ class-name prompts, raw masks", "hdig_raw": "+ HDIG, raw masks",
          "apf": "+ APF", "apr": "+ APF + APR", "syn4seg": "+ SABR (Syn4Seg)"}  # fmt: skip

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
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=12), MofNCompleteColumn(),
                   TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[extra]}"))  # fmt: skip
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
            f"draw {draw}: {reasons.get('', 0)} of {sum(reasons.values())} samples accepted"
            + (f"; {rejected}" if rejected else "")
        )

    def results(self, results: dict[str, Any]) -> None:
        """The ablation table, in percent, with the spread over support draws."""
        about = results["protocol"]
        for draw, counts in results["funnel"]["draws"].items():
            self.funnel(int(draw), Counter({"": counts["accepted"], **counts["rejected"]}))
        table = Table(
            title=f"fold {about['fold']}, {about['shots']}-shot, {about['draws']} support draw(s), mIoU in %",
            title_justify="left",
        )
        table.add_column("row")
        columns = table_columns(about)
        for title in columns:
            table.add_column(title, justify="right")
        for name, found in results["baselines"].items():
            star = " *" if found["transductive"] else ""
            table.add_row(BASELINES[name] + star, *(percent(found["metrics"][c]) for c in columns.values()))
        if results["baselines"]:
            table.add_section()
        for row in in_order(results["rows"]):
            values = results["rows"][row]
            table.add_row(TITLES[row], *(percent(values[c]) for c in columns.values()))
        self.console.print(table)
        for line in about_results(results):
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


def about_results(results: dict[str, Any]) -> list[str]:
    """What must stand below a table of results: the protocol, every deviation from it, and what else decides the numbers."""
    about = results["protocol"]
    lines = [f"protocol {about['preset']}: {about['data']}, {about['train_list']}; support from the {about['support_from']}, base "
             f"pixels in it {about['base_in_support']}; scored on {about['evaluation_space']}, {about['queries']}"]  # fmt: skip
    lines += [f"deviation from {about['preset']}: {line}" for line in about["deviations"]]
    lines.append(f"segmenter {about['backbone']} ({about['weights']}), canvas {about['canvas_kind']} {about['canvas']}; masks "
                 f"{about['masks']}; base images {about['base_images']}; support draws {about['support_draw']}; base prototypes of "
                 f"{about['base_prototype_images']} base images")  # fmt: skip
    lines.append(f"generator {about['generator']}; {about['replayed_base_images']} base images replayed; base mIoU: "
                 f"{about['base_mIoU']}; mean {about['mean']}; spread: standard deviation over draws")  # fmt: skip
    if about["transductive"]:
        lines.append("transductive: imported images may be test images")
    for name, found in results["baselines"].items():
        star = "* transductive, it optimises on the test image; " if found["transductive"] else ""
        lines.append(
            f"{BASELINES[name]}: {star}{found['source']}; {len(found['deviations'])} differences, see results.json"
        )
    lines.append(f"novel classes: {', '.join(about['novel'])}")
    return lines


def _rejected(reasons: Counter | None) -> str:
    count = sum(n for reason, n in (reasons or {}).items() if reason)
    return f"{count} rejected" if count else ""


def in_order(rows: Iterable[str]) -> list[str]:
    """Rows of the ablation from the plainest to the whole method; a file has them by name."""
    known = list(TITLES)
    return sorted(rows, key=lambda row: (known.index(row) if row in known else len(known), row))


def percent(value: dict[str, Any]) -> str:
    """A spread in percent, with its standard deviation where there are several values; "-" for none."""
    if value["mean"] is None:
        return "-"
    text = f"{100 * value['mean']:.1f}"
    return text + (f" ± {100 * value['std']:.1f}" if value["n"] > 1 else "")


def versions() -> dict[str, str]:
    """Versions of this project, of Python and of the packages that may change a result."""
    found = {"syn4seg-ray": "source", "python": platform.python_version()}
    for name in ("syn4seg-ray", *PACKAGES, *SMALL_PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def diagnose() -> bool:
    """Prints what is installed and what is missing with the remedy; returns whether the main job can run."""
    import os

    console, well = Console(highlight=False), True
    for name, version in versions().items():
        console.print(f"[green]ok[/green]      {name} {version}")
    for name in sorted({*PACKAGES, *SMALL_PACKAGES} - set(versions())):
        console.print(f"[red]missing[/red] {name}: pip install {name}")
        well = False
    if not well:
        return False
    import torch

    from syn4seg.stages.setup import shipped_base, weights_folder

    gpus = torch.cuda.device_count()
    console.print(
        f"[green]ok[/green]      {os.cpu_count()} CPU cores, {gpus} GPUs"
        + ("" if gpus else " (the main job needs none)")
    )
    for path, what in ((shipped_base(0), "base checkpoints"), (weights_folder() / "embedded-sam", "small SAM"),
                       (weights_folder() / "embedded-sd3", "small Stable Diffusion 3")):  # fmt: skip
        there = path.exists()
        well &= there or "Diffusion" in what
        remedy = "reinstall the package, or build it with python -m syn4seg.models.build"
        console.print(f"[green]ok[/green]      {what}" if there else f"[red]missing[/red] {what}: {remedy}")
    token = any(os.environ.get(k) for k in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    unset = "[yellow]note[/yellow]    HF_TOKEN is not set: needed only to download gated weights (Stable Diffusion 3.5)"
    console.print("[green]ok[/green]      HF_TOKEN is set" if token else unset)
    free = shutil.disk_usage(".").free / 2**30
    console.print(f"{'[green]ok[/green]     ' if free > 2 else '[red]low[/red]    '} {free:.1f} GiB free here")
    return well


def print_plan(config: Config, rates: Path | None, measured: int, card: str, as_json: bool) -> None:
    """Prints what a run would make and cost, as a table or as JSON.

    Raises:
        ValueError: unreadable rates, an unknown card, or a model whose size is not known.
    """
    from syn4seg.stages.estimate import table
    from syn4seg.stages.measure import plan_run
    from syn4seg.stages.setup import is_prepared

    found = plan_run(config, rates, measured, card)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    header, rows, footnotes = table(found)
    console = Console(highlight=False)
    shown = Table(
        title=f"plan of {config.name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
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
        console.print(
            f"data.root={config.data.root} is not prepared: the published numbers of images are assumed", markup=False
        )
    for line in [*(f"{letter}: {text}" for text, letter in origins.items()), *footnotes]:
        console.print(line, markup=False)


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
        table.add_row(
            use.stage, f"{use.entries}", f"{use.bytes / 2**20:.1f}", time.strftime("%F %T", time.localtime(use.used))
        )
    table.add_section()
    table.add_row("all", f"{sum(u.entries for u in uses)}", f"{sum(u.bytes for u in uses) / 2**20:.1f}", "")
    display.console.print(table)
