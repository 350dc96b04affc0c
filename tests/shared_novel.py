"""The novel stage in one process or in several: `python -m tests.shared_novel RANK WORLD FOLDER`."""

from __future__ import annotations

import os
import sys

import torch

from syn4seg.segmenter import novel, parallel
from syn4seg.segmenter.novel import NovelTraining
from tests.segmenter.test_novel import BASE, RAMPED, _planned, _start, _tell


def curve(stop: int | None = None) -> dict:
    """The losses of the steps and the rows at the end; interrupted and continued after `stop` steps."""
    planned, fixed, made = _planned()
    losses: list[float] = []

    def fresh() -> NovelTraining:
        training = NovelTraining(_start(), fixed, planned, base_classes=BASE, schedule=RAMPED, seed=3)
        _tell(training, planned, made)
        return training

    training = fresh()
    while not training.finished:
        if len(losses) == stop:
            state = training.state()
            training = fresh()
            training.load_state(state)
        losses.append(training.step())
    kept = sorted(name for kind, name in training.samples if kind == "synthetic")
    return {"losses": losses, "weight": training.classifier.weight, "kept": kept}


def curve_without_a_shared_mean() -> dict:
    """`curve` with a mean per process and averaged gradients, as DistributedDataParallel has them."""
    kept, world = novel.all_reduce_sum, parallel.rank_and_world_size()[1]
    novel.all_reduce_sum = lambda value: value * world if value.numel() == 1 else kept(value)  # the denominators
    try:
        return curve()
    finally:
        novel.all_reduce_sum = kept


def main() -> None:
    """Everything, as one of several processes."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found = {"shared": curve(), "continued": curve(5), "own means": curve_without_a_shared_mean()}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort a process now and then that ends by itself while its peer ends too


if __name__ == "__main__":
    main()
