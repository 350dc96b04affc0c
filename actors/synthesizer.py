"""Makes the images: generates whole planned batches, or imports files. An image that is already there is only read.

Images are kept as soon as they are made, so whatever fails behind them, no image is made twice. What was out of the ordinary
about one (a smaller batch for want of memory, a retry in safer precision, skipped blocks) goes into `synthesis_audit`, and is
kept with the image, so that a later pass that only reads it knows as much.
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

from actors import deadline as watch
from actors.columns import FAULT, Batch, array_column, map_rows, string_column, summarize_error
from syn4seg.data.folder import decode_image
from syn4seg.errors import StoreError
from syn4seg.schema import PLAN
from syn4seg.store.images import pixel_digest
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredImage

if TYPE_CHECKING:
    from syn4seg.models.protocols import GeneratedBatch, ImageGenerator

BLANK = np.zeros((1, 1, 3), np.uint8)
START_SECONDS = 1800.0
"""What a generator may take to load, and again for its first batch, beside the deadline of the rows."""


def audit_warnings(audits: Iterable[dict[str, Any]]) -> list[str]:
    """One line for each thing that a person should know about the images whose audits these are."""
    sizes: Counter = Counter()
    retried: Counter = Counter()
    for audit in audits:
        if "made_in_batch" in audit:
            sizes[audit["made_in_batch"], audit["planned_batch"]] += 1
        if "precision" in audit:
            retried[audit["precision"]] += 1
    lines = [
        f"{count} images were made in batches of {made} instead of {planned}, for want of memory or beside a row that "
        f"failed; another batch may change rounding; synthesis.batch={made} plans it so"
        for (made, planned), count in sorted(sizes.items())
    ]
    return lines + [f"{count} images came out faulty and were made again ({name})" for name, count in sorted(retried.items())]


class Synthesizer:
    """Generates images batch by batch, as planned.

    A generator batch always has the planned rows in the planned order (the plan pads the last one), so neither pools nor
    resumption changes a byte. Rows with `todo` false are there only to complete their batch and are dropped afterwards.
    If a batch does not fit in memory it is made in halves, and so are the later ones; if it fails twice otherwise, its rows are
    made alone, so that the one at fault costs only itself. Seeds and order stay, rounding may differ, and the audit of the image
    says `made_in_batch`.
    """

    whole_attempts = 3  # a batch made row by row may differ by rounding: not for two kills from outside
    reads = PLAN
    adds = ("image", "image_digest", "synthesis_audit")

    def __init__(self, run: str, names: tuple[str, ...], load: Callable[[], ImageGenerator], planned: int):
        from syn4seg.models.embeddings import EmbeddingStore

        self.run, self.names, self.planned = RunDir(run), names, planned
        self.load, self.generator, self.warm = load, None, False
        self.largest = sys.maxsize  # images that fit into memory at once, as far as is known
        self.store = EmbeddingStore(self.run.embeddings)

    def __call__(self, rows: Batch) -> Batch:
        watch.pause()
        images, audits = _there(self.run, self.names, rows)
        reasons, traces = ([str(text) for text in rows[name]] for name in ("reason", "traceback"))
        for number in dict.fromkeys(rows["batch"].tolist()):
            at = np.array([i for i in np.flatnonzero(rows["batch"] == number) if not reasons[i]], int)
            missing = [i for i in at[rows["todo"][at]] if images[i] is BLANK]
            again = self.run.samples.made_before([_image(self.names, rows, i, BLANK, {}) for i in missing])
            for i, found in zip(missing, again, strict=True):  # of a call whose rows were lost with their node
                if found is not None:
                    images[i], audits[i] = found.pixels, found.audit
            missing = [i for i in missing if images[i] is BLANK]
            if missing:
                made = self._generate(rows, at)
                for i in missing:
                    k = int(np.flatnonzero(at == i)[0])
                    images[i], fault, traces[i], audits[i] = made[k]
                    reasons[i] = FAULT + f"synthesis: {fault}" if fault else ""
                _keep(self.run, self.names, rows, [i for i in missing if not reasons[i]], images, audits)
        return _with(
            rows | {"reason": string_column(reasons), "traceback": string_column(traces)},
            np.flatnonzero(rows["todo"]),
            images,
            audits,
        )

    def _generate(self, rows: Batch, at: np.ndarray) -> list[tuple[np.ndarray, str, str, dict[str, Any]]]:
        """(image, fault, traceback, audit) of each row of one planned batch, made in as few parts as fit into memory."""
        from syn4seg.models.protocols import CarefulGenerator

        if self.generator is None:
            watch.tick(extra=START_SECONDS)
            self.generator = self.load()
            if isinstance(self.generator, CarefulGenerator):
                self.run.note_generator(self.generator.facts())
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
                done += zip(made.images, made.faults, [""] * len(part), [audit | short for audit in made.audit], strict=True)
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

    def _attempt(self, rows: Batch, at: np.ndarray) -> tuple[GeneratedBatch | None, str, str]:
        """These rows as one batch, or what went wrong; the error itself is let go, since it holds on to memory."""
        from syn4seg.models.protocols import CarefulGenerator, GeneratedBatch

        assert self.generator is not None
        given: Any = (
            [str(p) for p in rows["prompt"][at]],
            self.store.rows(rows["prompt_row"][at].tolist()),
            rows["noise_seed"][at].tolist(),
        )
        try:
            if isinstance(self.generator, CarefulGenerator):
                made = self.generator.make(*given)
            else:
                made = GeneratedBatch(*self.generator.generate(*given), [{}] * len(at))
        except StoreError:  # the embeddings cannot be read: no fault of a row
            raise
        except Exception as error:  # noqa: BLE001 - it costs the rows at fault, not the run
            return None, *summarize_error(error)
        return GeneratedBatch(made.images, [f"{fault} image" if fault else "" for fault in made.faults], made.audit), "", ""


def _there(run: RunDir, names: tuple[str, ...], rows: Batch) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Image and audit of every row, as they lie in the run directory; `BLANK` where there is none, or a damaged one."""
    images: list[np.ndarray] = [BLANK] * len(rows["sample_id"])
    audits: list[dict[str, Any]] = [{} for _ in images]
    at = [i for i in range(len(images)) if rows["todo"][i] and rows["image_at"][i] and not rows["reason"][i]]
    for i, found in zip(at, run.samples.read_images([_image(names, rows, i, BLANK, {}) for i in at]), strict=True):
        if found is not None:
            images[i], audits[i] = found.pixels, found.audit
    return images, audits


