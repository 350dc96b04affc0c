"""Support fine-tuning: it learns the support set, starts where imprinting ends, and only the merged background holds the base."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from syn4seg.baselines import build
from syn4seg.baselines.finetuning import RATE, finetune
from syn4seg.baselines.support import SupportCells
from syn4seg.data.canvas import Canvas
from syn4seg.segmenter.evaluation import Query, predictor_of
from syn4seg.segmenter.network import Classifier
from syn4seg.segmenter.novel import TrainingSample, imprint

DIM, GRID, SIDE, BASE = 8, 6, 24, 2
DIRECTIONS = torch.eye(DIM)[:4] * 3
BASE_MODEL = Classifier(DIRECTIONS[:3].clone(), torch.zeros(3))


def _sample(number, classes, labels=None):
    """Upright strips whose features point along the directions of `classes`, plus noise."""
    g = torch.Generator().manual_seed(number)
    grid = torch.tensor(classes).repeat_interleave(GRID // len(classes))[None].repeat(GRID, 1)
    features = DIRECTIONS[grid].permute(2, 0, 1) + 0.3 * torch.randn(DIM, GRID, GRID, generator=g)
    label = torch.tensor(labels or classes).repeat_interleave(SIDE // len(classes))[None].repeat(SIDE, 1)
    return TrainingSample(f"3-{number}", features.half(), label.numpy().astype(np.uint8), "support")


def _cells(samples):
    return SupportCells.of(samples, BASE_MODEL.weight, BASE, 1)


def _query(sample):
    return Query("q", sample.features, sample.label, Canvas(SIDE))


def test_without_steps_it_is_the_imprinted_classifier():
    cells = _cells([_sample(0, [0, 3])])
    query = _query(_sample(9, [1, 3]))
    assert (finetune(BASE_MODEL, cells, 0)(query) == predictor_of(imprint(BASE_MODEL, cells.means()))(query)).all()


def test_novel_and_base_classes_are_told_apart_after_it():
    support = [_sample(i, [0, 3, 1], labels=[0, 3, 0]) for i in range(2)]
    predict = build("finetuning", base=BASE_MODEL, support=support, base_classes=BASE, novel_classes=1, shots=2, seed=0)
    for classes in ([0, 3], [1, 3], [2, 1]):
        query = _query(_sample(50, classes))
        assert (predict(query) == query.label).mean() > 0.9


@pytest.mark.parametrize("base_label", [0, 1])
def test_one_step_equals_adam_on_a_loop_over_cells(base_label):
    """With base labels kept a base cell is learned as itself; else as background or any base class."""
    samples = [_sample(i, [0, 3, 1], labels=[255, 3, base_label]) for i in range(2)]
    cells = _cells(samples)
    start = imprint(BASE_MODEL, cells.means())
    weight, bias = start.weight.clone().requires_grad_(), start.bias.clone().requires_grad_()
    loss, count = torch.zeros(()), 0
    for s in samples:
        for y, x in np.ndindex(GRID, GRID):
            k = int(s.label[y * SIDE // GRID, x * SIDE // GRID])
            if k == 255:
                continue
            p = (weight @ s.features[:, y, x].float() + bias).softmax(0)
            loss, count = loss - (p[:3].sum() if k == 0 else p[k]).log(), count + 1
    slopes = torch.autograd.grad(loss / count, (weight, bias))
    rate = RATE * float(BASE_MODEL.weight.square().mean().sqrt())
    moved = [t.detach() - rate * g / (g.abs() + 1e-8) for t, g in zip((weight, bias), slopes, strict=True)]
    expected = start.replaced(moved[0], moved[1])
    query = _query(_sample(9, [1, 3, 2]))
    assert (finetune(BASE_MODEL, cells, 1)(query) == predictor_of(expected)(query)).mean() > 0.995


def test_more_steps_fit_the_support_set_better_and_the_base_classifier_is_left_alone():
    hard = [_sample(0, [0, 3])]
    hard[0].features[:, :, GRID // 2 :] -= 2.2 * torch.eye(DIM)[3][:, None, None].half()  # the novel object hardly shows
    before, right = BASE_MODEL.weight.clone(), []
    for steps in (0, 100):
        query = _query(hard[0])
        right.append((finetune(BASE_MODEL, _cells(hard), steps)(query) == query.label).mean())
    assert right[1] > right[0] and right[1] > 0.9 and torch.equal(BASE_MODEL.weight, before)
