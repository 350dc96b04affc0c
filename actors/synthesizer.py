"""Generates images in whole planned batches, or imports files. An image that exists already is only read.

Images are stored as soon as they are generated, so whatever fails later, no image is generated twice. What was out of the
ordinary about one (a smaller batch for want of memory, a retry in safer precision, skipped blocks) goes into `synthesis_audit`,
and is stored with the image, so that a later pass that only reads it knows as much.
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

from actors import deadline
from actors.columns import FAULT, Batch, array_column, map_rows, string_column, summarize_error
from syn4seg.data.photos import decode_image
from syn4seg.errors import StoreError
from syn4seg.schema import PLAN
from syn4seg.store.images import pixel_digest
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredImage

if TYPE_CHECKING:
    from syn4seg.models.protocols import GeneratedBatch, ImageGenerator, SupportedGenerator

BLANK = np.zeros((1, 1, 3), np.uint8)
START_SECONDS = 1800.0
"""What a generator may take to load, and again for its first batch, beside the deadline of the rows."""


def audit_warnings(audits: Iterable[dict[str, Any]]) -> list[str]:
    """Return one line for each thing that a person should know about the images with these audits."""
    sizes: Counter = Counter()
    retried: Counter = Counter()
    for audit in audits:
        if "made_in_batch" in audit:
            sizes[audit["made_in_batch"], audit["planned_batch"]] += 1
        if "precision" in audit:
            retried[audit["precision"]] += 1
    lines = [
        f"{count} images were made in batches of {size} instead of {planned}, for want of memory or beside a row that "
        f"failed; another batch may change rounding; synthesis.batch={size} plans it so"
        for (size, planned), count in sorted(sizes.items())
    ]
    return lines + [f"{count} images came out faulty and were made again ({name})" for name, count in sorted(retried.items())]


Generated = tuple[np.ndarray, str, str, dict[str, Any]]
"""Image, fault, traceback and audit of a row."""


class Synthesizer:
    """Generate images batch by batch, as planned.

    A generator batch always has the planned rows in the planned order (the plan pads the last one), so neither pools nor
    resumption changes a byte. Rows with `todo` false are there only to complete their batch and are dropped afterwards.
    A batch that does not fit in memory is generated in halves, and so are the later ones; if one fails twice otherwise, its rows
    are generated one by one, so that the row at fault costs only itself. Seeds and order stay, rounding may differ, and the audit
    of the image says `made_in_batch`.
    """

    whole_attempts = 3  # a batch generated row by row may differ by rounding: not for two kills from outside
    reads = PLAN
    adds = ("image", "image_digest", "synthesis_audit")

    def __init__(self, run: str, names: tuple[str, ...], load: Callable[[], ImageGenerator | SupportedGenerator], planned: int):
        from syn4seg.models.embeddings import EmbeddingStore

        self.run, self.names, self.planned = RunDir(run), names, planned
        self.load, self.generator, self.warm = load, None, False
        self.largest = sys.maxsize  # images that have not yet been seen not to fit into memory at once
        self.store = EmbeddingStore(self.run.embeddings)

    def __call__(self, rows: Batch) -> Batch:
        deadline.pause()
        images, audits = read_images(self.run, self.names, rows)
        reasons, traces = ([str(text) for text in rows[name]] for name in ("reason", "traceback"))
        for number in dict.fromkeys(rows["batch"].tolist()):
            batch = np.array([i for i in np.flatnonzero(rows["batch"] == number) if not reasons[i]], int)
            missing = [i for i in batch[rows["todo"][batch]] if images[i] is BLANK]
            earlier = self.run.samples.find_written([stored_image(self.names, rows, i) for i in missing])
            for i, image in zip(missing, earlier, strict=True):  # of a call whose rows were lost with their node
                if image is not None:
                    images[i], audits[i] = image.pixels, image.audit
            missing = [i for i in missing if images[i] is BLANK]
            if missing:
                generated = dict(zip(batch.tolist(), self._generate(rows, batch), strict=True))
                for i in missing:
                    images[i], fault, traces[i], audits[i] = generated[i]
                    reasons[i] = FAULT + f"synthesis: {fault}" if fault else ""
                store_images(self.run, self.names, rows, [i for i in missing if not reasons[i]], images, audits)
        return with_images(rows, reasons, traces, np.flatnonzero(rows["todo"]), images, audits)

    def _generate(self, rows: Batch, batch: np.ndarray) -> list[Generated]:
        """Return what becomes of each row of one planned batch, generated in as few parts as fit into memory."""
        from syn4seg.models.protocols import AuditingGenerator, SupportedGenerator

        if self.generator is None:
            deadline.tick(extra=START_SECONDS)
            self.generator = self.load()
            if isinstance(self.generator, AuditingGenerator | SupportedGenerator):
                self.run.note_generator(self.generator.facts())
        done: list[Generated] = []
        extra = 0.0 if self.warm else START_SECONDS  # compiled models compile in their first call
        singles = failed = 0  # rows to be generated one by one; failures of this batch that were not for want of memory
        while len(done) < len(batch):
            part = batch[len(done) : len(done) + (1 if singles else self.largest)]
            deadline.tick(len(part), extra)
            result, error, trace = self._attempt(rows, part)
            self.warm, extra = True, 0.0
            if result is not None:
                short = {"made_in_batch": len(part), "planned_batch": self.planned} if len(part) < self.planned else {}
                audits = [audit | short for audit in result.audit]
                done += zip(result.images, result.faults, [""] * len(part), audits, strict=True)
            elif len(part) == 1:
                done.append((BLANK, error, trace, {}))
            elif out_of_memory(error):
                self.largest = (len(part) + 1) // 2
                _release_memory()
                continue
            else:  # once may be chance, and generated alone an image may differ by rounding
                failed += 1
                singles = len(part) if failed > 1 else 0
                continue
            singles = max(0, singles - len(part))
        return done

    def _attempt(self, rows: Batch, part: np.ndarray) -> tuple[GeneratedBatch | None, str, str]:
        """Generate rows as one batch; return it, or a line and a traceback: the error itself holds on to memory."""
        from syn4seg.models.protocols import AuditingGenerator, GeneratedBatch, SupportedGenerator

        assert self.generator is not None
        arguments: Any = (
            [str(p) for p in rows["prompt"][part]],
            self.store.rows(rows["prompt_row"][part].tolist()),
            rows["noise_seed"][part].tolist(),
        )
        try:
            if isinstance(self.generator, SupportedGenerator):
                batch = self.generator.make_for(rows["class_id"][part].tolist(), *arguments)
            elif isinstance(self.generator, AuditingGenerator):
                batch = self.generator.make(*arguments)
            else:
                batch = GeneratedBatch(*self.generator.generate(*arguments), [{}] * len(part))
        except StoreError:  # the embeddings cannot be read: no fault of a row
            raise
        except Exception as error:  # noqa: BLE001 - it costs the rows at fault, not the run
            return None, *summarize_error(error)
        return GeneratedBatch(batch.images, [f"{fault} image" if fault else "" for fault in batch.faults], batch.audit), "", ""


def read_images(run: RunDir, names: tuple[str, ...], rows: Batch) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Return image and audit of every row from the run directory; `BLANK` where there is none, or a damaged one."""
    images: list[np.ndarray] = [BLANK] * len(rows["sample_id"])
    audits: list[dict[str, Any]] = [{} for _ in images]
    stored = [i for i in range(len(images)) if rows["todo"][i] and rows["image_at"][i] and not rows["reason"][i]]
    for i, image in zip(stored, run.samples.read_images([stored_image(names, rows, i) for i in stored]), strict=True):
        if image is not None:
            images[i], audits[i] = image.pixels, image.audit
    return images, audits


