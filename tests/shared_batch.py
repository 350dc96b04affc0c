"""What the tests of shared batches run, in one process or in several: `python -m tests.shared_batch RANK WORLD FOLDER`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from syn4seg.data.canvas import Canvas
from syn4seg.data.datasets import Dataset, EmbeddedDataset, fold_of
from syn4seg.errors import UserError
from syn4seg.segmenter import base, parallel
from syn4seg.segmenter.backbones import Backbone
from syn4seg.segmenter.base import BaseSchedule, train_base
from syn4seg.segmenter.joint import JointSchedule, JointViews, train_jointly
from syn4seg.segmenter.network import Segmenter
from syn4seg.segmenter.novel import NovelSchedule
from syn4seg.segmenter.views import Augmentation

DATASET = EmbeddedDataset(24, 4)
FOLD = fold_of(DATASET, 2)
SCHEDULE = BaseSchedule(epochs=3, batch=8, lr=0.05, head_factor=1.0, warmup=0.1, background_weight=0.5)


def segmenter(dropout: float = 0.3) -> Segmenter:
    """A tiny network with batch norms of many and of few pixels, and dropout."""
    torch.manual_seed(0)
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout))
    return Segmenter(Backbone(tiny, 8, 4), 13, 8, (1, 2), dropout)


def curve(checkpoint: Path | None = None, dataset: Dataset = DATASET, **changes) -> dict:
    """Trains it: the losses of the epochs, the labels seen, the weights, and which class every module has afterwards."""
    net, losses = segmenter(), []
    settings = {"schedule": SCHEDULE, "augmentation": Augmentation(32), "seed": 5, "checkpoint": checkpoint} | changes
    seen = train_base(net, dataset, FOLD, dataset.train, progress=lambda facts: losses.append(facts["loss"]), **settings)
    return {
        "losses": losses,
        "seen": torch.from_numpy(seen),
        "state": net.state_dict(),
        "kinds": [type(m).__name__ for m in net.modules()],
    }


JOINT = JointSchedule(
    "all",
    steps=6,
    lr=0.01,
    per_step={"support": 2, "synthetic": 4, "replay": 2},
    decoder_factor=2.0,
    norms="batch",
    average=0.7,
    loss=NovelSchedule(background_weight=0.5),
)
"""Batch statistics, dropout, an average, and a loss with every part."""


def joint_views(share: tuple[int, int] = (0, 1)) -> JointViews:
    """Views of the drawn world: the support and synthetic images are images with a novel class."""
    ids = DATASET.train
    novel = [i for i in ids if set(FOLD.novel) & set(DATASET.areas(i))]
    pools = {"support": novel[:3], "synthetic": novel[3:8], "replay": ids[8:]}

    def read(kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        table = FOLD.to_base_index if kind == "replay" else FOLD.to_index
        return DATASET.image(name), table[DATASET.mask(name)]

    return JointViews(pools, JOINT.per_step, Augmentation(32), 5, read, share)


def joint_curve(stop: int | None = None, checkpoint: Path | None = None, **changes) -> dict:
    """Trains the tiny network jointly: the losses and the weights; with `stop` it ends after that many steps, as if killed."""
    views, net = joint_views(parallel.rank_and_world_size()), segmenter()
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(1 + len(FOLD.base) + len(FOLD.novel), 8, generator=generator)
    losses: list[float] = []

    def progress(done: int, loss: float) -> None:
        losses.append(loss)
        if done == stop:
            raise InterruptedError

    network = train_jointly(
        net,
        net.classifier.replaced(rows, torch.zeros(len(rows))),
        lambda steps: (views[step] for step in steps),
        base_classes=len(FOLD.base),
        schedule=dataclasses.replace(JOINT, **changes),
        seed=5,
        facts={"name": "test"},
        registered=net.classifier.replaced(rows, torch.zeros(len(rows))),
        checkpoint=checkpoint,
        progress=progress,
    )
    return {"losses": losses, "state": network.state_dict()}


FROZEN = {"freeze_backbone": True, "cached_on": Canvas(32)}
PLAIN_LOSS = base.pixel_loss
PARTIAL = {
    "loss": (base, "pixel_loss", lambda *given, all_reduce, **more: PLAIN_LOSS(*given, **more) / parallel.rank_and_world_size()[1]),
    "statistics": (parallel, "batch_norm", nn.BatchNorm2d.forward),
    "dropout": (parallel, "dropout2d", nn.Dropout2d.forward),
}
"""What is of the whole batch -> how to make it of a process's own part alone."""


def curve_without(part: str) -> dict:
    """`curve` where one thing is not shared."""
    module, name, own = PARTIAL[part]
    kept = getattr(module, name)
    setattr(module, name, own)
    try:
        return curve()
    finally:
        setattr(module, name, kept)


def normalised(rows: slice) -> dict:
    """A batch norm on some rows of a fixed batch: output, gradients of a fixed function of it, and running statistics."""
    rng = np.random.default_rng(1)
    x, wanted = (torch.from_numpy(rng.normal(3, 2, (8, 4, 5, 6))) for _ in range(2))
    norm = nn.BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 4))
        norm.bias.copy_(torch.linspace(-1, 1, 4))
    part = x[rows].requires_grad_()
    with parallel.synchronize_layers(norm):
        for _ in range(2):
            out = norm(part)
    (out * wanted[rows]).square().sum().backward()
    weight, bias = (parallel.all_reduce_sum(p.grad) for p in norm.parameters() if p.grad is not None)
    return {"out": out.detach(), "gradient": part.grad, "weight": weight, "bias": bias, **dict(norm.named_buffers())}


def dropped(rows: slice, kind: type, shape: tuple[int, ...]) -> torch.Tensor:
    """A dropout on some rows of a batch of ones."""
    drop = kind(0.4)
    torch.manual_seed(7)
    with parallel.synchronize_layers(drop):
        return drop(torch.ones(8, *shape)[rows])


def refusal(norm: nn.Module) -> str:
    """What `synchronize_layers` says about a module."""
    try:
        with parallel.synchronize_layers(nn.Sequential(norm)):
            return "accepted"
    except UserError as error:
        return str(error)


def main(rank: int, world: int, folder: Path) -> None:
    """Everything, in one process of several; leaves FOLDER/RANK.pt."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    rows = slice(rank, None, world)
    own = folder / f"own-{rank}.pt"
    found = {
        "curve": curve(),
        "frozen": curve(freeze_backbone=True),
        "cached": curve(**FROZEN),
        "joint": joint_curve(),
        "adamw": curve(schedule=BaseSchedule(2, 8, 0.01, optimizer="adamw")),
        "normalised": normalised(rows),
        "dropout": dropped(rows, nn.Dropout, (3, 4)),
        "dropout2d": dropped(rows, nn.Dropout2d, (3, 2, 2)),
        "refusal": refusal(nn.BatchNorm1d(3)),
        "frozen_norm": refusal(nn.BatchNorm1d(3).eval()),
        **{f"without {part}": curve_without(part) for part in PARTIAL},
    }
    seen = curve(folder / "shared.pt")["losses"]
    assert seen == found["curve"]["losses"]
    if rank == 0:
        shutil.copy(folder / "shared.pt", own)  # a checkpoint that the other process does not see
    try:
        curve(own)
    except UserError as error:
        found["unseen"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # as in shared_novel.py


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
