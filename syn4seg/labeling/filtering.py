"""APF, adaptive pseudo-label filtering: a region of a draft is kept if it looks like the support set, else it is freed.

The paper gives the rule for the target class (similarity to the global prototype >= lambda_keep). What happens to
everything else in the image is our decision: other novel classes are freed, base predictions and background stay where
the segmenter is sure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from syn4seg.errors import UserError
from syn4seg.labeling.components import Components, find_components
from syn4seg.labeling.prototypes import normalize, pool
from syn4seg.schema import BACKGROUND, UNLABELED


@dataclass(frozen=True)
class Region:
    """The verdict of filtering on one region of the draft.

    Attributes:
        class_index: class of the region in the draft.
        area: pixels.
        box: tight XYXY in pixels, inclusive-exclusive.
        similarity: s(r), cosine to the class's global prototype; nan where the class has none.
        kept: whether any pixel survives (base regions are judged pixel by pixel).
        why: "" if kept, else "similarity", "rival", "area", "other_novel" or "confidence"; the first that applies.
    """

    class_index: int
    area: int
    box: tuple[int, int, int, int]
    similarity: float
    kept: bool
    why: str


@dataclass(frozen=True)
class Filtered:
    """The result of APF. `kept`: label uint8 (H, W), 255 on free pixels. `regions`: every region of the draft, by ascending
    class."""

    kept: np.ndarray
    regions: list[Region]


def filter_regions(
    draft: np.ndarray,
    features: np.ndarray,
    prototypes: Mapping[int, np.ndarray],
    *,
    target: int,
    novel: Collection[int],
    lambda_keep: float,
    min_region: int,
    confidence: np.ndarray | None = None,
    tau_base: float = 0.0,
    tau_background: float = 0.0,
    rivals: Collection[int] = (),
    rival_margin: float = 0.0,
    align_corners: bool = False,
) -> Filtered:
    """Keep or free each region of a draft (method.md 3.1, APF).

    Args:
        draft: uint8 (H, W), the segmenter's own pseudo-label; its 255 stays free.
        features: (D, h, w) float, raw.
        prototypes: class index -> global prototype (D,): of the target and the rivals; others only add to the record.
        target: class index that the image was made for; its regions stay iff s(r) >= lambda_keep and area >= min_region.
        novel: all novel class indices; those that are not the target become free.
        lambda_keep: least similarity, in [-1, 1].
        min_region: least area in pixels.
        confidence: (H, W) float, the segmenter's probability of its prediction; None trusts every prediction.
        tau_base: a pixel of a base class stays iff its confidence >= this.
        tau_background: the same for background.
        rivals: classes whose prototypes compete: a region of the target that resembles one of them more than the target is freed.
        rival_margin: by how much more, in cosine.
        align_corners: how the network's cells lie on the pixels, see `prototypes`.

    Raises:
        ValueError: the target or a rival has no prototype, or sizes differ.
    """
    for name, index in [("target", target), *(("rival", k) for k in rivals)]:
        if index not in prototypes:
            raise ValueError(f"prototypes has classes {sorted(prototypes)} but not {name} {index}; add its global prototype")
    if confidence is not None and confidence.shape != draft.shape:
        raise ValueError(f"confidence has shape {confidence.shape}; expected the draft's, {draft.shape}")
    components = find_components(draft)
    others = [k for k in novel if k != target]
    of_target = components.class_index == target
    similarity, beaten = _similarities(components, features, prototypes, of_target, rivals, rival_margin, align_corners)
    why = np.where(of_target & (components.area < min_region), "area", np.full(len(components.area), "", object))
    why[beaten] = "rival"
    why[of_target & ~(similarity >= lambda_keep)] = "similarity"
    why[np.isin(components.class_index, others)] = "other_novel"

    free = np.take(np.concatenate([[False], why != ""]), components.map)
    if confidence is not None:
        least = np.full(256, tau_base, np.float32)
        least[[target, *others, UNLABELED]] = -np.inf
        least[BACKGROUND] = tau_background
        unsure = confidence < cv2.LUT(draft, least)
        free |= unsure
        lost = np.bincount(components.map[unsure], minlength=len(why) + 1)[1:]
        why[(why == "") & (lost == components.area)] = "confidence"
    kept = draft | free * np.uint8(UNLABELED)
    boxes = map(tuple, components.box.astype(int).tolist())
    columns = (components.class_index.tolist(), components.area.tolist(), boxes, similarity.tolist(), why.tolist())
    return Filtered(kept, [Region(k, area, box, s, reason == "", reason) for k, area, box, s, reason in zip(*columns, strict=True)])


def most_similar_cells(features: np.ndarray, prototype: np.ndarray, share: float) -> np.ndarray:
    """Return bool (h, w): the cells of raw features (D, h, w) with the highest cosine to a unit prototype (D,), a `share` of all.

    At least one cell; of equal ones the first by rows.
    """
    depth, h, w = features.shape
    similarity = normalize(features.reshape(depth, h * w).T) @ prototype
    chosen = np.zeros(h * w, bool)
    chosen[np.argsort(-similarity, kind="stable")[: max(1, round(share * h * w))]] = True
    return chosen.reshape(h, w)


def _similarities(
    components: Components,
    features: np.ndarray,
    prototypes: Mapping[int, np.ndarray],
    of_target: np.ndarray,
    rivals: Collection[int],
    rival_margin: float,
    align_corners: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return s(r) float32 (R,), nan for classes without a prototype, and which of the target's regions resemble a rival more."""
    similarity, beaten = np.full(len(components.area), np.nan, np.float32), np.zeros(len(components.area), bool)
    judged = np.flatnonzero(np.isin(components.class_index, list(prototypes)))
    if len(judged):
        regions = components.map
        if len(judged) < len(components.area):
            row = np.zeros(len(components.area) + 1, np.int32)
            row[judged + 1] = np.arange(1, len(judged) + 1)
            regions = np.take(row, regions)
        means = normalize(pool(features, regions, len(judged), align_corners))
        expected = normalize(np.stack([prototypes[int(k)] for k in components.class_index[judged]]))
        similarity[judged] = np.einsum("rd,rd->r", means, expected)
        if rivals:
            nearest = (means @ normalize(np.stack([prototypes[k] for k in rivals])).T).max(1)
            beaten[judged] = of_target[judged] & (nearest - rival_margin > similarity[judged])
    return similarity, beaten


