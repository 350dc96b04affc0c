"""Support fine-tuning, the simplest baseline: imprinted rows, then cross-entropy on the support set and nothing else."""

from __future__ import annotations

import math

import torch

from syn4seg.baselines.support import BaselineFacts, BaselineTask, SupportCells
from syn4seg.segmenter.evaluation import Predictor, predictor_of
from syn4seg.segmenter.losses import pixel_loss
from syn4seg.segmenter.network import Classifier
from syn4seg.segmenter.novel import imprint

STEPS = 100
RATE = 0.1
"""Of Adam with cosine decay, relative to the root mean square of the base weights, as in our novel stage."""
FACTS: BaselineFacts = {
    "source": "support fine-tuning, the field's plain baseline, in our code",
    "settings": "imprinted novel rows, then all rows by cross-entropy on the support set alone (no synthetic image, no "
    "replay, no distillation), background merged with the base classes as in DIaM; 100 Adam steps on all cells",
    "deviations": ["no one source: papers differ in what their fine-tuning trains and for how long; here the classifier alone"],
}


def build(task: BaselineTask) -> Predictor:
    """Return the fine-tuned classifier."""
    return finetune(task.base, task.cells)


def finetune(base: Classifier, cells: SupportCells, steps: int = STEPS) -> Predictor:
    """Fine-tune all rows on all support cells at once; nothing holds the base classes but the merged background.

    On cells labelled background the probability is the sum over background and base classes (DIaM).
    """
    start = imprint(base, cells.means())
    weight, bias = (t.detach().clone().requires_grad_() for t in (start.weight, start.bias))
    current = start.replaced(weight, bias)
    merged = torch.arange(len(weight), device=weight.device)[None].expand(len(cells.labels), -1) < cells.base_rows
    top = RATE * base.weight.detach().square().mean().sqrt().item()
    optimizer = torch.optim.Adam([weight, bias], lr=top)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = top * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        pixel_loss(current(cells.features), cells.labels, merged=merged).backward()
        optimizer.step()
    return predictor_of(start.replaced(weight.detach(), bias.detach()))
