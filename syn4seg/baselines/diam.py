"""DIaM (CVPR 2023): every query optimises its own copy of the classifier, on itself and on the support set. Transductive.

Loss of one query (method.md 7.3; means are over labelled support cells, and over the query's valid cells):
    100 CE(support) + KL(marginal || pi) + entropy(query) + 100 KD(query)
All terms work on probabilities with 1e-10 inside the logarithms, as the public code does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from syn4seg.baselines.support import CELLS, CORNERS, FEATURES, BaselineFacts, BaselineTask, SupportCells, nearest
from syn4seg.schema import BACKGROUND, UNLABELED
from syn4seg.segmenter.evaluation import Predictor, Query, scores_to_classes
from syn4seg.segmenter.network import Classifier, upsample

EPS = 1e-10
FACTS: BaselineFacts = {
    "source": "DIaM (Hajimiri et al., CVPR 2023; sinahmr/DIaM)",
    "settings": "each query its own classifier: 100 SGD steps of 1.25e-3 on 100 CE + KL(marginal||pi) + entropy + 100 KD; "
    "pi from the model itself, again after step 10; background weight 0.01 at 1 shot, else 0.15",
    "deviations": [
        "it optimises on the test image, and, as in the public code, leaves out that image's unlabelled (255) pixels: padding "
        "and, where there are some, the annotated borders",
        "base objects that a protocol keeps in the support labels count as background, as in its own protocol",
        "where the base classifier is 10 x cosine its logits are read so; the public code has a linear one only",
        FEATURES,
        CORNERS,
        CELLS,
    ],
}


def build(task: BaselineTask) -> Predictor:
    """Return DIaM with the objective of its public code."""
    return Diam.of(task.base, task.cells, task.shots)


@dataclass(frozen=True)
class Objective:
    """Loss weights and optimiser of the public configuration.

    Attributes:
        cross_entropy: as are `marginal`, `entropy` and `distillation`, the weight of a term.
        steps: of plain gradient descent.
        lr: of base and novel rows alike, biases included.
        estimate_at: after these many steps pi is estimated again.
    """

    cross_entropy: float = 100.0
    marginal: float = 1.0
    entropy: float = 1.0
    distillation: float = 100.0
    steps: int = 100
    lr: float = 1.25e-3
    estimate_at: tuple[int, ...] = (10,)


def cross_entropy(p: Tensor, target: Tensor, base_rows: int, background_weight: float) -> Tensor:
    """Return the mean over support cells of -w log p', where p'(0) holds all base classes and w = `background_weight` on target 0.

    The sum is divided by the number of cells, not by the sum of w.

    Args:
        p: (C, P).
        target: int64 (P,), 0 or novel.
    """
    background = target == BACKGROUND
    mass = torch.where(background, p[:base_rows].sum(0), p.gather(0, target[None])[0])
    weight = torch.where(background, background_weight, 1.0)
    return -(weight * (mass + EPS).log()).mean()


def entropy(p: Tensor) -> Tensor:
    """Return the mean over query cells of the entropy of p (C, Q)."""
    return -(p * (p + EPS).log()).sum(0).mean()


def proportions(p: Tensor) -> Tensor:
    """Return the mean of p (C, Q) over query cells: the marginal distribution (C,) of the labels."""
    return p.mean(1)


def marginal(p: Tensor, pi: Tensor) -> Tensor:
    """Return KL(proportions of p || pi), pi (C,)."""
    share = proportions(p)
    return (share * (EPS + share / (pi + EPS)).log()).sum()


def distillation(p: Tensor, snapshot: Tensor) -> Tensor:
    """Return the mean over query cells of KL(p~ || snapshot), where p~(0) holds background and all novel classes.

    Args:
        p: (C, Q).
        snapshot: of the base model (1+B, Q).
    """
    base_rows = len(snapshot)
    merged = torch.cat([p[:1] + p[base_rows:].sum(0, keepdim=True), p[1:base_rows]])
    return (merged * (EPS + merged / (EPS + snapshot)).log()).sum(0).mean()


@dataclass(frozen=True)
class Diam:
    """A predictor (see `Predictor`); a query's result depends on the query and on the support set alone.

    Attributes:
        base: rows (1+B, D), the snapshot of the distillation.
        start: rows (1+B+M, D): the base rows, and unit means of the support features with bias 0.
        features: (D, P) of the labelled support cells.
        target: int64 (P,), 0 or novel.
        background_weight: on support cells of target 0.
        objective: loss weights and optimiser.
    """

    base: Classifier
    start: Classifier
    features: Tensor
    target: Tensor
    background_weight: float
    objective: Objective = Objective()

    @staticmethod
    def of(base: Classifier, cells: SupportCells, shots: int) -> Diam:
        """Return the predictor of a support set; the background weight is 0.01 at 1 shot, else 0.15."""
        base = base.replaced(base.weight.detach(), base.bias.detach())
        novel = F.normalize(cells.means(), dim=1)
        start = base.replaced(torch.cat([base.weight, novel]), torch.cat([base.bias, base.bias.new_zeros(len(novel))]))
        target = cells.targets().flatten()
        use = target != UNLABELED
        features = cells.features.transpose(0, 1).flatten(1)[:, use].contiguous()
        return Diam(base, start, features, target[use], 0.01 if shots == 1 else 0.15)

    def __call__(self, query: Query) -> np.ndarray:
        """Return class indices uint8, as large as the query's label; probabilities, not logits, are brought to pixels."""
        features = query.features.to(self.start.weight)
        label = query.label if query.shape is None else query.canvas.label(query.label)
        grid = (features.shape[1], features.shape[2])
        valid = nearest(torch.from_numpy(label), grid).to(features.device) != UNLABELED
        valid |= ~valid.any()  # an image of which nothing is scored
        with torch.no_grad():
            p = self.adapted(features[:, valid])(features[None]).softmax(1)
            return scores_to_classes(query, upsample(p, (query.canvas.size, query.canvas.size), self.base.align_corners))

    def adapted(self, query: Tensor) -> Classifier:
        """Return the classifier after all steps on the valid cells (D, Q) of one query."""
        weight, bias = self.start.weight.clone(), self.start.bias.clone()
        with torch.no_grad():
            snapshot = _probabilities(self.base, query)
            pi = proportions(_probabilities(self.start, query))
        for step in range(1, self.objective.steps + 1):
            with torch.enable_grad():
                rows = self.start.replaced(weight.requires_grad_(), bias.requires_grad_())
                gradients = torch.autograd.grad(self.loss(rows, query, snapshot, pi), (weight, bias), allow_unused=True)
            weight, bias = (
                (t if g is None else t - self.objective.lr * g).detach() for t, g in zip((weight, bias), gradients, strict=True)
            )
            if step in self.objective.estimate_at:
                pi = proportions(_probabilities(self.start.replaced(weight, bias), query))
        return self.start.replaced(weight, bias)

    def loss(self, rows: Classifier, query: Tensor, snapshot: Tensor, pi: Tensor) -> Tensor:
        """Return the objective of one query.

        Args:
            query: its valid cells (D, Q).
            snapshot: the base model's probabilities there (1+B, Q).
            pi: class proportions (C,), constant.
        """
        weights, p, support = self.objective, _probabilities(rows, query), _probabilities(rows, self.features)
        return (
            weights.cross_entropy * cross_entropy(support, self.target, len(self.base.weight), self.background_weight)
            + weights.marginal * marginal(p, pi)
            + weights.entropy * entropy(p)
            + weights.distillation * distillation(p, snapshot)
        )


def _probabilities(rows: Classifier, cells: Tensor) -> Tensor:
    """Return class probabilities (C, P) of cells (D, P)."""
    return rows(cells[None, :, :, None])[0, :, :, 0].softmax(0)
