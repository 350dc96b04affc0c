"""The joint stage: a whole network learns base and novel classes together, on images (method.md 5.4).

The batch of step s is named by (seed, kind, s) over sample ids, and every view by (seed, step, kind, id), so who reads them, how
far ahead, and how often the training was stopped change no bit. Several processes of `torch.distributed` share every batch, as in
the base stage.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.seeds import seeded
from syn4seg.segmenter.base import check_same_start, poly_rate
from syn4seg.segmenter.losses import cells_without_novel, distillation, pixel_loss
from syn4seg.segmenter.network import Classifier, Segmenter, upsample
from syn4seg.segmenter.novel import KINDS, Kind, NovelSchedule, draw_places, merged_classes
from syn4seg.segmenter.parallel import (
    all_reduce_gradients,
    all_reduce_sum,
    broadcast_state,
    rank_and_world_size,
    synchronize_layers,
)
from syn4seg.segmenter.views import Augmentation, ViewBatch, ViewStream, augment
from syn4seg.store.files import MAX_TABLE, read_bytes, write_atomically

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

CHECKPOINT_STEPS = 50
"""Steps between two checkpoints."""


@dataclass(frozen=True)
class JointSchedule:
    """How the joint stage learns.

    Attributes:
        trains: "decoder" keeps the backbone as it is, "all" trains it too.
        steps: optimiser steps (AdamW), poly 0.9 decay after a linear warm-up.
        per_step: images of each kind in a step; kinds without images are left out.
        lr: of the backbone; `decoder_factor` and `classifier_factor` multiply it for the rest.
        norms: "frozen" keeps the statistics of batch norms (their scales learn), "batch" takes those of each whole batch.
        average: decay of the exponential average of the weights, which is the result; 0: the last weights.
        synthetic_weight, confidence_weight: weight of a synthetic pixel, w (1 - v (1 - c)) with the registered classifier's
            confidence c (as in the novel stage).
        loss: background weight, merged classes and distillation, as in the novel stage.
    """

    trains: Literal["decoder", "all"]
    steps: int
    lr: float
    per_step: dict[str, int] = field(default_factory=lambda: {"support": 4, "synthetic": 8, "replay": 4})
    decoder_factor: float = 1.0
    classifier_factor: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.05
    norms: Literal["frozen", "batch"] = "frozen"
    average: float = 0.0
    synthetic_weight: float = 1.0
    confidence_weight: float = 0.0
    loss: NovelSchedule = field(default_factory=NovelSchedule)


Read = Callable[[Kind, str], tuple[np.ndarray, np.ndarray]]
"""(kind, id) -> an image uint8 (H, W, 3) and its class indices uint8 (H, W)."""


@dataclass(frozen=True)
class JointViews:
    """The views of every step: what a reader, in this process or another, makes of a step's number.

    Attributes:
        pools: ids of each kind, sorted.
        per_step: images of each kind in a step.
        read: reads one image with its label.
        share: (rank, world) of the process for which views are made.
    """

    pools: dict[str, list[str]]
    per_step: dict[str, int]
    augmentation: Augmentation
    seed: int
    read: Read
    share: tuple[int, int] = (0, 1)

    def names(self, step: int) -> list[tuple[Kind, str]]:
        """Return (kind, id) of every image of a step, those of all processes."""
        return [
            (kind, self.pools[kind][place])
            for kind in KINDS
            if self.pools.get(kind) and self.per_step.get(kind, 0)
            for place in draw_places(len(self.pools[kind]), kind, step, self.per_step[kind], self.seed)
        ]

    def count(self, step: int) -> int:
        """Return the number of images in this process's share of a step."""
        rank, world = self.share
        return len(self.names(step)[rank::world])

    def __getitem__(self, step: int) -> ViewBatch:
        """Return this process's share of a step."""
        rank, world = self.share
        chosen = self.names(step)[rank::world]
        views = [self._view(step, slot * world + rank, *name) for slot, name in enumerate(chosen)]
        images, labels = (np.stack(parts) for parts in zip(*views, strict=True))
        return ViewBatch(images, labels, [kind for kind, _ in chosen])

    def _view(self, step: int, slot: int, kind: Kind, name: str) -> tuple[np.ndarray, np.ndarray]:
        return augment(*self.read(kind, name), seeded("joint view", self.seed, step, slot, kind, name), self.augmentation)


