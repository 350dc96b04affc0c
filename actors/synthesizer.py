"""Makes the images: generates whole planned batches, or imports files. An image that is already on disk is only read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actors.columns import FAULT, Batch, column, texts
from syn4seg.data.folder import decode_image
from syn4seg.rundir import RunDir, read_image

if TYPE_CHECKING:
    from syn4seg.models.generators import ImageGenerator

BLANK = np.zeros((1, 1, 3), np.uint8)


class Synthesizer:
    """Generates images batch by batch, as planned.

    A generator batch always has the planned rows in the planned order (the plan pads the last one), so neither pools nor
    resumption changes a byte. Rows with `todo` false are there only to complete their batch and are dropped afterwards.
    """

    reads = ("sample_id", "class_id", "prompt", "prompt_row", "noise_seed", "batch", "todo")
    adds = ("image", "reason")

    def __init__(self, run: str, names: tuple[str, ...], load: Callable[[], ImageGenerator]):
        from syn4seg.models.generators import EmbeddingStore

        self.run, self.names = RunDir(run), names
        self.load, self.generator = load, None
        self.store = EmbeddingStore(self.run.embeddings)

    def __call__(self, rows: Batch) -> Batch:
        images: list[np.ndarray] = [BLANK] * len(rows["sample_id"])
        reasons = [""] * len(images)
        for number in dict.fromkeys(rows["batch"].tolist()):
            at = np.flatnonzero(rows["batch"] == number)
            missing = []
            for i in at[rows["todo"][at]]:
                path = self.run.image(self.names[rows["class_id"][i]], str(rows["sample_id"][i]))
                try:
                    images[i] = read_image(path)
                except ValueError:  # absent or damaged: the same bytes are made again
                    missing.append(i)
            if missing:
                made, faults = self._generate(rows, at)
                for i in missing:
                    k = int(np.flatnonzero(at == i)[0])
                    images[i], reasons[i] = made[k], FAULT + f"synthesis: {faults[k]}" if faults[k] else ""
        keep = np.flatnonzero(rows["todo"])
        out = {name: values[keep] for name, values in rows.items()}
        return out | {"image": column([images[i] for i in keep]), "reason": texts([reasons[i] for i in keep])}

    def _generate(self, rows: Batch, at: np.ndarray) -> tuple[np.ndarray, list[str]]:
        if self.generator is None:
            self.generator = self.load()
        try:
            encoded = self.store.rows(rows["prompt_row"][at].tolist())
            seeds = rows["noise_seed"][at].tolist()
            images, faults = self.generator.generate([str(p) for p in rows["prompt"][at]], encoded, seeds)
        except (RuntimeError, ArithmeticError, MemoryError) as error:  # costs this batch, not the run
            said = f"{type(error).__name__}: {error}"
            return np.broadcast_to(BLANK, (len(at), *BLANK.shape)), [said] * len(at)
        return images, [f"{fault} image" if fault else "" for fault in faults]


class Importer:
    """Reads the user's own images; `prompt` holds the path below `root`."""

    reads = Synthesizer.reads
    adds = Synthesizer.adds

    def __init__(self, run: str, names: tuple[str, ...], root: str):
        self.run, self.names, self.root = RunDir(run), names, Path(root)

    def __call__(self, rows: Batch) -> Batch:
        keep = np.flatnonzero(rows["todo"])
        images, reasons = [], []
        for i in keep:
            copy = self.run.image(self.names[rows["class_id"][i]], rows["sample_id"][i])
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    images.append(read_image(copy) if copy.is_file() else decode_image(self.root / rows["prompt"][i]))
                reasons.append("")
            except (ValueError, OSError) as error:
                images.append(BLANK)
                reasons.append(f"{FAULT}import: {error}")
        out = {name: values[keep] for name, values in rows.items()}
        return out | {"image": column(images), "reason": texts(reasons)}
