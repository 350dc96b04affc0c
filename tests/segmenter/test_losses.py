"""Losses against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from syn4seg.segmenter.losses import distillation, pixel_loss


def _case(seed, n=3, c=5, h=4, w=3):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, h, w, generator=g) * 3
    label = torch.randint(0, c, (n, h, w), generator=g)
    label[torch.rand(n, h, w, generator=g) < 0.3] = 255
    return logits, label.to(torch.uint8), torch.rand(n, h, w, generator=g), torch.rand(n, c, generator=g) < 0.4


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("background", [1.0, 0.2])
def test_pixel_loss_equals_a_loop_over_pixels(weighted, merging, background):
    logits, label, weight, merged = _case(0)
    total = share = 0.0
    for n, y, x in np.ndindex(label.shape):
        k = int(label[n, y, x])
        if k == 255:
            continue
        p = logits[n, :, y, x].softmax(0)
        mass = p[k]
        if k == 0 and merging:
            mass = p[0] + p[1:][merged[n, 1:]].sum()
        s = (float(weight[n, y, x]) if weighted else 1.0) * (background if k == 0 else 1.0)
        total, share = total - s * float(mass.log()), share + s
    found = pixel_loss(
        logits, label, weight=weight if weighted else None, merged=merged if merging else None, background_weight=background
    )
    assert float(found) == pytest.approx(total / share, abs=1e-5)


def test_the_unlabeled_pixels_logits_get_no_gradient():
    logits, label, weight, merged = _case(1)
    logits.requires_grad_()
    pixel_loss(logits, label, weight=weight, merged=merged).backward()
    grad = logits.grad.abs().sum(1)
    assert (grad[label == 255] == 0).all() and torch.isfinite(grad).all() and grad.sum() > 0
    assert pixel_loss(logits, torch.full_like(label, 255)).item() == 0


def test_a_merged_background_does_not_push_its_classes_down():
    logits = torch.zeros(1, 3, 1, 1, requires_grad=True)
    label = torch.zeros(1, 1, 1, dtype=torch.uint8)
    pixel_loss(logits, label, merged=torch.tensor([[True, True, False]])).backward()
    assert logits.grad[0, 1] < 0 < logits.grad[0, 2]  # descent raises class 1 and lowers class 2


def test_distillation_equals_a_loop_and_vanishes_when_only_the_background_was_divided():
    g = torch.Generator().manual_seed(3)
    logits, before = torch.randn(2, 6, 3, 3, generator=g), torch.randn(2, 4, 3, 3, generator=g)
    allowed = torch.rand(2, 3, 3, generator=g) < 0.6
    total = 0.0
    for n, y, x in allowed.nonzero().tolist():
        p, q = logits[n, :, y, x].softmax(0), before[n, :, y, x].softmax(0)
        now = torch.cat([(p[0] + p[4:].sum())[None], p[1:4]])
        total += float((q * (q.log() - now.log())).sum())
    assert float(distillation(logits, before, allowed)) == pytest.approx(total / int(allowed.sum()), abs=1e-5)
    p = before.softmax(1)
    divided = torch.cat([p[:, :1] * 0.5, p[:, 1:], p[:, :1] * 0.3, p[:, :1] * 0.2], 1).log()
    assert float(distillation(divided, before, allowed)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(logits, before, torch.zeros_like(allowed))) == 0