def stored_image(
    names: tuple[str, ...], rows: Batch, i: int, pixels: np.ndarray = BLANK, audit: dict[str, Any] | None = None
) -> StoredImage:
    """Return row `i` as the run directory names and keeps it."""
    name, batch, path = names[rows["class_id"][i]], int(rows["batch"][i]), str(rows["image_at"][i])
    return StoredImage(str(rows["sample_id"][i]), name, batch, pixels, audit or {}, path)


def store_images(
    run: RunDir, names: tuple[str, ...], rows: Batch, new: list[int], images: list[np.ndarray], audits: list[dict[str, Any]]
) -> None:
    """Write the images of the rows `new` into the run directory."""
    deadline.pause()
    run.samples.write_images([stored_image(names, rows, i, images[i], audits[i]) for i in new])


def with_images(
    rows: Batch, reasons: list[str], traces: list[str], keep: np.ndarray, images: list[np.ndarray], audits: list[dict[str, Any]]
) -> Batch:
    """Return the rows `keep` with their reasons and the columns that an operator of images adds."""
    rows = rows | {"reason": string_column(reasons), "traceback": string_column(traces)}
    return {name: values[keep] for name, values in rows.items()} | {
        "image": array_column([images[i] for i in keep]),
        "image_digest": string_column(["" if reasons[i] else pixel_digest(np.asarray(images[i])) for i in keep]),
        "synthesis_audit": string_column([json.dumps(audits[i]) for i in keep]),
    }


def out_of_memory(error: str) -> bool:
    """Return whether "TypeOfError: text" is torch's or Python's way to say that memory ran out."""
    return error.startswith(("OutOfMemoryError", "MemoryError")) or any(
        text in error.lower() for text in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _release_memory() -> None:
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


class Importer:
    """Read the user's own images; `prompt` holds the path below `root`."""

    reads = Synthesizer.reads
    adds = Synthesizer.adds

    def __init__(self, run: str, names: tuple[str, ...], root: str):
        self.run, self.names, self.root = RunDir(run), names, Path(root)

    def __call__(self, rows: Batch) -> Batch:
        keep = np.flatnonzero(rows["todo"])
        rows = {name: values[keep] for name, values in rows.items()}
        stored, audits = read_images(self.run, self.names, rows)

        def work(i: int):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return (decode_image(self.root / rows["prompt"][i]) if stored[i] is BLANK else stored[i]), ""

        images, reasons, traces = map_rows(rows, "import", work, lambda _: (BLANK,))
        new = [i for i, reason in enumerate(reasons) if not reason and stored[i] is BLANK]
        store_images(self.run, self.names, rows, new, images, audits)
        return with_images(rows, reasons, traces, np.arange(len(keep)), images, audits)
