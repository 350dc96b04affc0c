"""The base stage: the segmenter learns the base classes; novel objects are background (method.md 5.2), 255 is ignored.

Every augmentation is named by (seed, epoch, image id), so a batch does not depend on processes or what came before; a
training that was stopped continues bit for bit from its last finished epoch. Several processes of `torch.distributed` share
every batch and learn what one would, up to rounding; the same number of them, bit for bit the same. The last epoch is the
result: nothing is ever chosen on a test list. The crop is a simple random crop (method.md 5.2).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from syn4seg.data.canvas import Canvas
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.schema import UNLABELED
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
from syn4seg.store.files import MAX_TABLE, read_bytes, write_atomically

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a base training image.

    Attributes:
        crop: side of the square training crop in pixels.
        scale: range of the random scale.
        native: scales multiply the image's own size and are uniform (BAM, DIaM, BCM); otherwise the image's long side is brought to
            the crop first, and scales are uniform in their logarithm.
        rotate: largest rotation in degrees, applied half of the time.
        blur: chance of a 5x5 Gaussian blur.
        flip: chance of a mirror image.
        colour: brightness, contrast and saturation each change by a factor of up to 1 + this, or its inverse.
    """

    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    native: bool = False
    rotate: float = 10.0
    blur: float = 0.5
    flip: float = 0.5
    colour: float = 0.0


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


def augment(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, augmentation: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """Return one random view: uint8 (crop, crop, 3) and uint8 (crop, crop), 255 where the view leaves the image.

    Scale, rotation, mirror and crop are a single warp (bilinear for the image, nearest for the label).
    """
    size, (rows, columns) = augmentation.crop, label.shape
    low, high = augmentation.scale
    if augmentation.native:
        scale = rng.uniform(low, high)
    else:
        scale = math.exp(rng.uniform(math.log(low), math.log(high))) * size / max(rows, columns)
    angle = math.radians(rng.uniform(-augmentation.rotate, augmentation.rotate)) if rng.random() < 0.5 else 0.0
    mirror = -1.0 if rng.random() < augmentation.flip else 1.0
    turn = scale * np.array([[math.cos(angle) * mirror, -math.sin(angle)], [math.sin(angle) * mirror, math.cos(angle)]])
    spare = np.abs(np.array([columns, rows]) * scale - size) / 2
    middle = np.array([(columns - 1) / 2, (rows - 1) / 2])
    shift = (size - 1) / 2 + rng.uniform(-1, 1, 2) * spare - turn @ middle
    warp = np.concatenate([turn, shift[:, None]], 1)
    view = cv2.warpAffine(image, warp, (size, size), flags=cv2.INTER_LINEAR, borderValue=(124, 116, 104))
    target = cv2.warpAffine(label, warp, (size, size), flags=cv2.INTER_NEAREST, borderValue=UNLABELED)
    if rng.random() < augmentation.blur:
        view = cv2.GaussianBlur(view, (5, 5), 0)
    if augmentation.colour:
        view = _change_colour(view, np.exp(rng.uniform(-1, 1, 3) * math.log1p(augmentation.colour)))
    return view, target


def _change_colour(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return an image uint8 (H, W, 3) with brightness, contrast and saturation multiplied by `factors` (3,)."""
    brightness, contrast, saturation = factors
    view = image.astype(np.float32) * brightness
    view = view.mean() + (view - view.mean()) * contrast
    grey = view.mean(2, keepdims=True)
    return np.clip(grey + (view - grey) * saturation + 0.5, 0, 255).astype(np.uint8)


def base_batch(
    dataset: Dataset, fold: Fold, ids: Sequence[str], epoch: int, *, seed: int, augmentation: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """Return augmented images uint8 (N, crop, crop, 3) and labels uint8 (N, crop, crop) with values 0..B and 255 only."""
    table = fold.to_base_index
    views = [augment(dataset.image(s), table[dataset.mask(s)], seeded("augment", seed, epoch, s), augmentation) for s in ids]
    return np.stack([v for v, _ in views]), np.stack([t for _, t in views])


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
    if cached_on is not None:
        grid, batches = segmenter.head, _cached_batches(segmenter, dataset, fold, cached_on, seed)
    else:
        grid, batches = segmenter, _augmented_batches(segmenter, dataset, fold, augmentation, seed)

    def forward(x: Tensor, shape: tuple[int, int]) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            logits = grid(x)
        return upsample(logits.float(), shape, segmenter.align_corners)

    for epoch in range(first, schedule.epochs):
        segmenter.train()
        if freeze_backbone:
            segmenter.backbone.eval()
        order = [ids[int(i)] for i in seeded("order", seed, epoch).permutation(len(ids))]
        with torch.random.fork_rng(devices=[]), synchronize_layers(segmenter):
            torch.manual_seed(int(seeded("dropout", seed, epoch, 0).integers(2**31)))
            loss, labels = _train_epoch(forward, batches, order, epoch, schedule, optimizer)
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
    forward: Forward, batches: Batches, order: list[str], epoch: int, schedule: BaseSchedule, optimizer: torch.optim.Optimizer
) -> tuple[float, np.ndarray]:
    """Train one pass over `order`; return the mean loss and the pixels per label, int64 (256,), of all processes together."""
    (rank, world), steps, summed = rank_and_world_size(), len(order) // schedule.batch, 0.0
    labels = torch.zeros(256, dtype=torch.int64)
    for step in range(steps):
        done = (epoch * steps + step) / (schedule.epochs * steps)
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * poly_rate(done, schedule.warmup)
        x, label = batches(order[step * schedule.batch : (step + 1) * schedule.batch][rank::world], epoch)
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
Batches = Callable[[Sequence[str], int], tuple[Tensor, Tensor]]
"""(ids, epoch) -> what the network's trained part takes, and labels uint8 (N, H, W)."""


def _augmented_batches(segmenter: Segmenter, dataset: Dataset, fold: Fold, augmentation: Augmentation, seed: int) -> Batches:
    def batch(ids: Sequence[str], epoch: int) -> tuple[Tensor, Tensor]:
        images, labels = base_batch(dataset, fold, ids, epoch, seed=seed, augmentation=augmentation)
        return segmenter.prepare(images), torch.from_numpy(labels).to(segmenter.weight.device)

    return batch


def _cached_batches(segmenter: Segmenter, dataset: Dataset, fold: Fold, canvas: Canvas, seed: int) -> Batches:
    """Return batches of backbone outputs float16 of an image or its mirror image, which are computed once."""
    table, cache = fold.to_base_index, {}

    def both_sides(sample_id: str) -> tuple[Tensor, Tensor]:
        image, label = canvas.image(dataset.image(sample_id)), canvas.label(table[dataset.mask(sample_id)])
        with torch.no_grad():
            features = segmenter.backbone(segmenter.prepare(np.stack([image, image[:, ::-1]]))).half().cpu()
        return features, torch.from_numpy(np.stack([label, label[:, ::-1]]))

    def batch(ids: Sequence[str], epoch: int) -> tuple[Tensor, Tensor]:
        cache.update({s: both_sides(s) for s in ids if s not in cache})
        sides = [int(seeded("mirror", seed, epoch, s).integers(2)) for s in ids]
        x = torch.stack([cache[s][0][side] for s, side in zip(ids, sides, strict=True)])
        label = torch.stack([cache[s][1][side] for s, side in zip(ids, sides, strict=True)])
        return x.to(segmenter.weight.device).float(), label.to(segmenter.weight.device)

    return batch


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
