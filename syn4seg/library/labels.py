"""Labels of one image at a time: filtering (APF), relabeling (APR), boundary refinement (SABR). They are instantaneous."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.labeling import filtering, refinement, relabeling
from syn4seg.labeling.components import find_components
from syn4seg.library.arrays import check_class_index, check_floats, check_label_map, check_masks, check_number, like_input
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
    lambda_keep: float = 0.3,
    min_region: int = 12,
    confidence: Array | None = None,
    tau_base: float = 0.6,
    tau_background: float = 0.7,
    rivals: Collection[int] = (),
    rival_margin: float = 0.0,
    align_corners: bool = False,
) -> filtering.Filtered:
    """APF: keep the regions of a draft that look like the support set, and free the others.

    Args:
        draft: (H, W), the segmenter's own pseudo-label.
        features: (D, h, w), the segmenter's raw features of the image.
        prototypes: class index -> global prototype (D,); the target's and the rivals' at least.
        target: class that the image was made for.
        novel: all novel classes; those that are not the target become free.
        lambda_keep: least cosine of a kept region's mean feature with the target's prototype.
        min_region: least area of a kept region in pixels.
        confidence: (H, W), the segmenter's probability of its prediction; None trusts base and background predictions.
        tau_base: least confidence of a kept pixel of another class; `tau_background`: of background.
        rivals: classes, with a prototype each, that compete: a region of the target that resembles one of them more is freed.
        rival_margin: by how much more, in cosine.
        align_corners: the network's corner cells lie on the corner pixels.

    Returns:
        `kept` uint8 (H, W), 255 = free; `regions`, the verdict on every region with its similarity.

    Raises:
        ValueError: see the module.

    Source: APF, method.md 3.1; the same bits as `syn4seg.labeling.filtering.filter_regions`.
    """
    label, maps = check_label_map(draft, "draft"), check_floats(features, "features", ("D", "h", "w"))
    confidences = None if confidence is None else check_floats(confidence, "confidence", label.shape)
    result = filtering.filter_regions(
        label,
        maps,
        _prototypes(prototypes, len(maps)),
        target=check_class_index(target, "target"),
        novel=[check_class_index(k, "novel") for k in novel],
        lambda_keep=check_number(lambda_keep, "lambda_keep", -1, 1),
        min_region=round(check_number(min_region, "min_region", 0)),
        confidence=confidences,
        tau_base=check_number(tau_base, "tau_base", 0, 1),
        tau_background=check_number(tau_background, "tau_background", 0, 1),
        rivals=[check_class_index(k, "rivals") for k in rivals],
        rival_margin=check_number(rival_margin, "rival_margin", -1, 1),
        align_corners=align_corners,
    )
    return dataclasses.replace(result, kept=like_input(result.kept, draft))


def relabel(
    kept: Array,
    features: Array,
    *,
    target: int,
    prototypes: Mapping[int, Array],
    beta: float = 0.5,
    tau: float = 0.1,
    theta: float = 0.4,
    lambda_keep: float = 0.3,
    rivals: Collection[int] = (),
    rival_margin: float = 0.0,
    min_target: float = 0.005,
    max_target: float = 0.95,
    align_corners: bool = False,
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
        rivals: classes that compete for free pixels but are never given, with a prototype each: other novel classes.
        rival_margin: subtracted from the rivals' cosines.
        min_target, max_target: share of the image that the target covers afterwards; outside, `reason` says so.
        align_corners: the network's corner cells lie on the corner pixels.

    Returns:
        `label` uint8 (H, W), 255 where nothing was clear; `reason` is empty, or why the image is better left out.

    Raises:
        ValueError: see the module.

    Source: APR, method.md 3.2; the same bits as `syn4seg.labeling.relabeling.relabel`.
    """
    label, maps = check_label_map(kept, "kept"), check_floats(features, "features", ("D", "h", "w"))
    vectors = _prototypes(prototypes, len(maps))
    for index, vector in vectors.items():
        length = float(np.linalg.norm(vector))
        if abs(length - 1) > 1e-3:
            raise ValueError(
                f"prototypes[{index}] has length {length:.4g}; expected 1: divide it by its norm, or make it with "
                "syn4seg.labeling.prototypes.support_prototypes"
            )
    result = relabeling.relabel(
        label,
        maps,
        target=check_class_index(target, "target"),
        prototypes=vectors,
        beta=check_number(beta, "beta", 0, 1),
        tau=check_number(tau, "tau", 0, above=True),
        theta=check_number(theta, "theta", 0, 1),
        lambda_keep=check_number(lambda_keep, "lambda_keep", -1, 1),
        rivals=[check_class_index(k, "rivals") for k in rivals],
        rival_margin=check_number(rival_margin, "rival_margin", -1, 1),
        min_target=check_number(min_target, "min_target", 0, 1),
        max_target=check_number(max_target, "max_target", 0, 1),
        align_corners=align_corners,
    )
    local = {index: like_input(vector, kept) for index, vector in result.local.items()}
    return dataclasses.replace(result, label=like_input(result.label, kept), local=local)


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
            (R,); or its masks, one per component in the order of `syn4seg.labeling.components.find_components(label)`.
        ious: SAM's predicted IoUs (R,), for masks that are passed: which of two that overlap wins.
        band_width: pixels on each side of a change of label in which the outline may move.
        min_agreement: least IoU of a mask and its component; other masks are ignored.
        margin: pixels by which a hint is wider than its component.

    Returns:
        `label` uint8 (H, W); `accepted` bool (R,) and `agreement` float32 (R,) of the masks; `changed`, number of pixels.

    Raises:
        ValueError: see the module.

    Source: SABR, method.md 4; the same bits as `syn4seg.labeling.refinement.refine_boundary`.
    """
    initial = check_label_map(label, "label")
    regions = find_components(initial)
    if callable(masks):
        hints = refinement.hint_boxes(regions, check_number(margin, "margin", 0), initial.shape)
        masks, ious = (
            masks(like_input(hints, label)) if len(hints) else (np.empty((0, *initial.shape), bool), np.empty(0, np.float32))
        )
    count = len(regions.area)
    stack = check_masks(masks, "masks", count, initial.shape)
    if count and ious is None:
        raise ValueError("ious is missing; expected SAM's predicted IoU of every mask, or equal numbers if there is none")
    predicted = check_floats(ious, "ious", (count,)) if count else np.empty(0, np.float32)
    result = refinement.refine_boundary(
        initial,
        regions,
        stack,
        predicted,
        band_width=round(check_number(band_width, "band_width", 0)),
        min_agreement=check_number(min_agreement, "min_agreement", 0, 1),
    )
    arrays = {name: like_input(getattr(result, name), label) for name in ("label", "accepted", "agreement")}
    return dataclasses.replace(result, **arrays)


def _prototypes(prototypes: Mapping[int, Array], depth: int) -> dict[int, np.ndarray]:
    if not isinstance(prototypes, Mapping):
        raise ValueError(f"prototypes is a {type(prototypes).__name__}; expected class index -> vector, e.g. dict(enumerate(rows))")
    indices = [BACKGROUND if k == BACKGROUND else check_class_index(k, "a key of prototypes") for k in prototypes]
    return {k: check_floats(v, f"prototypes[{k}]", (depth,)) for k, v in zip(indices, prototypes.values(), strict=True)}
