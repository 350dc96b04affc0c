"""Labels of one image at a time: filtering (APF), relabeling (APR), boundary refinement (SABR). They are instantaneous."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.labeling import filtering, refinement, relabeling
from syn4seg.labeling.components import components
from syn4seg.library.arrays import alike, class_index, label_map, mask_stack, number, real
from syn4seg.schema import BACKGROUND

if TYPE_CHECKING:
    from syn4seg.library.arrays import Array


def filter_regions(
    draft: Array,
    features: Array,
    prototypes: Mapping[int, Array],
    *,
    target: int,
    novel: Collection[int] = (),
    lambda_keep: float = 0.5,
    min_region: int = 12,
    confidence: Array | None = None,
    tau_base: float = 0.6,
    tau_background: float = 0.0,
) -> filtering.Filtered:
    """APF: keeps the regions of a draft that look like the support set, and frees the others.

    Args:
        draft: (H, W), the segmenter's own pseudo-label.
        features: (D, h, w), the segmenter's raw features of the image.
        prototypes: class index -> global prototype (D,); the target's at least.
        target: class that the image was made for.
        novel: all novel classes; those that are not the target become free.
        lambda_keep: least cosine of a kept region's mean feature with the target's prototype.
        min_region: least area of a kept region in pixels.
        confidence: (H, W), the segmenter's probability of its prediction; None trusts base and background predictions.
        tau_base: least confidence of a kept pixel of another class; `tau_background`: of background.

    Returns:
        `kept` uint8 (H, W), 255 = free; `regions`, the verdict on every region with its similarity.

    Raises:
        ValueError: see the module.

    Source: APF in docs/method.md; the same bits as `syn4seg.labeling.filtering.filter_regions`.
    """
    label, maps = label_map(draft, "draft"), real(features, "features", ("D", "h", "w"))
    sure = None if confidence is None else real(confidence, "confidence", label.shape)
    done = filtering.filter_regions(
        label,
        maps,
        _prototypes(prototypes, len(maps)),
        target=class_index(target, "target"),
        novel=[class_index(k, "novel") for k in novel],
        lambda_keep=number(lambda_keep, "lambda_keep", -1, 1),
        min_region=round(number(min_region, "min_region", 0)),
        confidence=sure,
        tau_base=number(tau_base, "tau_base", 0, 1),
        tau_background=number(tau_background, "tau_background", 0, 1),
    )
    return dataclasses.replace(done, kept=alike(done.kept, draft))


def relabel(
    kept: Array,
    features: Array,
    *,
    target: int,
    prototypes: Mapping[int, Array],
    beta: float = 0.5,
    tau: float = 0.1,
    theta: float = 0.6,
    lambda_keep: float = 0.5,
    min_target: float = 0.005,
    max_target: float = 0.95,
) -> relabeling.Relabeled:
    """APR: free pixels take the class whose adaptive prototype they resemble most, where one is clear; kept pixels stay.

    Args:
        kept: (H, W) from `filter_regions`, 255 = free.
        features: (D, h, w), the same as there.
        target: class that the image was made for.
        prototypes: class index -> global prototype, unit (D,): background (0), the target and every class in `kept`.
        beta: share of the global prototype in the adaptive one; the rest is the mean of this image's kept pixels.
        tau: temperature of the softmax over cosines.
        theta: least confidence at which a free pixel takes a class.
        lambda_keep: where no target pixel was kept, the least similarity that is evidence of the target.
        min_target, max_target: share of the image that the target covers afterwards; outside, `reason` says so.

    Returns:
        `label` uint8 (H, W), 255 where nothing was clear; `reason` is empty, or why the image is better left out.

    Raises:
        ValueError: see the module.

    Source: APR in docs/method.md; the same bits as `syn4seg.labeling.relabeling.relabel`.
    """
    label, maps = label_map(kept, "kept"), real(features, "features", ("D", "h", "w"))
    known = _prototypes(prototypes, len(maps))
    for index, vector in known.items():
        length = float(np.linalg.norm(vector))
        if abs(length - 1) > 1e-3:
            raise ValueError(
                f"prototypes[{index}] has length {length:.4g}; expected 1: divide it by its norm, or make it with "
                "syn4seg.labeling.prototypes.support_prototypes"
            )
    done = relabeling.relabel(
        label,
        maps,
        target=class_index(target, "target"),
        prototypes=known,
        beta=number(beta, "beta", 0, 1),
        tau=number(tau, "tau", 0, above=True),
        theta=number(theta, "theta", 0, 1),
        lambda_keep=number(lambda_keep, "lambda_keep", -1, 1),
        min_target=number(min_target, "min_target", 0, 1),
        max_target=number(max_target, "max_target", 0, 1),
    )
    local = {index: alike(vector, kept) for index, vector in done.local.items()}
    return dataclasses.replace(done, label=alike(done.label, kept), local=local)


def refine_boundary(
    label: Array,
    masks: Array | Callable[[Array], tuple[Array, Array]],
    ious: Array | None = None,
    *,
    band_width: int = 3,
    min_agreement: float = 0.5,
    margin: int = 1,
) -> refinement.Refined:
    """SABR: SAM redraws the outline of every component of a label, inside a band only; all else is locked.

    Args:
        label: (H, W), for example from `relabel`.
        masks: SAM itself, a function of box hints (R, 4), XYXY in pixels, that returns masks bool (R, H, W) and predicted IoUs
            (R,); or its masks, one per component in the order of `syn4seg.labeling.components.components(label)`.
        ious: SAM's predicted IoUs (R,), with masks that are given: which of two that overlap wins.
        band_width: pixels on each side of a change of label in which the outline may move.
        min_agreement: least IoU of a mask and its component; other masks are ignored.
        margin: pixels by which a hint is wider than its component.

    Returns:
        `label` uint8 (H, W); `accepted` bool (R,) and `agreement` float32 (R,) of the masks; `changed`, number of pixels.

    Raises:
        ValueError: see the module.

    Source: SABR in docs/method.md; the same bits as `syn4seg.labeling.refinement.refine_boundary`.
    """
    before = label_map(label, "label")
    found = components(before)
    if callable(masks):
        hints = refinement.hint_boxes(found, number(margin, "margin", 0), before.shape)
        masks, ious = masks(alike(hints, label)) if len(hints) else (np.empty((0, *before.shape), bool), np.empty(0, np.float32))
    count = len(found.area)
    stack = mask_stack(masks, "masks", count, before.shape)
    if count and ious is None:
        raise ValueError("ious is missing; expected SAM's predicted IoU of every mask, or equal numbers if there is none")
    predicted = real(ious, "ious", (count,)) if count else np.empty(0, np.float32)
    done = refinement.refine_boundary(
        before,
        found,
        stack,
        predicted,
        band_width=round(number(band_width, "band_width", 0)),
        min_agreement=number(min_agreement, "min_agreement", 0, 1),
    )
    arrays = {name: alike(getattr(done, name), label) for name in ("label", "accepted", "agreement")}
    return dataclasses.replace(done, **arrays)


def _prototypes(given: Mapping[int, Array], depth: int) -> dict[int, np.ndarray]:
    if not isinstance(given, Mapping):
        raise ValueError(f"prototypes is a {type(given).__name__}; expected class index -> vector, e.g. dict(enumerate(rows))")
    indices = [BACKGROUND if k == BACKGROUND else class_index(k, "a key of prototypes") for k in given]
    return {k: real(v, f"prototypes[{k}]", (depth,)) for k, v in zip(indices, given.values(), strict=True)}
