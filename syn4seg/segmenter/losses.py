"""Losses of the two stages; all ignore label 255.

The background changes its meaning between the stages: in base training it holds the novel objects, on a support image it
holds the unlabelled base objects. `pixel_loss` therefore lets each image name the classes that its background may be.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from syn4seg.schema import BACKGROUND, UNLABELED

Total = Callable[[Tensor], Tensor]
"""Sums a scalar over the processes that share a batch, so that a loss is a mean over the whole batch and not over a part."""


def alone(value: Tensor) -> Tensor:
    """The `Total` of a process that has the whole batch."""
    return value


def pixel_loss(logits: Tensor, label: Tensor, *, weight: Tensor | None = None, merged: Tensor | None = None,
               background_weight: float = 1.0, total: Total = alone) -> Tensor:  # fmt: skip
    """Weighted mean cross-entropy over labelled pixels, with merged backgrounds.

    On pixels labelled 0 the probability is p'(0) = sum of p over the image's merged classes (DIaM; method 5).

    Args:
        logits: (N, C, H, W).
        label: class indices (N, H, W), any integer type, 255 ignored.
        weight: float (N, H, W), e.g. the confidence of synthetic pixels; None for 1.
        merged: bool (N, C), the classes that image n's background may be (column 0 is always one); None for none.
        background_weight: factor on pixels labelled 0 (DIaM uses 0.01 and 0.15).
        total: sums the weight of the pixels over all processes; the losses of all then add up to that of the whole batch.

    Returns:
        A scalar; 0 where no pixel is labelled.
    """
    target = label.long()
    valid = target != UNLABELED
    chosen = logits.gather(1, torch.where(valid, target, 0)[:, None])[:, 0]
    if merged is not None:
        rows = merged.clone()
        rows[:, BACKGROUND] = True
        special = rows.sum(1) > 1
        if special.any():
            allowed = logits[special].masked_fill(~rows[special][:, :, None, None], -torch.inf).logsumexp(1)
            chosen = chosen.index_put(
                (special.nonzero()[:, 0],), torch.where(target[special] == BACKGROUND, allowed, chosen[special])
            )
    loss = logits.logsumexp(1) - chosen
    share = valid.to(loss.dtype)
    if weight is not None:
        share = share * weight
    if background_weight != 1:
        share = torch.where(target == BACKGROUND, share * background_weight, share)
    return (loss * share).sum() / total(share.sum()).clamp_min(1e-6)


def distillation(logits: Tensor, base_logits: Tensor, allowed: Tensor, total: Total = alone) -> Tensor:
    """KL(base model || current model) where the current model's novel mass counts as background (method 5).

    Args:
        logits: current model (N, 1+B+M, h, w).
        base_logits: frozen base model (N, 1+B, h, w).
        allowed: bool (N, h, w), positions that hold no novel label.
        total: as in `pixel_loss`, of the number of allowed positions.

    Returns:
        A scalar, the mean over allowed positions; 0 where there is none.
    """
    base_rows = base_logits.shape[1]
    now = F.log_softmax(logits, 1)
    background = torch.cat([now[:, :1], now[:, base_rows:]], 1).logsumexp(1, keepdim=True)
    now = torch.cat([background, now[:, 1:base_rows]], 1)
    before = F.log_softmax(base_logits, 1)
    kl = (before.exp() * (before - now)).sum(1)
    return (kl * allowed).sum() / total(allowed.sum()).clamp_min(1)
