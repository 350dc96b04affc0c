"""Losses of the two stages; all ignore label 255.

The background changes its meaning between the stages: in base training it holds the novel objects, on a support image it
holds the unlabelled base objects. `pixel_loss` therefore lets each image name the classes that its background may be.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from syn4seg.labeling.prototypes import area_weights
from syn4seg.schema import BACKGROUND, UNLABELED

AllReduce = Callable[[Tensor], Tensor]
"""Sums a scalar over the processes that share a batch, so that a loss is a mean over the whole batch and not over a part."""


def single_process(value: Tensor) -> Tensor:
    """Return the sum over the only process: the value itself."""
    return value


def pixel_loss(
    logits: Tensor,
    label: Tensor,
    *,
    weight: Tensor | None = None,
    merged: Tensor | None = None,
    background_weight: float = 1.0,
    all_reduce: AllReduce = single_process,
) -> Tensor:
    """Return the weighted mean cross-entropy over labelled pixels, with merged backgrounds.

    On pixels labelled 0 the probability is p'(0) = sum of p over the image's merged classes (DIaM; method.md 5.3).

    Args:
        logits: (N, C, H, W).
        label: class indices (N, H, W), any integer type, 255 ignored.
        weight: float (N, H, W), e.g. the confidence of synthetic pixels; None for 1.
        merged: bool (N, C), the classes that image n's background may be (column 0 is always one); None for none.
        background_weight: factor on pixels labelled 0 (DIaM uses 0.01 and 0.15).
        all_reduce: sums the weight of the pixels over all processes; the losses of all then add up to that of the whole batch.

    Returns:
        A scalar; 0 where no pixel is labelled.
    """
    target = label.long()
    valid = target != UNLABELED
    share = valid.to(logits.dtype)
    if weight is not None:
        share = share * weight
    if background_weight != 1:
        share = torch.where(target == BACKGROUND, share * background_weight, share)
    share = share / all_reduce(share.sum()).clamp_min(1e-6)
    rows = None
    if merged is not None:
        rows = merged.clone()
        rows[:, BACKGROUND] = True
        rows = rows if (rows.sum(1) > 1).any() else None
    return _CrossEntropy.apply(logits, torch.where(valid, target, 0), share, rows)


class _CrossEntropy(torch.autograd.Function):
    """Sum over pixels of share * -log p'(target), and its gradient, with one exponential per logit.

    p'(k) = p(k), but p'(0) is the sum of p over an image's merged classes S. With E = exp(logits - max) the gradient is
    share * (E_j / sum E - [j in S] E_j / sum_S E), where S = {k} on all other pixels. The masses of merged backgrounds are
    taken to be no smaller than the smallest normal number, so a pixel whose background is hopeless has a finite loss.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, share: Tensor, merged: Tensor | None) -> Tensor:
        top = logits.amax(1, keepdim=True)
        mass = (logits - top).exp_()
        whole = mass.sum(1)
        log_target = logits.gather(1, target[:, None])[:, 0] - top[:, 0]
        background = allowed = None
        if merged is not None:
            background = (target == BACKGROUND) & (merged.sum(1) > 1)[:, None, None]
            allowed = torch.einsum("nchw,nc->nhw", mass, merged.to(mass)).clamp_min_(torch.finfo(mass.dtype).tiny)
            log_target = torch.where(background, allowed.log(), log_target)
        ctx.save_for_backward(mass, whole, target, share, merged, background, allowed)
        return ((whole.log() - log_target) * share).sum()

    @staticmethod
    def backward(ctx, *above: Tensor) -> tuple[Tensor | None, ...]:
        mass, whole, target, share, merged, background, allowed = ctx.saved_tensors
        share = share * above[0]
        gradient = mass * (share / whole)[:, None]
        if merged is not None:
            for n in (merged.sum(1) > 1).nonzero()[:, 0].tolist():
                taken = torch.where(background[n], share[n] / allowed[n], 0)
                gradient[n, merged[n]] -= mass[n, merged[n]] * taken
            share = torch.where(background, 0, share)
        return gradient.scatter_add_(1, target[:, None], -share[:, None]), None, None, None


def distillation(logits: Tensor, base_logits: Tensor, allowed: Tensor, all_reduce: AllReduce = single_process) -> Tensor:
    """Return KL(base model || current model) where the current model's novel mass counts as background (method.md 5.3).

    Args:
        logits: current model (N, 1+B+M, h, w).
        base_logits: frozen base model (N, 1+B, h, w).
        allowed: bool (N, h, w), positions that hold no novel label.
        all_reduce: as in `pixel_loss`, of the number of allowed positions.

    Returns:
        A scalar, the mean over allowed positions; 0 where there is none.
    """
    base_rows = base_logits.shape[1]
    current = F.log_softmax(logits, 1)
    background = torch.cat([current[:, :1], current[:, base_rows:]], 1).logsumexp(1, keepdim=True)
    current = torch.cat([background, current[:, 1:base_rows]], 1)
    before = F.log_softmax(base_logits, 1)
    kl = (before.exp() * (before - current)).sum(1)
    return (kl * allowed).sum() / all_reduce(allowed.sum()).clamp_min(1)


def cells_without_novel(label: Tensor, base_rows: int, features: Tensor, align_corners: bool) -> Tensor:
    """Return bool (N, h, w): the cells of features (N, D, h, w) without a pixel of labels (N, H, W) that is novel or 255."""
    sides = zip(label.shape[1:], features.shape[2:], strict=True)
    rows, columns = (torch.from_numpy(area_weights(n, g, align_corners)).to(features) for n, g in sides)
    return rows @ (label >= base_rows).to(features) @ columns.T == 0
