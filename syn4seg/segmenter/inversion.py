"""Base classes without base images: feature cells that the base classifier calls one of its classes, made of other images' cells.

Trained on support and synthetic images alone, a novel row may fire on every base object: no such object is ever seen. What a base
class looks like is partly in the classifier's own rows. A cell of another image is changed in small steps along the gradient of log
p(k) until the base model calls it k; on such cells the current model is distilled to the base model. (Data-free distillation, here
on the input of the classifier alone.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from syn4seg.seeds import seeded
from syn4seg.segmenter.losses import distillation
from syn4seg.segmenter.network import Classifier

STEP = 0.03
"""Length of a step, relative to the mean length of the cells."""
MOST_STEPS = 200
"""A cell that is not called its class by then is left out."""
SURE = (0.8, 0.99)
"""Range of the probability of its class at which a cell is left as it is, drawn for each."""
PER_STEP = 256
"""Cells of a training step."""


def invert_classifier(base: Classifier, cells: Tensor, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return cells float32 (n, D) that a classifier calls one of its classes, and the classes int64 (n,), 1..B.

    Args:
        base: rows (1+B, D), background first.
        cells: float (m, D), of images of anything; where none is negative, none becomes negative.
        per_class: cells that are tried for each class.
        seed: names which cells they start from, and how sure the classifier is to be.
    """
    classes = torch.arange(1, len(base.weight)).repeat_interleave(per_class)
    if not len(cells) or not len(classes):
        return base.weight.new_zeros(0, base.weight.shape[1]), classes[:0]
    rng, (low, high) = seeded("inverted cells", seed), SURE
    chosen = torch.from_numpy(rng.integers(len(cells), size=len(classes)))
    wanted = torch.from_numpy(rng.uniform(low, high, len(classes))).to(base.weight)
    cells = cells.to(base.weight)
    length, is_positive = STEP * cells.norm(dim=1).mean(), bool((cells >= 0).all())
    found, classes = cells[chosen.to(cells.device)], classes.to(cells.device)
    left = torch.arange(len(found), device=found.device)
    for _ in range(MOST_STEPS):
        part = found[left].requires_grad_()
        with torch.enable_grad():
            odds = base(part.T[None, :, :, None])[0, :, :, 0].log_softmax(0).gather(0, classes[left][None])[0]
            (slope,) = torch.autograd.grad(odds.sum(), part)
        low_yet = odds.detach().exp() < wanted[left]
        left, part, slope = left[low_yet], part.detach()[low_yet], slope[low_yet]
        if not len(left):
            break
        moved = part + length * slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-12)
        found[left] = moved.clamp_min(0) if is_positive else moved
    reached = torch.ones(len(found), dtype=torch.bool, device=found.device)
    reached[left] = False
    return found[reached], classes[reached]


class InvertedCells:
    """Distillation to a base classifier on `invert_classifier(base, cells, per_class, seed)`, some of them in each step."""

    def __init__(self, base: Classifier, cells: Tensor, per_class: int, seed: int):
        self.base, self.seed = base, seed
        self.cells = invert_classifier(base, cells, per_class, seed)[0]

    def loss(self, current: Classifier, step: int) -> Tensor:
        """Return the mean of KL(base || current) over the cells of a step, novel mass counting as background; 0 without cells."""
        if not len(self.cells):
            return current.weight.new_zeros(())
        chosen = torch.from_numpy(seeded("inverted step", self.seed, step).integers(len(self.cells), size=PER_STEP))
        x = self.cells[chosen.to(self.cells.device)].T[None, :, :, None]
        with torch.no_grad():
            before = self.base(x)
        return distillation(current(x), before, torch.ones(1, *x.shape[2:], device=x.device))
