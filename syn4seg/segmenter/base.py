"""The base stage: the segmenter learns the base classes; novel objects are background (method.md 5.2), 255 is ignored.

Every augmentation is named by (seed, epoch, image id), so a batch does not depend on processes or what came before; a
training that was stopped continues bit for bit from its last finished epoch. Several processes of `torch.distributed` share
every batch and learn what one would, up to rounding; the same number of them, bit for bit the same. The last epoch is the
result: nothing is ever chosen on a test list. The crop is a simple random crop (method.md 5.2).
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from syn4seg.data.canvas import Canvas
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.seeds import seeded
from syn4seg.segmenter.losses import pixel_loss
from syn4seg.segmenter.network import Segmenter, upsample
from syn4seg.segmenter.parallel import (
    all_reduce_gradients,
    all_reduce_sum,
    broadcast_state,
    rank_and_world_size,
    synchronize_layers,
)
from syn4seg.segmenter.views import Augmentation, ViewBatch, ViewStream, augment, read_here
from syn4seg.store.files import MAX_TABLE, read_bytes, write_atomically

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath


@dataclass(frozen=True)
class BaseSchedule:
    """How the base stage learns: poly 0.9 decay after a linear warm-up; the field's numbers (method.md 5.2) are the defaults.

    Attributes:
        lr: of the backbone; `head_factor` multiplies it for everything else.
        optimizer: SGD with momentum 0.9, or AdamW (our choice, for networks trained from nothing).
        warmup: share of all steps.
        background_weight: factor on background pixels in the loss at the start; rises linearly to 1. Below 1, a network
            that starts from nothing leaves the plateau where everything is background much sooner.
    """

    epochs: int
    batch: int
    lr: float = 0.01
    head_factor: float = 10.0
    weight_decay: float = 1e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    warmup: float = 0.0
    background_weight: float = 1.0


@dataclass(frozen=True)
class BaseViews:
    """The views of every step of the base stage, counted over all epochs; labels have the values 0..B and 255 only.

    Attributes:
        batch: images in a step, those of all processes.
        share: (rank, world) of the process for which views are made.
    """

    dataset: Dataset
    fold: Fold
    ids: Sequence[str]
    batch: int
    augmentation: Augmentation
    seed: int
    share: tuple[int, int] = (0, 1)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.ids) // self.batch

    def names(self, step: int) -> list[str]:
        """Return the ids of this process's share of a step."""
        (rank, world), epoch, at = self.share, *divmod(step, self.steps)
        order = _order(self.seed, epoch, len(self.ids))
        return [self.ids[i] for i in order[at * self.batch : (at + 1) * self.batch][rank::world]]

    def count(self, step: int) -> int:
        """Return the number of images in this process's share of a step."""
        return len(self.names(step))

    def __getitem__(self, step: int) -> ViewBatch:
        """Return this process's share of a step."""
        views = [self.view(name, step // self.steps) for name in self.names(step)]
        return ViewBatch(np.stack([v for v, _ in views]), np.stack([label for _, label in views]), ["replay"] * len(views))

    def view(self, name: str, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the view of an image in an epoch, uint8 (crop, crop, 3), and its label uint8 (crop, crop)."""
        label = self.fold.to_base_index[self.dataset.mask(name)]
        return augment(self.dataset.image(name), label, seeded("augment", self.seed, epoch, name), self.augmentation)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> list[int]:
    return seeded("order", seed, epoch).permutation(count).tolist()


def train_base(
    segmenter: Segmenter,
    dataset: Dataset,
    fold: Fold,
    ids: Sequence[str],
    *,
    schedule: BaseSchedule,
    augmentation: Augmentation,
    seed: int,
    checkpoint: AnyPath | None = None,
    freeze_backbone: bool = False,
    cached_on: Canvas | None = None,
    read: Callable[[BaseViews], ViewStream] = read_here,
    bfloat16: bool = False,
    progress: Callable[[dict], None] | None = None,
) -> np.ndarray:
    """Train in place, on the device where the segmenter is, and leave it in eval mode.

    In a process group each process takes its share of every batch; loss, batch statistics and dropout are those of the
    whole batch, and every process ends with the same weights.

    Args:
        segmenter: with 1 + B classes.
        ids: training images.
        checkpoint: file of the last finished epoch, written by process 0; an existing one is continued.
        freeze_backbone: the backbone keeps its weights and its normalisation statistics.
        cached_on: with a frozen backbone, its output for each image and its mirror image on this canvas is computed
            once, float16, and the head trains on that; no other augmentation then.
        read: who makes the batches; with `cached_on` it has nothing to do.
        bfloat16: autocast to bfloat16.
        progress: called after every epoch with epoch, epochs, loss (of the whole batches) and lr.

    Returns:
        int64 (256,): labelled pixels per class index that were trained on, all epochs together, unlabeled ones too.

    Raises:
        UserError: fewer ids than a batch, a batch that the processes cannot share, a batch norm of the backbone that they
            cannot, a checkpoint of another training, or one that not every process sees.
        ValueError: the classifier's rows are not 1 + B, or `cached_on` without `freeze_backbone`.
    """
    _check(segmenter, fold, ids, schedule, freeze_backbone, cached_on is not None)
    optimizer = _optimizer(segmenter, schedule, freeze_backbone)
    facts = asdict(schedule) | {"how": str(augmentation), "seed": seed, "images": len(ids), "base": str(fold.base)}
    facts |= {"freeze": freeze_backbone, "cached": str(cached_on), "classifier": str(tuple(segmenter.weight.shape))}
    first, pixels = _resume(segmenter, optimizer, checkpoint, facts)
    check_same_start(first, checkpoint, segmenter.weight.device)
    broadcast_state(segmenter)
    views = BaseViews(dataset, fold, ids, schedule.batch, augmentation, seed, rank_and_world_size())
    every = range(first * views.steps, schedule.epochs * views.steps)
    if cached_on is not None:
        grid, batches = segmenter.head, _cached_batches(segmenter, views, cached_on, every)
    else:
        grid, batches = segmenter, _augmented_batches(segmenter, read(views)(every))

    def forward(x: Tensor, shape: tuple[int, int]) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            logits = grid(x)
        return upsample(logits.float(), shape, segmenter.align_corners)

    for epoch in range(first, schedule.epochs):
        segmenter.train()
        if freeze_backbone:
            segmenter.backbone.eval()
        with torch.random.fork_rng(devices=[]), synchronize_layers(segmenter):
            torch.manual_seed(int(seeded("dropout", seed, epoch, 0).integers(2**31)))
            loss, labels = _train_epoch(
                forward, itertools.islice(batches, views.steps), epoch * views.steps, every.stop, schedule, optimizer
            )
        pixels += labels
        if rank_and_world_size()[0] == 0 and checkpoint is not None:
            _save(segmenter, optimizer, checkpoint, facts, epoch + 1, pixels)
        if progress:
            progress({"epoch": epoch + 1, "epochs": schedule.epochs, "loss": loss, "lr": optimizer.param_groups[-1]["lr"]})
    segmenter.eval()
    return pixels


def check_batch_shares(batch: int, world: int) -> None:
    """Raise UserError if `world` processes cannot have equally many images of every batch."""
    if batch % world:
        raise UserError(
            f"base.batch={batch} is not a multiple of placement.training.workers={world}: each worker takes equally "
            "many images of every batch; change one of the two"
        )


def _check(segmenter: Segmenter, fold: Fold, ids: Sequence[str], schedule: BaseSchedule, frozen: bool, cached: bool) -> None:
    rows, expected = len(segmenter.weight), 1 + len(fold.base)
    if rows != expected:
        raise ValueError(f"the segmenter has {rows} classes; expected {expected} (background and base)")
    if cached and not frozen:
        raise ValueError("cached features need freeze_backbone = true: the head alone learns from them")
    if len(ids) < schedule.batch:
        raise UserError(f"{len(ids)} training images are fewer than base.batch={schedule.batch}; lower it, or add images")
    check_batch_shares(schedule.batch, rank_and_world_size()[1])


def check_same_start(first: int, checkpoint: AnyPath | None, device: torch.device, unit: str = "epochs") -> None:
    """Raise UserError if not all processes continue from the same epoch or step."""
    rank, world = rank_and_world_size()
    epochs = torch.zeros(world, dtype=torch.int64, device=device)
    epochs[rank] = first
    finished = all_reduce_sum(epochs).tolist()
    if len(set(finished)) > 1:
        raise UserError(
            f"checkpoint {checkpoint}: the workers found {finished} finished {unit} in it; the run directory must be on "
            "a file system that every node shares"
        )


def _train_epoch(
    forward: Forward, batches: Batches, first: int, whole: int, schedule: BaseSchedule, optimizer: torch.optim.Optimizer
) -> tuple[float, np.ndarray]:
    """Train one epoch, from step `first` of `whole` on; return the mean loss and the pixels per label, int64 (256,), of all
    processes together."""
    steps, summed, labels = 0, 0.0, torch.zeros(256, dtype=torch.int64)
    for step, (x, label) in enumerate(batches, first):
        done, steps = step / whole, steps + 1
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * poly_rate(done, schedule.warmup)
        labels += torch.bincount(label.flatten(), minlength=256).cpu()
        background = schedule.background_weight + (1 - schedule.background_weight) * done
        logits = forward(x, (label.shape[1], label.shape[2]))
        loss = pixel_loss(logits, label, background_weight=background, all_reduce=all_reduce_sum)  # this process's part of the mean
        optimizer.zero_grad()
        loss.backward()
        all_reduce_gradients(optimizer)
        optimizer.step()
        summed += loss.item()
    device = optimizer.param_groups[0]["params"][0].device
    mean = all_reduce_sum(torch.tensor(summed / steps, dtype=torch.float64, device=device))
    return mean.item(), all_reduce_sum(labels.to(device)).cpu().numpy()


def _optimizer(segmenter: Segmenter, schedule: BaseSchedule, freeze_backbone: bool) -> torch.optim.Optimizer:
    backbone = list(segmenter.backbone.requires_grad_(not freeze_backbone).parameters())
    ids = {id(p) for p in backbone}
    head = [p for p in segmenter.parameters() if id(p) not in ids]
    groups = [{"params": head, "lr": schedule.lr * schedule.head_factor, "top": schedule.lr * schedule.head_factor}]
    if not freeze_backbone:
        groups.insert(0, {"params": backbone, "lr": schedule.lr, "top": schedule.lr})
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=schedule.weight_decay)
    return torch.optim.SGD(groups, momentum=0.9, weight_decay=schedule.weight_decay)


def poly_rate(done: float, warmup: float) -> float:
    """Return the factor on the learning rate after the share `done` of all steps."""
    return (done / warmup if done < warmup else 1.0) * (1 - done) ** 0.9


Forward = Callable[[Tensor, tuple[int, int]], Tensor]
"""(input of the trained part, size in pixels) -> logits at that size."""
Batches = Iterator[tuple[Tensor, Tensor]]
"""What the network's trained part takes, and labels uint8 (N, H, W), of step after step."""


def _augmented_batches(segmenter: Segmenter, batches: Iterable[ViewBatch]) -> Batches:
    for batch in batches:
        yield segmenter.prepare(batch.images), torch.from_numpy(batch.labels).to(segmenter.weight.device)


def _cached_batches(segmenter: Segmenter, views: BaseViews, canvas: Canvas, every: range) -> Batches:
    """Yield backbone outputs float16 of images or their mirror images, which are computed once, and the labels."""
    table, dataset, cache = views.fold.to_base_index, views.dataset, {}

    def both_sides(sample_id: str) -> tuple[Tensor, Tensor]:
        image, label = canvas.image(dataset.image(sample_id)), canvas.label(table[dataset.mask(sample_id)])
        with torch.no_grad():
            features = segmenter.backbone(segmenter.prepare(np.stack([image, image[:, ::-1]]))).half().cpu()
        return features, torch.from_numpy(np.stack([label, label[:, ::-1]]))

    for step in every:
        names = views.names(step)
        cache.update({s: both_sides(s) for s in names if s not in cache})
        sides = [int(seeded("mirror", views.seed, step // views.steps, s).integers(2)) for s in names]
        x, label = (torch.stack([cache[s][k][side] for s, side in zip(names, sides, strict=True)]) for k in (0, 1))
        yield x.to(segmenter.weight.device).float(), label.to(segmenter.weight.device)


def _save(
    segmenter: Segmenter, optimizer: torch.optim.Optimizer, path: AnyPath, facts: dict, epoch: int, pixels: np.ndarray
) -> None:
    data, states = io.BytesIO(), {"segmenter": segmenter.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**states, "facts": facts, "epoch": epoch, "seen": torch.from_numpy(pixels)}, data)
    write_atomically(path, data.getvalue())


def _resume(segmenter: Segmenter, optimizer: torch.optim.Optimizer, path: AnyPath | None, facts: dict) -> tuple[int, np.ndarray]:
    """Load a checkpoint if there is one; return the number of finished epochs and the pixels per label in them."""
    if path is None or not path.is_file():
        return 0, np.zeros(256, np.int64)
    state = torch.load(io.BytesIO(read_bytes(path, MAX_TABLE)), weights_only=True, map_location=segmenter.weight.device)
    for key, new in facts.items():
        if (old := state["facts"].get(key)) != new:
            raise UserError(
                f"checkpoint {path} is of another training: {key} was {old}, now {new}; restore the setting or choose another path"
            )
    segmenter.load_state_dict(state["segmenter"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"], state["seen"].cpu().numpy()
