"""Who makes the views of a training's steps: this process, or reader processes that are ahead of it. The same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syn4seg.segmenter.novel import Kind
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

    def batches(steps: range) -> Iterator[ViewBatch]:
        from syn4seg.segmenter.views import ViewBatch

        made = DataLoader(
            views,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=steps,
            collate_fn=_shared,  # pyright: ignore[reportArgumentType]
            num_workers=readers,
            prefetch_factor=READ_AHEAD,
            multiprocessing_context="spawn",
            generator=torch.Generator(),  # without one it draws a number from the generator that dropout uses
        )
        return (ViewBatch(images.numpy(), labels.numpy(), kinds) for images, labels, kinds in made)

    return batches


ReadAhead = Callable[["StepViews", int], "ViewStream"]
"""(views, readers) -> what yields the batches of a range of steps in order."""


def _shared(batch: ViewBatch) -> tuple[Any, Any, list[Kind]]:
    """Return a batch as tensors: they travel in shared memory, where an array goes through a pipe while the trainer waits."""
    import torch

    return torch.from_numpy(batch.images), torch.from_numpy(batch.labels), batch.kinds
