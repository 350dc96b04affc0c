"""Finished samples of a draw as they appear in the run directory, and their frozen features, each computed once per run.

The run directory is the hand-over between those who label and those who train: a record that is there is true whoever made
it, and killing either side loses nothing.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.errors import DamagedError
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import Sample

if TYPE_CHECKING:
    from torch import Tensor

POLL_SECONDS = 0.5
"""Shortest time between two looks into the run directory."""
POLL_SHARE = 0.1
"""Largest share of the time that may be spent on looking."""


class Arrivals:
    """The planned samples of a draw: those to wait for, and those that are finished and not yet taken.

    Args:
        run: a run with a plan.
        draw: number of the draw.
        plan: columns sample_id, class (name) and bank.
    """

    def __init__(self, run: RunDir, draw: int, plan: pa.Table):
        self.run, self.draw, self.waiting = run, draw, plan
        self.arrived: list[dict[str, Any]] = []
        self.next_look = 0.0

    @property
    def left(self) -> int:
        """How many samples have not been taken yet."""
        return len(self.waiting) + len(self.arrived)

    def look(self) -> None:
        """Looks for newly finished samples now."""
        started = time.monotonic()
        done = self.run.draw(self.draw).finished(self.waiting["sample_id"].to_pylist())
        there = pc.is_in(self.waiting["sample_id"], pa.array(sorted(done), pa.string()))
        new = self.waiting.filter(there)
        if len(new):
            self.waiting = self.waiting.filter(pc.invert(there))
            for key, known in (("image_at", self.run.samples.images()), ("label_at", self.run.samples.places(self.draw))):
                index = pc.index_in(new["sample_id"], known["sample_id"].combine_chunks())
                new = new.append_column(key, pc.fill_null(known[key].take(index), ""))
            self.arrived += new.to_pylist()
        now = time.monotonic()
        self.next_look = now + max(POLL_SECONDS, (now - started) / POLL_SHARE)

    def take(self, count: int, final: bool) -> list[tuple[dict[str, Any], Sample, np.ndarray | None]]:
        """Up to `count` finished samples: plan row, record and labels, and the image (None for a fault).

        Args:
            final: nothing more will be made or mended, so a file that cannot be read is an error and no reason to wait.

        Raises:
            UserError: a file is missing or damaged, and `final`.
            StoreError: the file system fails.
        """
        if not self.arrived and len(self.waiting) and (final or time.monotonic() >= self.next_look):
            self.look()
        rows, self.arrived = self.arrived[:count], self.arrived[count:]
        if not rows:
            return []
        try:
            found = self.run.draw(self.draw).read(rows)
        except DamagedError:  # a record whose files were lost: they are being made anew
            if final:
                raise
            again = pa.Table.from_pylist(rows).select(self.waiting.column_names)
            self.waiting = pa.concat_tables([self.waiting, again.cast(self.waiting.schema)])
            return []
        return [(row, sample, image) for row, (sample, image) in zip(rows, found, strict=True)]


class FeatureCache:
    """Frozen features by sample id: in memory up to `limit` bytes, then in files of a temporary folder of this machine."""

    def __init__(self, limit: int = 4 * 2**30):
        self.room = limit
        self.kept: dict[str, Tensor] = {}
        self.folder: tempfile.TemporaryDirectory | None = None

    def __contains__(self, sample: str) -> bool:
        return sample in self.kept

    def __getitem__(self, sample: str) -> Tensor:
        return self.kept[sample]

    def put(self, sample: str, features: Tensor) -> None:
        """Keeps float16 (D, h, w)."""
        size = features.numel() * features.element_size()
        if size <= self.room:
            self.room -= size
            self.kept[sample] = features
            return
        import torch

        self.folder = self.folder or tempfile.TemporaryDirectory(prefix="syn4seg-features-")
        path = Path(self.folder.name) / f"{len(self.kept)}.npy"
        np.save(path, features.numpy())
        self.kept[sample] = torch.from_numpy(np.load(path, mmap_mode="c"))
