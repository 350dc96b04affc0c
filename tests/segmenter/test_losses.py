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
@pytest.mark.parametrize("background", [1.0, 0.2, 2.0])
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


def _naive(logits, label, weight, merged, background_weight=1.0):
    """The loss in float64 by torch's own log-softmax, so that autograd gives the gradient."""
    p = logits.softmax(1)
    rows = merged.clone()
    rows[:, 0] = True
    mass = torch.where(label == 0, (p * rows[:, :, None, None]).sum(1), p.gather(1, (label.long() % 255)[:, None])[:, 0])
    share = torch.where(label == 255, 0, weight * torch.where(label == 0, background_weight, 1.0))
    return (-mass.log() * share).sum() / share.sum()


@pytest.mark.parametrize("merging", [False, True])
def test_value_and_gradient_are_those_of_autograd_to_the_last_digits(merging):
    logits, label, weight, merged = _case(5)
    label[:, 0, 0], weight = 0, weight.double()
    merged[0], merged[1:, 1] = False, merging  # the first image's background is nothing else
    merged &= merging
    gradients, values = [], []
    for loss in (_naive, pixel_loss):
        x = logits.double().requires_grad_()
        value = loss(x, label, weight=weight, merged=merged)
        (3 * value).backward()  # a factor behind the loss is passed on
        values.append(value)
        gradients.append(x.grad)
    assert values[1].dtype == torch.float64
    torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)
    without = pixel_loss(logits.double(), label)
    torch.testing.assert_close(without, _naive(logits.double(), label, torch.ones_like(weight), torch.zeros_like(merged)))
    assert without.dtype == torch.float64


def test_a_constant_on_all_logits_of_a_pixel_and_the_scale_of_the_weights_change_nothing():
    logits, label, weight, merged = _case(6)
    expected = pixel_loss(logits, label, weight=weight, merged=merged)
    shift = torch.linspace(-400, 400, label.numel()).reshape(label.shape)
    torch.testing.assert_close(
        pixel_loss(logits + shift[:, None], label, weight=weight, merged=merged), expected, rtol=1e-4, atol=0
    )
    torch.testing.assert_close(pixel_loss(logits, label, weight=weight * 1e-3, merged=merged), expected)


def test_a_hopeless_background_costs_its_logit_where_it_is_not_merged_and_a_finite_loss_where_it_is():
    logits, label = torch.zeros(2, 3, 1, 1), torch.zeros(2, 1, 1, dtype=torch.uint8)
    logits[:, 2] = 200
    merged = torch.tensor([[True, True, False], [True, False, False]])
    single, both = pixel_loss(logits[1:], label[1:], merged=merged[1:]), pixel_loss(logits, label, merged=merged)
    floor = -float(np.log(torch.finfo(torch.float32).tiny))
    assert single.item() == pytest.approx(200) and both.item() == pytest.approx((200 + floor) / 2)


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
    single = torch.zeros_like(allowed)
    single[0, 1, 2] = True
    p, q = logits[0, :, 1, 2].softmax(0), before[0, :, 1, 2].softmax(0)
    now = torch.cat([(p[0] + p[4:].sum())[None], p[1:4]])
    assert float(distillation(logits, before, single)) == pytest.approx(float((q * (q / now).log()).sum()), abs=1e-5)
    p = before.softmax(1)
    divided = torch.cat([p[:, :1] * 0.5, p[:, 1:], p[:, :1] * 0.3, p[:, :1] * 0.2], 1).log()
    assert float(distillation(divided, before, allowed)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(logits, before, torch.zeros_like(allowed))) == 0