def check_shares(views: JointViews, world: int) -> None:
    """Raise UserError if `world` processes cannot have equally many images of every step, or a step has none."""
    count = len(views.names(0))
    if not count:
        raise UserError("the joint stage got no image of the kinds of which a step has some; give it support images at least")
    refuse_shares(count, world)


def refuse_shares(count: int, world: int) -> None:
    """Raise UserError if `world` processes cannot have equally many of `count` images."""
    if count % world:
        raise UserError(
            f"a step of the joint stage has {count} images, no multiple of placement.training.workers={world}: each worker takes "
            "equally many; change joint.support_batch, joint.synthetic_batch, joint.base_batch or the workers"
        )


def with_classifier(segmenter: Segmenter, classifier: Classifier) -> Segmenter:
    """Return a copy of a network with other classifier rows (C, D), on the same device."""
    network = copy.deepcopy(segmenter)
    network.weight, network.bias = (
        nn.Parameter(t.detach().to(segmenter.weight).clone()) for t in (classifier.weight, classifier.bias)
    )
    return network


def train_jointly(
    base: Segmenter,
    start: Classifier,
    batches: ViewStream,
    *,
    base_classes: int,
    schedule: JointSchedule,
    seed: int,
    facts: dict[str, object],
    registered: Classifier | None = None,
    checkpoint: AnyPath | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Segmenter:
    """Return a network trained on base, support and synthetic images; `base` is left as it was.

    Args:
        base: frozen, with 1 + B rows: where the network starts, and the teacher of the distillation.
        start: rows (1+B+M, D) with which it starts.
        batches: yields this process's share of every step in a range, in order.
        facts: what else decides the result; with a checkpoint of other facts the training starts over.
        registered: classifier of round 0, for `confidence_weight`.
        checkpoint: file of the last 50 steps, written by process 0; an existing one is continued.
        progress: called after every step with (steps done, loss of the whole step).

    Raises:
        UserError: a layer that processes cannot share, or a checkpoint that not every process sees.
    """
    (rank, _), device = rank_and_world_size(), base.weight.device
    base = base.eval()
    network = with_classifier(base, start)
    optimizer, average = _optimizer(network, schedule), _Average(network, schedule.average)
    facts = {**facts, "schedule": str(asdict(schedule)), "seed": seed, "rows": len(start.weight)}
    first = _resume(network, average, optimizer, checkpoint, facts)
    check_same_start(first, checkpoint, device, "steps")
    broadcast_state(network)
    loss_of = _StepLoss(base, start, schedule, base_classes, registered)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _training(network, schedule):
        for step, batch in zip(range(first, schedule.steps), batches(range(first, schedule.steps)), strict=True):
            torch.manual_seed(int(seeded("joint dropout", seed, step).integers(2**31)))
            for group in optimizer.param_groups:
                group["lr"] = group["top"] * poly_rate(step / schedule.steps, schedule.warmup)
            loss = loss_of(network, batch)
            optimizer.zero_grad()
            loss.backward()
            all_reduce_gradients(optimizer)
            optimizer.step()
            average.update(network)
            done = step + 1
            if rank == 0 and checkpoint is not None and done % CHECKPOINT_STEPS == 0 and done < schedule.steps:
                _save(network, average, optimizer, checkpoint, facts, done)
            progress(done, all_reduce_sum(loss.detach()).item())
    average.copy_to(network)
    return network.eval()


class _StepLoss:
    """The loss of the novel stage, on views of images: merged backgrounds, ignored pixels, confidence, distillation."""

    def __init__(
        self, base: Segmenter, start: Classifier, schedule: JointSchedule, base_classes: int, registered: Classifier | None
    ):
        self.base, self.schedule, self.base_rows, self.rows = base, schedule, 1 + base_classes, len(start.weight)
        self.registered = registered.to(base.weight.device) if registered is not None and schedule.confidence_weight else None

    def __call__(self, network: Segmenter, batch: ViewBatch) -> Tensor:
        """Return this process's part of the loss of a step."""
        x, how = network.prepare(batch.images), self.schedule.loss
        label = torch.from_numpy(batch.labels).to(x.device)
        logits = network(x)
        full = upsample(logits, (label.shape[1], label.shape[2]), network.align_corners)
        merged = merged_classes(batch.kinds, list(batch.labels), self.base_rows, self.rows, how).to(x.device)
        features = None
        if how.distill > 0 or self.registered is not None:
            with torch.no_grad():
                features = self.base.features(x)
        weight = self._weight(batch.kinds, features, label)
        loss = pixel_loss(
            full, label, weight=weight, merged=merged, background_weight=how.background_weight, all_reduce=all_reduce_sum
        )
        if how.distill > 0:
            assert features is not None
            allowed = cells_without_novel(label, self.base_rows, features, network.align_corners)
            before = self.base.classifier(features)
            loss = loss + how.distill * distillation(logits, before, allowed, all_reduce=all_reduce_sum)
        return loss

    def _weight(self, kinds: Sequence[Kind], features: Tensor | None, label: Tensor) -> Tensor | None:
        how = self.schedule
        if how.synthetic_weight == 1 and self.registered is None:
            return None
        weight = torch.ones(label.shape, device=label.device)
        synthetic = [n for n, kind in enumerate(kinds) if kind == "synthetic"]
        weight[synthetic] = how.synthetic_weight
        if self.registered is not None and synthetic:
            assert features is not None
            logits = upsample(self.registered(features[synthetic]), label.shape[1:], self.registered.align_corners)  # pyright: ignore
            weight[synthetic] *= 1 - how.confidence_weight * (1 - logits.softmax(1).amax(1))
        return weight


class _Average:
    """Exponential average of a network's parameters; with decay 0 the network itself."""

    def __init__(self, network: Segmenter, decay: float):
        self.decay, self.steps = decay, 0
        self.values = {name: p.detach().clone() for name, p in network.named_parameters()} if decay else {}

    def update(self, network: Segmenter) -> None:
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, p in network.named_parameters() if self.decay else ():
                self.values[name].lerp_(p, 1 - keep)

    def copy_to(self, network: Segmenter) -> None:
        with torch.no_grad():
            for name, p in network.named_parameters() if self.decay else ():
                p.copy_(self.values[name])


def _optimizer(network: Segmenter, schedule: JointSchedule) -> torch.optim.Optimizer:
    classifier = [network.weight, network.bias]
    backbone = list(network.backbone.parameters())
    for p in backbone:
        p.requires_grad_(schedule.trains == "all")
    apart = {id(p) for p in (*classifier, *backbone)}
    decoder = [p for p in network.parameters() if id(p) not in apart]
    parts = [(decoder, schedule.decoder_factor), (classifier, schedule.classifier_factor)]
    if schedule.trains == "all":
        parts.append((backbone, 1.0))
    groups = [{"params": p, "lr": schedule.lr * f, "top": schedule.lr * f} for p, f in parts if p]
    return torch.optim.AdamW(groups, weight_decay=schedule.weight_decay)


@contextlib.contextmanager
def _training(network: Segmenter, schedule: JointSchedule) -> Iterator[None]:
    """Put the parts that learn in training mode for the block; batch norms only where they take the batch's statistics."""
    network.train()
    if schedule.trains == "decoder":
        network.backbone.eval()
    if schedule.norms == "frozen":
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    _refuse_own_randomness(network)
    with synchronize_layers(network):
        yield
    network.eval()


def _refuse_own_randomness(network: Segmenter) -> None:
    """Raise UserError for stochastic depth in several processes: each would drop other images than one process does."""
    world = rank_and_world_size()[1]
    for name, module in network.named_modules() if world > 1 else ():
        if module.training and type(module).__name__.endswith("DropPath") and getattr(module, "drop_prob", 0):
            raise UserError(
                f"placement.training.workers={world}: {name} drops whole images at random, which processes cannot share; set "
                "placement.training.workers=1, or novel.trains=classifier"
            )


def _save(
    network: Segmenter, average: _Average, optimizer: torch.optim.Optimizer, path: AnyPath, facts: dict[str, object], done: int
) -> None:
    data = io.BytesIO()
    states = {"network": network.state_dict(), "average": average.values, "optimizer": optimizer.state_dict()}
    torch.save({**states, "facts": facts, "done": done}, data)
    write_atomically(path, data.getvalue())


def _resume(
    network: Segmenter, average: _Average, optimizer: torch.optim.Optimizer, path: AnyPath | None, facts: dict[str, object]
) -> int:
    """Load a checkpoint if there is one of this training; return the number of steps done. Other facts: it starts over."""
    if path is None or not path.is_file():
        return 0
    state = torch.load(io.BytesIO(read_bytes(path, MAX_TABLE)), weights_only=True, map_location=network.weight.device)
    if state["facts"] != facts:
        return 0
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    average.values, average.steps = state["average"], int(state["done"])
    return int(state["done"])
