"""Finished samples of a draw as they appear in the run directory, and their frozen features, each computed once per run.

The run directory is the only link between those who label and those who train: a record in it is true whoever made it, and
killing either side loses nothing.
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
from syn4seg.store.samples import StoredSample

if TYPE_CHECKING:
    from torch import Tensor

POLL_SECONDS = 0.5
"""Shortest time between two polls of the run directory."""
POLL_SHARE = 0.1
"""Largest share of the time that polling may take."""


class Arrivals:
    """The planned samples of a draw: those that are not finished, and those that are finished but not taken yet.

    Args:
        run: a run with a plan.
        draw: number of the draw.
        plan: columns sample_id, class (name) and bank.
    """

    def __init__(self, run: RunDir, draw: int, plan: pa.Table):
        self.run, self.draw, self.pending = run, draw, plan
        self.finished: list[dict[str, Any]] = []
        self.next_poll = 0.0

    @property
    def remaining(self) -> int:
        """The number of samples that have not been taken."""
        return len(self.pending) + len(self.finished)

    def poll(self) -> None:
        """Look for newly finished samples now."""
        started = time.monotonic()
        done = self.run.draw(self.draw).finished(self.pending["sample_id"].to_pylist())
        is_done = pc.is_in(self.pending["sample_id"], pa.array(sorted(done), pa.string()))
        new = self.pending.filter(is_done)
        if len(new):
            self.pending = self.pending.filter(pc.invert(is_done))
            self.finished += add_places(self.run, self.draw, new).to_pylist()
        now = time.monotonic()
        self.next_poll = now + max(POLL_SECONDS, (now - started) / POLL_SHARE)

    def take(self, count: int, final: bool) -> list[tuple[dict[str, Any], StoredSample, np.ndarray | None]]:
        """Return up to `count` finished samples: plan row, record and labels, and the image (None for a fault).

        Args:
            final: nothing more will be made or mended, so a file that cannot be read is an error and no reason to wait.

        Raises:
            UserError: a file is missing or damaged, and `final`.
            StoreError: the file system fails.
        """
        if not self.finished and len(self.pending) and (final or time.monotonic() >= self.next_poll):
            self.poll()
        rows, self.finished = self.finished[:count], self.finished[count:]
        if not rows:
            return []
        try:
            samples = self.run.draw(self.draw).read(rows)
        except DamagedError:  # a record whose files were lost: they are being made anew
            if final:
                raise
            again = pa.Table.from_pylist(rows).select(self.pending.column_names)
            self.pending = pa.concat_tables([self.pending, again.cast(self.pending.schema)])
            return []
        return [(row, sample, image) for row, (sample, image) in zip(rows, samples, strict=True)]


def add_places(run: RunDir, draw: int, samples: pa.Table) -> pa.Table:
    """Return a table of finished samples with the columns `image_at` and `label_at`, which readers need in the layout `sharded`."""
    for key, places in (("image_at", run.samples.images()), ("label_at", run.samples.locations(draw))):
        index = pc.index_in(samples["sample_id"], places["sample_id"].combine_chunks())
        samples = samples.append_column(key, pc.fill_null(places[key].take(index), ""))
    return samples


class FeatureCache:
    """Frozen features by sample id: in memory up to `limit` bytes, then in files of a temporary folder of this machine."""

    def __init__(self, limit: int = 4 * 2**30):
        self.memory_left = limit
        self.features: dict[str, Tensor] = {}
        self.folder: tempfile.TemporaryDirectory | None = None

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self.features

    def __getitem__(self, sample_id: str) -> Tensor:
        return self.features[sample_id]

    def put(self, sample_id: str, features: Tensor) -> None:
        """Keep features float16 (D, h, w)."""
        size = features.numel() * features.element_size()
        if size <= self.memory_left:
            self.memory_left -= size
        else:
            import torch

            self.folder = self.folder or tempfile.TemporaryDirectory(prefix="syn4seg-features-")
            path = Path(self.folder.name) / f"{len(self.features)}.npy"
            np.save(path, features.numpy())
            features = torch.from_numpy(np.load(path, mmap_mode="c"))
        self.features[sample_id] = features
