"""Who makes the views of a training's steps: this process, or reader processes that are ahead of it. The same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syn4seg.segmenter.views import StepViews, ViewBatch, ViewStream

READ_AHEAD = 4
"""Steps that each reader process is ahead."""


def read_ahead(views: StepViews, readers: int) -> ViewStream:
    """Return what yields the batches of a range of steps, made in this process or, ahead, by `readers` processes; the same."""
    from syn4seg.segmenter.views import read_here

    if not readers:
        return read_here(views)
    import torch
    from torch.utils.data import DataLoader

    def batches(steps: range) -> Iterable[ViewBatch]:
        return DataLoader(
            views,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=steps,
            collate_fn=_unchanged,  # pyright: ignore[reportArgumentType]
            num_workers=readers,
            prefetch_factor=READ_AHEAD,
            multiprocessing_context="spawn",
            generator=torch.Generator(),  # without one it draws a number from the generator that dropout uses
        )

    return batches


ReadAhead = Callable[["StepViews", int], "ViewStream"]
"""(views, readers) -> what yields the batches of a range of steps in order."""


def _unchanged(batch: ViewBatch) -> ViewBatch:
    return batch
