"""The novel stage: a classifier for base and novel classes, learned on frozen features in seconds.

Novel rows are imprinted from the support prototypes, then all rows are fine-tuned on support, synthetic and (an option)
replayed base images. The batch of step s is named by (seed, kind, s) over samples sorted by id.

The rule that lets training start before synthesis has ended: of the N planned synthetic samples, in the order of the plan,
step s of S may draw from the first ceil(N (s + 1) / (ramp S)) that were accepted (all N with ramp 0, and once the ramp is
over). It needs their verdicts and nothing else, so when labels arrive, in which order, who computed the features and how
often the training was stopped change no bit.
"""

from __future__ import annotations

import bisect
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from syn4seg.errors import UserError
from syn4seg.schema import BACKGROUND, UNLABELED
from syn4seg.seeds import seeded
from syn4seg.segmenter.inversion import InvertedCells
from syn4seg.segmenter.losses import cells_without_novel, distillation, pixel_loss
from syn4seg.segmenter.network import Classifier, upsample
from syn4seg.segmenter.parallel import all_reduce_gradients, all_reduce_sum, rank_and_world_size

Kind = Literal["support", "synthetic", "replay"]
KINDS: tuple[Kind, ...] = ("support", "synthetic", "replay")


@dataclass(frozen=True)
class TrainingSample:
    """One training image of the novel stage.

    Attributes:
        sample_id: names it; ids are unique among the samples of a kind.
        features: float16 (D, h, w).
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
        background_weight: factor on pixels labelled background (DIaM has 0.01 to 0.15 on its support images).
        distill: weight of the distillation to the base model on pixels without novel labels.
        merge_base: kinds of samples whose background may be any base class: support images, whose base objects are unlabelled;
            where base classes have no masks at all, synthetic images too, whose labels come from such masks.
        merge_novel: kinds of samples whose background may be each novel class that a support label does not hold: nobody annotated
            it in a support image, base truth calls it background, and the segmenter that labels synthetic images misses much of it.
        ramp: share of the steps over which the planned synthetic samples are admitted; 0 admits all from the first step.
        inverted_cells: cells per base class on which the base model is distilled too (`inversion`), where there are no base images.
        label_stride: the cross-entropy looks at every n-th row and column of the labels.
    """

    steps: int = 300
    per_step: dict[str, int] = field(default_factory=lambda: {"support": 4, "synthetic": 8, "replay": 4})
    lr: float = 0.1
    background_weight: float = 1.0
    distill: float = 1.0
    merge_base: tuple[Kind, ...] = ("support",)
    merge_novel: tuple[Kind, ...] = KINDS
    inverted_cells: int = 0
    ramp: float = 0.0
    label_stride: int = 1

    def admitted(self, step: int, planned: int) -> int:
        """Return how many of the `planned` samples, in the order of the plan, step `step` (from 0) may draw from."""
        over = self.ramp * self.steps
        if step + 1 >= over:
            return planned
        return min(planned, math.ceil(planned * (step + 1) / over))


def is_local_sample(sample_id: str) -> bool:
    """Return whether this process computes the features and the loss of a sample: by a hash of its id, where several train."""
    rank, world = rank_and_world_size()
    return zlib.crc32(sample_id.encode()) % world == rank


def imprint(base: Classifier, prototypes: Tensor) -> Classifier:
    """Return rows for the novel classes too: prototype directions at the base rows' mean norm, with the mean base bias.

    Args:
        base: rows (1+B, D).
        prototypes: mu_k (M, D), raw or normalised.
    """
    rows = F.normalize(prototypes.float().to(base.weight), dim=1) * base.weight[1:].norm(dim=1).mean()
    bias = base.bias[1:].mean().expand(len(rows))
    return base.replaced(torch.cat([base.weight, rows]).detach(), torch.cat([base.bias, bias]).detach())


