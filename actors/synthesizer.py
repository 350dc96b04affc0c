"""Makes the images: generates whole planned batches, or imports files. An image that is already on disk is only read.

What was out of the ordinary about an image (a smaller batch for want of memory, a retry in safer precision, skipped blocks)
goes into `synthesis_audit`, and lies beside the image as JSON, so that a later pass that only reads it knows as much.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors import watch
from actors.columns import FAULT, Batch, column, each_row, texts, told
from syn4seg.data.folder import decode_image
from syn4seg.rundir import RunDir, read_image

if TYPE_CHECKING:
    from syn4seg.models.generators import ImageGenerator, Made

BLANK = np.zeros((1, 1, 3), np.uint8)
START_SECONDS = 3600.0
"""What a generator may take to load, and again for its first batch, beside the deadline of the rows."""


def notes_path(image: Path) -> Path:
    """Where the audit of an image lies, if there is anything to say."""
    return image.with_suffix(".json")


def notes_of(image: Path) -> dict[str, Any]:
    """The audit that lies beside an image; empty if there is nothing to say."""
    try:
        notes = json.loads(notes_path(image).read_text())
    except (OSError, ValueError):  # most images have none
        return {}
    return notes if isinstance(notes, dict) else {}


def warnings_of(audits: Iterable[dict[str, Any]]) -> list[str]:
    """One line for each thing that a person should know about the images whose audits these are."""
    sizes: Counter = Counter()
    retried: Counter = Counter()
    for audit in audits:
        if "made_in_batch" in audit:
            sizes[audit["made_in_batch"], audit["planned_batch"]] += 1
        if "precision" in audit:
            retried[audit["precision"]] += 1
    lines = [f"{count} images were made in batches of {made} instead of {planned}, for want of memory or beside a row that "
             f"failed; another batch may change rounding; synthesis.batch={made} plans it so"
             for (made, planned), count in sorted(sizes.items())]  # fmt: skip
    return lines + [
        f"{count} images came out faulty and were made again ({name})" for name, count in sorted(retried.items())
    ]


class Synthesizer:
    """Generates images batch by batch, as planned.

    A generator batch always has the planned rows in the planned order (the plan pads the last one), so neither pools nor
    resumption changes a byte. Rows with `todo` false are there only to complete their batch and are dropped afterwards.
    If a batch does not fit in memory it is made in halves, and so are the later ones; if it fails twice otherwise, its rows are
    made alone, so that the one at fault costs only itself. Seeds and order stay, rounding may differ, and the audit of the image
    says `made_in_batch`.
    """

    whole_attempts = 3  # a batch made row by row may differ by rounding: not for two kills from outside
    reads = ("sample_id", "class_id", "prompt", "prompt_row", "noise_seed", "batch", "todo", "reason", "traceback")
    adds = ("image", "synthesis_audit")

    def __init__(self, run: str, names: tuple[str, ...], load: Callable[[], ImageGenerator], planned: int):
        from syn4seg.models.generators import EmbeddingStore

        self.run, self.names, self.planned = RunDir(run), names, planned
        self.load, self.generator, self.warm = load, None, False
        self.largest = sys.maxsize  # images that fit into memory at once, as far as is known
        self.store = EmbeddingStore(self.run.embeddings)

    def __call__(self, rows: Batch) -> Batch:
        images: list[np.ndarray] = [BLANK] * len(rows["sample_id"])
        audits: list[dict[str, Any]] = [{}] * len(images)
        reasons, traces = ([str(text) for text in rows[name]] for name in ("reason", "traceback"))
        for number in dict.fromkeys(rows["batch"].tolist()):
            at = np.array([i for i in np.flatnonzero(rows["batch"] == number) if not reasons[i]], int)
            missing = []
            for i in at[rows["todo"][at]]:
                path = self.run.image(self.names[rows["class_id"][i]], str(rows["sample_id"][i]))
                try:
                    images[i], audits[i] = read_image(path), notes_of(path)
                except ValueError:  # absent or damaged: the same bytes are made again
                    missing.append(i)
            if missing:
                made = self._generate(rows, at)
                for i in missing:
                    k = int(np.flatnonzero(at == i)[0])
                    images[i], fault, traces[i], audits[i] = made[k]
                    reasons[i] = FAULT + f"synthesis: {fault}" if fault else ""
        keep = np.flatnonzero(rows["todo"])
        out = {name: values[keep] for name, values in rows.items()}
        return out | {"image": column([images[i] for i in keep]), "reason": texts([reasons[i] for i in keep]),
                      "traceback": texts([traces[i] for i in keep]),
                      "synthesis_audit": texts([json.dumps(audits[i]) for i in keep])}  # fmt: skip

    def _generate(self, rows: Batch, at: np.ndarray) -> list[tuple[np.ndarray, str, str, dict[str, Any]]]:
        """(image, fault, traceback, audit) of each row of one planned batch, made in as few parts as fit into memory."""
        from syn4seg.models.generators import CarefulGenerator

        if self.generator is None:
            watch.tick(extra=START_SECONDS)
            self.generator = self.load()
            if isinstance(self.generator, CarefulGenerator):
                self.run.log(stage="generator", **self.generator.facts())
        done: list[tuple[np.ndarray, str, str, dict[str, Any]]] = []
        extra = 0.0 if self.warm else START_SECONDS  # compiled models compile in their first call
        alone = failed = 0  # rows to be made one by one; failures of this batch that were not for want of memory
        while len(done) < len(at):
            part = at[len(done) : len(done) + (1 if alone else self.largest)]
            watch.tick(len(part), extra)
            made, error, trace = self._attempt(rows, part)
            self.warm, extra = True, 0.0
            if made is not None:
                short = {"made_in_batch": len(part), "planned_batch": self.planned} if len(part) < self.planned else {}
                done += zip(
                    made.images, made.faults, [""] * len(part), [audit | short for audit in made.audit], strict=True
                )
            elif len(part) == 1:
                done.append((BLANK, error, trace, {}))
            elif out_of_memory(error):
                self.largest = (len(part) + 1) // 2
                _release_memory()
                continue
            else:  # once may be chance, and made alone an image may differ by rounding
                failed += 1
                alone = len(part) if failed > 1 else 0
                continue
            alone = max(0, alone - len(part))
        return done

    def _attempt(self, rows: Batch, at: np.ndarray) -> tuple[Made | None, str, str]:
        """These rows as one batch, or what went wrong; the error itself is let go, since it holds on to memory."""
        from syn4seg.models.generators import CarefulGenerator, Made

        assert self.generator is not None
        given: Any = ([str(p) for p in rows["prompt"][at]], self.store.rows(rows["prompt_row"][at].tolist()),
                      rows["noise_seed"][at].tolist())  # fmt: skip
        try:
            if isinstance(self.generator, CarefulGenerator):
                made = self.generator.make(*given)
            else:
                made = Made(*self.generator.generate(*given), [{}] * len(at))
        except Exception as error:  # noqa: BLE001 - it costs the rows at fault, not the run
            return None, *told(error)
        return Made(made.images, [f"{fault} image" if fault else "" for fault in made.faults], made.audit), "", ""


def out_of_memory(error: str) -> bool:
    """Whether "TypeOfError: text" is torch's or Python's way to say that memory ran out."""
    return error.startswith(("OutOfMemoryError", "MemoryError")) or any(
        said in error.lower() for said in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _release_memory() -> None:
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


class Importer:
    """Reads the user's own images; `prompt` holds the path below `root`."""

    reads = Synthesizer.reads
    adds = Synthesizer.adds

    def __init__(self, run: str, names: tuple[str, ...], root: str):
        self.run, self.names, self.root = RunDir(run), names, Path(root)

    def __call__(self, rows: Batch) -> Batch:
        keep = np.flatnonzero(rows["todo"])
        rows = {name: values[keep] for name, values in rows.items()}

        def work(i: int):
            copy = self.run.image(self.names[rows["class_id"][i]], rows["sample_id"][i])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return (read_image(copy) if copy.is_file() else decode_image(self.root / rows["prompt"][i])), ""

        images, reasons, traces = each_row(rows, "import", work, lambda _: (BLANK,))
        return rows | {"image": column(images), "reason": texts(reasons), "traceback": texts(traces),
                       "synthesis_audit": texts(["{}"] * len(keep))}  # fmt: skip