def held_out_similarities(
    features: Sequence[np.ndarray], masks: Sequence[np.ndarray], class_index: int, align_corners: bool = False
) -> np.ndarray:
    """Return the similarity of each support region to a prototype that has not seen it (method.md 3.1, our estimate).

    With several shots that show the class, each region of a shot meets the prototype of the other shots. With one shot,
    each region meets the prototype of the other regions; a single region is first cut into four at the middle of its
    box. One-shot values are optimistic: parts of one object resemble each other more than two objects do, and an object
    inside one feature cell gives exactly 1. If K = 1, pool the values of all novel classes before taking a quantile.

    Args:
        features: per support image (D, h, w) float.
        masks: per support image the label map uint8 (H, W).
        class_index: the class.

    Returns:
        float32 (n,), n >= 1, in order of image and region.

    Raises:
        UserError: the class has no support pixel, or a single region that cannot be cut: nothing can be held out.
    """
    sums, shots = [], []
    for shot, (feature, mask) in enumerate(zip(features, masks, strict=True)):
        components = find_components((mask == class_index).astype(np.uint8))
        sums.append(pool(feature, components.map, len(components.area), align_corners))
        shots += [shot] * len(components.area)
    groups = np.array(shots, int)
    if len(set(shots)) == 1:
        only = shots[0]
        cut = len(shots) == 1
        sums = [_quadrant_sums(features[only], masks[only] == class_index, align_corners) if cut else sums[only]]
        groups = np.arange(len(sums[0]))
    if len(set(groups.tolist())) < 2:
        raise UserError(
            f"class index {class_index} has {len(groups)} support regions and none can be held out; expected two or "
            "more, or one that can be cut: give lambda_keep a number, or draw another support set"
        )
    regions = np.concatenate(sums)
    rest = np.stack([regions[groups != group].sum(0) for group in groups])
    return np.einsum("rd,rd->r", normalize(regions), normalize(rest))


def _quadrant_sums(feature: np.ndarray, mask: np.ndarray, align_corners: bool) -> np.ndarray:
    """Return the feature sums (n, D) of the non-empty quadrants of a mask bool (H, W), cut at the middle of its box."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    lower, right = np.arange(mask.shape[0]) >= y + height / 2, np.arange(mask.shape[1]) >= x + width / 2
    quadrant = np.where(mask, 1 + 2 * lower[:, None] + right, 0).astype(np.int32)
    sums = pool(feature, quadrant, 4, align_corners)
    return sums[np.bincount(quadrant.ravel(), minlength=5)[1:] > 0]