class NovelTraining:
    """The fine-tuning of all rows of a classifier, one step at a time, as verdicts on the planned samples come in.

    Where a process group is set up, every process takes the steps together with the others, each on the samples that it owns
    (`is_local_sample`): losses are means over all samples of a step, and gradients are summed.

    Args:
        start: rows (1+B+M, D), see `imprint`; its first 1+B rows are also the base model of the distillation.
        samples: the support and replayed samples, in any order.
        planned: ids of the planned synthetic samples, in the order of the plan.
        base_classes: B.

    Raises:
        UserError: no sample that `schedule.per_step` uses, labels of a class without a row, or an unknown kind.
    """

    def __init__(
        self,
        start: Classifier,
        samples: Sequence[TrainingSample],
        planned: Sequence[str] = (),
        *,
        base_classes: int,
        schedule: NovelSchedule,
        seed: int,
    ):
        unknown = {*schedule.per_step, *(s.kind for s in samples)} - set(KINDS)
        if unknown:
            raise UserError(f"sample kind {min(unknown)!r} is unknown; expected {', '.join(KINDS)}")
        self.schedule, self.seed, self.planned = schedule, seed, list(planned)
        self.start, self.base_rows = start, 1 + base_classes
        self.base = start.replaced(start.weight[: self.base_rows].detach(), start.bias[: self.base_rows].detach())
        weight, bias = (t.detach().clone().requires_grad_() for t in (start.weight, start.bias))
        self.current = start.replaced(weight, bias)
        self.rate = schedule.lr * self.base.weight.square().mean().sqrt().item()
        self.optimizer = torch.optim.Adam([weight, bias], lr=self.rate)
        for p in (weight, bias):
            p.grad = torch.zeros_like(p)  # a process without a sample in a step has a gradient too
        self.steps_done = 0
        self.accepted: dict[str, bool] = {}
        self.pool: list[str] = []
        self.judged = self.admitted = 0
        self.samples: dict[tuple[str, str], TrainingSample] = {}
        for sample in samples:
            self._add(sample)
        self.ids = {kind: sorted(s.sample_id for s in samples if s.kind == kind) for kind in KINDS}
        self.inverted: InvertedCells | None = None
        if schedule.inverted_cells and schedule.distill > 0 and rank_and_world_size()[0] == 0:
            cells = free_cells([s for s in samples if s.kind == "support"], self.base_rows, start.align_corners)
            self.inverted = InvertedCells(self.base, cells, schedule.inverted_cells, seed)
        self.checkpoint: dict[str, Tensor] | None = None
        if not (self.planned and schedule.per_step.get("synthetic", 0)) and not any(self._counts(k) for k in KINDS):
            raise self._no_samples()

    def record_verdict(self, sample_id: str, accepted: bool, sample: TrainingSample | None = None) -> None:
        """Record what became of a planned sample.

        Args:
            accepted: False for a rejected or quarantined one, or one without the label that this training uses.
            sample: an accepted one, where this process owns it.
        """
        self.accepted[sample_id] = accepted
        if accepted and is_local_sample(sample_id):
            assert sample is not None and sample.kind == "synthetic", sample_id
            self._add(sample)

    @property
    def finished(self) -> bool:
        """True once every step is done."""
        return self.steps_done == self.schedule.steps

    @property
    def next_step(self) -> int:
        """The number of the next step, from 0; that of the checkpoint that is to be continued, once one is loaded."""
        return self.steps_done if self.checkpoint is None else int(self.checkpoint["steps_done"])

    @property
    def required(self) -> int:
        """The number of planned samples, in the order of the plan, that must have a verdict before the next step."""
        return self.schedule.admitted(self.next_step, len(self.planned))

    @property
    def ready(self) -> bool:
        """True if every planned sample that the next step may draw from has a verdict."""
        while self.judged < len(self.planned) and self.planned[self.judged] in self.accepted:
            self.judged += 1
        return self.judged >= self.required

    def step(self) -> float:
        """Take one optimiser step; return the loss (of all processes together)."""
        self._resume()
        batch = self._batch()
        local = [self.samples[kind, name] for kind, name in batch if is_local_sample(name)]
        loss = self._loss(local)
        if self.inverted is not None:  # in process 0 alone: gradients are summed
            loss = loss + self.schedule.distill * self.inverted.loss(self.current, self.steps_done)
        self.optimizer.param_groups[0]["lr"] = self.rate * (0.5 + 0.5 * math.cos(math.pi * self.steps_done / self.schedule.steps))
        self.optimizer.zero_grad(set_to_none=False)
        if loss.requires_grad:
            loss.backward()
        all_reduce_gradients(self.optimizer)
        if batch:
            self.optimizer.step()
        self.steps_done += 1
        return all_reduce_sum(loss.detach()).item()

    @property
    def classifier(self) -> Classifier:
        """The rows as they are now, detached."""
        return self.start.replaced(self.current.weight.detach(), self.current.bias.detach())

    def state(self) -> dict[str, Tensor]:
        """Return everything that continues this training bit for bit: weights, moments, steps done, verdicts relied on."""
        state = {
            "steps_done": torch.tensor(self.steps_done),
            "weight": self.current.weight.detach(),
            "bias": self.current.bias.detach(),
            "accepted": torch.tensor([self.accepted[s] for s in self.planned[: self.admitted]], dtype=torch.bool),
        }
        for number, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"adam.{number}.{key}": value for key, value in moments.items()}
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state()` of the same training, once the verdicts that it relied on are known.

        If they have changed since (a quarantined sample was mended), the training starts over instead.
        """
        self.checkpoint = state

    def _resume(self) -> None:
        state, self.checkpoint = self.checkpoint, None
        if state is None or state["accepted"].tolist() != [self.accepted[s] for s in self.planned[: len(state["accepted"])]]:
            return
        with torch.no_grad():
            self.current.weight.copy_(state["weight"])
            self.current.bias.copy_(state["bias"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key in (k for k in state if k.startswith("adam.")):
            _, number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = state[key]
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.steps_done = int(state["steps_done"])

    def _add(self, sample: TrainingSample) -> None:
        highest, rows = sample.label[sample.label != UNLABELED].max(initial=0), len(self.start.weight)
        if highest >= rows:
            raise UserError(
                f"the label of {sample.kind} sample {sample.sample_id!r} has class index {highest}; expected "
                f"0..{rows - 1} or {UNLABELED}: map dataset ids to class indices first"
            )
        self.samples[sample.kind, sample.sample_id] = sample

    def _counts(self, kind: str) -> bool:
        return self.schedule.per_step.get(kind, 0) > 0 and bool(self.pool if kind == "synthetic" else self.ids[kind])

    def _no_samples(self) -> UserError:
        per_step = self.schedule.per_step
        return UserError(f"the novel stage got no sample of the kinds in per_step = {per_step}; give it support images at least")

    def _batch(self) -> list[tuple[str, str]]:
        """Return (kind, id) of the samples of the next step."""
        allowed = self.schedule.admitted(self.steps_done, len(self.planned))
        for name in self.planned[self.admitted : allowed]:
            if self.accepted[name]:
                bisect.insort(self.pool, name)
        self.admitted = allowed
        pools = {kind: self.pool if kind == "synthetic" else self.ids[kind] for kind in KINDS if self._counts(kind)}
        if not pools and self.admitted == len(self.planned):
            raise self._no_samples()
        return [
            (kind, pool[place])
            for kind, pool in pools.items()
            for place in draw_places(len(pool), kind, self.steps_done, self.schedule.per_step[kind], self.seed)
        ]

    def _loss(self, batch: list[TrainingSample]) -> Tensor:
        """Return this process's part of the loss of a step: sums over its samples, divided by the sums over all of them."""
        if not batch:  # the other processes still wait for this one's share of their sums
            nothing = torch.zeros((), device=self.start.weight.device)
            for dtype in (torch.float32, torch.int64)[: 2 if self.schedule.distill > 0 else 1]:
                all_reduce_sum(nothing.to(dtype))
            return nothing
        x = torch.stack([s.features for s in batch]).to(self.start.weight)
        label = torch.from_numpy(np.stack([s.label for s in batch])).to(x.device)
        logits = _logits(self.current, x)
        stride = self.schedule.label_stride
        first = 0 if self.start.align_corners else stride // 2  # the corner, or the middle, of each block of pixels
        thin = label[:, first::stride, first::stride]
        full = upsample(logits, (thin.shape[1], thin.shape[2]), self.start.align_corners)
        kinds, labels = zip(*((s.kind, s.label) for s in batch), strict=True)
        merged = merged_classes(kinds, labels, self.base_rows, len(self.start.weight), self.schedule).to(x.device)
        weight, background = _weights(batch, label), self.schedule.background_weight
        weight = None if weight is None else weight[:, first::stride, first::stride]
        loss = pixel_loss(full, thin, weight=weight, merged=merged, background_weight=background, all_reduce=all_reduce_sum)
        if self.schedule.distill > 0:
            with torch.no_grad():
                before = _logits(self.base, x)
            allowed = cells_without_novel(label, self.base_rows, x, self.start.align_corners)
            loss = loss + self.schedule.distill * distillation(logits, before, allowed, all_reduce=all_reduce_sum)
        return loss


def train_novel(
    start: Classifier,
    samples: Sequence[TrainingSample],
    *,
    base_classes: int,
    schedule: NovelSchedule,
    seed: int,
    planned: Sequence[str] | None = None,
) -> Classifier:
    """Fine-tune all rows of `start` on frozen features that exist already: `NovelTraining` from start to end.

    Args:
        samples: in any order; the result does not depend on it.
        planned: ids of the planned synthetic samples, in the order of the plan; those that `samples` lacks were rejected.
            None: the synthetic samples, by id (with a ramp, the order counts).

    Returns:
        The new classifier, detached; `start` is left as it was.
    """
    synthetic = {s.sample_id: s for s in samples if s.kind == "synthetic"}
    fixed = [s for s in samples if s.kind != "synthetic"]
    training = NovelTraining(start, fixed, planned or sorted(synthetic), base_classes=base_classes, schedule=schedule, seed=seed)
    for name in training.planned:
        training.record_verdict(name, name in synthetic, synthetic.get(name))
    while not training.finished:
        training.step()
    return training.classifier


def draw_places(size: int, kind: str, step: int, count: int, seed: int) -> list[int]:
    """Return places in a pool: consecutive ones in an endless row of permutations, each named by (seed, kind, round)."""
    places = range(step * count, (step + 1) * count)
    orders = {r: seeded("novel", seed, kind, r).permutation(size) for r in {p // size for p in places}}
    return [int(orders[p // size][p % size]) for p in places]


def _logits(classifier: Classifier, features: Tensor) -> Tensor:
    """Return `classifier(features)`; linear rows as one product per image: half the time of a 1x1 convolution."""
    if classifier.cosine:
        return classifier(features)
    rows = classifier.weight.expand(len(features), -1, -1)
    return torch.baddbmm(classifier.bias[None, :, None], rows, features.flatten(2)).unflatten(2, features.shape[2:])


def _weights(batch: list[TrainingSample], label: Tensor) -> Tensor | None:
    if all(s.weight is None for s in batch):
        return None
    rows = [np.ones(s.label.shape, np.float16) if s.weight is None else s.weight for s in batch]
    return torch.from_numpy(np.stack(rows)).to(label.device).float()


def free_cells(samples: Sequence[TrainingSample], base_rows: int, align_corners: bool) -> Tensor:
    """Return the cells float32 (n, D) of samples that hold no pixel that is novel or 255, in the order of their ids."""
    found = []
    for sample in sorted(samples, key=lambda s: s.sample_id):
        features = sample.features.float()
        free = cells_without_novel(torch.from_numpy(sample.label)[None], base_rows, features[None], align_corners)[0]
        found.append(features[:, free].T)
    return torch.cat(found) if found else torch.zeros(0, 0)


def merged_classes(
    kinds: Sequence[Kind], labels: Sequence[np.ndarray], base_rows: int, rows: int, schedule: NovelSchedule
) -> Tensor:
    """Return bool (N, rows), the classes that each sample's background may be.

    Args:
        kinds: of N samples.
        labels: theirs, uint8 (H, W).
    """
    merged = torch.zeros(len(kinds), rows, dtype=torch.bool)
    for n, (kind, label) in enumerate(zip(kinds, labels, strict=True)):
        if kind in schedule.merge_base:
            merged[n, :base_rows] = True
        if kind in schedule.merge_novel:
            merged[n, base_rows:] = True
            if kind == "support":
                annotated = [int(k) for k in np.unique(label) if base_rows <= k < rows]
                merged[n, annotated] = False
    merged[:, BACKGROUND] = True
    return merged