def _image(names: tuple[str, ...], rows: Batch, i: int, pixels: np.ndarray, audit: dict[str, Any]) -> StoredImage:
    return StoredImage(
        str(rows["sample_id"][i]), names[rows["class_id"][i]], int(rows["batch"][i]), pixels, audit, str(rows["image_at"][i])
    )


def _keep(
    run: RunDir, names: tuple[str, ...], rows: Batch, new: list[int], images: list[np.ndarray], audits: list[dict[str, Any]]
) -> None:
    """Keeps the images of the rows `new` in the run directory."""
    watch.pause()
    run.samples.write_images([_image(names, rows, i, images[i], audits[i]) for i in new])


def _with(rows: Batch, keep: np.ndarray, images: list[np.ndarray], audits: list[dict[str, Any]]) -> Batch:
    """The rows `keep` with the columns that a stage of images adds."""
    out = {name: values[keep] for name, values in rows.items()}
    digests = ["" if rows["reason"][i] else pixel_digest(np.asarray(images[i])) for i in keep]
    return out | {
        "image": array_column([images[i] for i in keep]),
        "image_digest": string_column(digests),
        "synthesis_audit": string_column([json.dumps(audits[i]) for i in keep]),
    }


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
        there, audits = _there(self.run, self.names, rows)

        def work(i: int):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return (decode_image(self.root / rows["prompt"][i]) if there[i] is BLANK else there[i]), ""

        images, reasons, traces = map_rows(rows, "import", work, lambda _: (BLANK,))
        _keep(
            self.run, self.names, rows, [i for i, reason in enumerate(reasons) if not reason and there[i] is BLANK], images, audits
        )
        return _with(
            rows | {"reason": string_column(reasons), "traceback": string_column(traces)}, np.arange(len(keep)), images, audits
        )
