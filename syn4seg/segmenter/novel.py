"""The novel stage: a classifier for base and novel classes, learned on frozen features in seconds.

Novel rows are imprinted from the support prototypes, then all rows are fine-tuned on support, synthetic and (an option)
replayed base images. The batch of step s is named by (seed, kind, s) over samples sorted by id: the order of arrival,
or who computed the features, changes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.data.embedded import seeded
from syn4seg.schema import BACKGROUND, UNLABELED
from syn4seg.segmenter.losses import distillation, pixel_loss
from syn4seg.segmenter.network import Classifier, upsample

KINDS = ("support", "synthetic", "replay")
Kind = Literal["support", "synthetic", "replay"]


@dataclass(frozen=True)
class Sample:
    """One training image of the novel stage.

    Attributes:
        sample_id: names it; ids are unique among the samples of a kind.
        features: float16 (D, h, w); the bottleneck's output, or its input if the bottleneck is trained.
        label: class indices uint8 (H, W) on the canvas of the features, 255 ignored.
        kind: "support", "synthetic", or "replay" (a base image with base truth, novel objects background).
        weight: float16 (H, W), the trust in each pixel; None for 1.
    """

    sample_id: str
    features: Tensor
    label: np.ndarray
    kind: Kind
    weight: np.ndarray | None = None


@dataclass(frozen=True)
class NovelSchedule:
    """How the novel stage learns; all numbers are ours, chosen on the embedded world.

    Attributes:
        steps: optimiser steps (Adam, cosine decay).
        per_step: samples of each kind in a step; kinds without samples are left out.
        lr: of the classifier, relative to the root mean square of the base weights.
        bottleneck_lr: of the bottleneck, where one is trained.
        background_weight: factor on pixels labelled background (DIaM has 0.01 to 0.15 on its support images).
        distill: weight of the distillation to the base model on pixels without novel labels.
        merge_support: a support image's background may be any base class (its base objects are unlabelled).
        merge_replay: a replayed image's background may be any novel class.
    """

    steps: int = 300
    per_step: dict[str, int] = field(default_factory=lambda: {"support": 4, "synthetic": 8, "replay": 4})
    lr: float = 0.1
    bottleneck_lr: float = 1e-4
    background_weight: float = 1.0
    distill: float = 1.0
    merge_support: bool = True
    merge_replay: bool = True


def imprint(base: Classifier, prototypes: Tensor) -> Classifier:
    """Rows for the novel classes: prototype directions at the base rows' mean norm, with the mean base bias.

    Args:
        base: rows (1+B, D).
        prototypes: mu_k (M, D), raw or normalised.
    """
    rows = F.normalize(prototypes.float().to(base.weight), dim=1) * base.weight[1:].norm(dim=1).mean()
    bias = base.bias[1:].mean().expand(len(rows))
    return base.replaced(torch.cat([base.weight, rows]).detach(), torch.cat([base.bias, bias]).detach())


def train_novel(start: Classifier, samples: Sequence[Sample], *, base_classes: int, schedule: NovelSchedule, seed: int,
                bottleneck: nn.Module | None = None, progress: Callable[[dict], None] | None = None) -> Classifier:  # fmt: skip
    """Fine-tunes all rows of `start` on frozen features.

    Args:
        start: rows (1+B+M, D), see `imprint`; its first 1+B rows are also the base model of the distillation.
        samples: in any order; the result does not depend on it.
        base_classes: B.
        bottleneck: trained in place in eval mode (normalisation statistics stay); `features` are then its input.
        progress: called every 50 steps with step, steps and loss.

    Returns:
        The new classifier, detached; `start` is left as it was.

    Raises:
        ValueError: no sample that `schedule.per_step` uses, labels of a class without a row, or an unknown kind.
    """
    pools = _pools(samples, schedule, len(start.weight))
    base_rows = 1 + base_classes
    base = start.replaced(start.weight[:base_rows].detach(), start.bias[:base_rows].detach())
    frozen = copy.deepcopy(bottleneck).eval() if bottleneck is not None else None
    weight, bias = (t.detach().clone().requires_grad_() for t in (start.weight, start.bias))
    now = start.replaced(weight, bias)
    optimizer = _optimizer(now, base, bottleneck, schedule)
    for step in range(schedule.steps):
        batch = [s for kind, pool in pools.items() for s in _draw(pool, kind, step, schedule.per_step[kind], seed)]
        x = torch.stack([s.features for s in batch]).to(start.weight)
        label = torch.from_numpy(np.stack([s.label for s in batch])).to(x.device)
        f = x if bottleneck is None else bottleneck.eval()(x)
        logits = now(f)
        full = upsample(logits, (label.shape[1], label.shape[2]), start.align_corners)
        merged = _merged(batch, base_rows, len(start.weight), schedule).to(x.device)
        loss = pixel_loss(full, label, weight=_weights(batch, label), merged=merged,
                          background_weight=schedule.background_weight)  # fmt: skip
        if schedule.distill > 0:
            with torch.no_grad():
                before = base(f if frozen is None else frozen(x))
            loss = loss + schedule.distill * distillation(
                logits, before, _surely_not_novel(label, base_rows, x.shape[2:])
            )
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * (0.5 + 0.5 * math.cos(math.pi * step / schedule.steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress and ((step + 1) % 50 == 0 or step + 1 == schedule.steps):
            progress({"step": step + 1, "steps": schedule.steps, "loss": loss.item()})
    return start.replaced(now.weight.detach(), now.bias.detach())


def _pools(samples: Sequence[Sample], schedule: NovelSchedule, rows: int) -> dict[str, list[Sample]]:
    """Samples by kind in the order of `KINDS`, each sorted by id."""
    unknown = {*schedule.per_step, *(s.kind for s in samples)} - set(KINDS)
    if unknown:
        raise ValueError(f"sample kind {min(unknown)!r} is unknown; expected {', '.join(KINDS)}")
    for sample in samples:
        found = np.flatnonzero(np.bincount(sample.label.ravel(), minlength=256)[:UNLABELED])
        if len(found) and found[-1] >= rows:
            raise ValueError(f"the label of {sample.kind} sample {sample.sample_id!r} has class index {found[-1]}; expected "
                             f"0..{rows - 1} or {UNLABELED}: map dataset ids to class indices first")  # fmt: skip
    wanted = [kind for kind in KINDS if schedule.per_step.get(kind, 0) > 0]
    pools = {kind: sorted((s for s in samples if s.kind == kind), key=lambda s: s.sample_id) for kind in wanted}
    pools = {kind: pool for kind, pool in pools.items() if pool}
    if not pools:
        raise ValueError(
            f"the novel stage got no sample of the kinds in per_step = {schedule.per_step}; give it support images at least"
        )
    return pools


def _draw(pool: list[Sample], kind: str, step: int, count: int, seed: int) -> list[Sample]:
    """The batch of a step: consecutive places in an endless row of permutations, each named by (seed, kind, round)."""
    places = range(step * count, (step + 1) * count)
    rounds = {p // len(pool) for p in places}
    orders = {r: seeded("novel", seed, kind, r).permutation(len(pool)) for r in rounds}
    return [pool[orders[p // len(pool)][p % len(pool)]] for p in places]


def _optimizer(
    now: Classifier, base: Classifier, bottleneck: nn.Module | None, schedule: NovelSchedule
) -> torch.optim.Adam:
    rate = schedule.lr * base.weight.square().mean().sqrt().item()
    groups = [{"params": [now.weight, now.bias], "lr": rate, "top": rate}]
    if bottleneck is not None:
        rate = schedule.bottleneck_lr
        groups.append({"params": list(bottleneck.parameters()), "lr": rate, "top": rate})
    return torch.optim.Adam(groups)


def _weights(batch: list[Sample], label: Tensor) -> Tensor | None:
    if all(s.weight is None for s in batch):
        return None
    rows = [np.ones(s.label.shape, np.float16) if s.weight is None else s.weight for s in batch]
    return torch.from_numpy(np.stack(rows)).to(label.device).float()


def _merged(batch: list[Sample], base_rows: int, rows: int, schedule: NovelSchedule) -> Tensor:
    """bool (N, rows): the classes that each sample's background may be."""
    merged = torch.zeros(len(batch), rows, dtype=torch.bool)
    for n, sample in enumerate(batch):
        if sample.kind == "support" and schedule.merge_support:
            merged[n, :base_rows] = True
        if sample.kind == "replay" and schedule.merge_replay:
            merged[n, base_rows:] = True
    merged[:, BACKGROUND] = True
    return merged


def _surely_not_novel(label: Tensor, base_rows: int, grid: torch.Size) -> Tensor:
    """bool (N, h, w): cells in which every pixel is labelled background or base."""
    doubt = (label >= base_rows).float()[:, None]  # novel, or 255
    return F.adaptive_max_pool2d(doubt, (grid[0], grid[1]))[:, 0] == 0
