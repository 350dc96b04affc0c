"""APR, adaptive pseudo-label relabeling: free pixels take the class of the prototype they resemble most, if clearly.

A class's prototype is adapted to the image: a blend of the global one (support set) and the local one (kept regions).
Kept pixels never change. Background is always a candidate: with foreground alone the argmax would make every free pixel
foreground.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from syn4seg.labeling.prototypes import blend, cell_size, corner_interpolation, label_values, local_prototypes
from syn4seg.schema import BACKGROUND, UNLABELED


@dataclass(frozen=True)
class Relabeled:
    """What relabeling made of one image.

    Attributes:
        label: uint8 (H, W); 255 where no class was clear enough.
        similarity_best: the highest similarity of a feature cell to the target's adaptive prototype.
        local: class index -> local prototype (D,) float32, for the candidates that have one in this image.
        reason: "" or why the image is rejected: "no_evidence", "target_too_small", "target_too_large".
        changed: number of free pixels that took a class.
    """

    label: np.ndarray
    similarity_best: float
    local: dict[int, np.ndarray]
    reason: str
    changed: int


def relabel(
    kept: np.ndarray,
    features: np.ndarray,
    *,
    target: int,
    prototypes: Mapping[int, np.ndarray],
    beta: float,
    tau: float,
    theta: float,
    lambda_keep: float,
    rivals: Collection[int] = (),
    rival_margin: float = 0.0,
    min_target: float = 0.005,
    max_target: float = 0.95,
    align_corners: bool = False,
) -> Relabeled:
    """Give free pixels a class where one is clear (method.md 3.2, APR).

    Candidates are background, the target and the other classes kept in this image. Cosines are taken on the feature
    grid and upsampled bilinearly ; a free pixel takes the best class iff softmax(cosine / tau) of
    it >= theta, ties going to the lower class index. A class without a kept pixel uses its global prototype alone. The
    local background prototype sees only background pixels farther than one grid cell (chessboard) from everything else,
    free pixels included.

    Args:
        kept: uint8 (H, W) from `filter_regions`, 255 = free.
        features: (D, h, w) float, raw.
        target: class index that the image was made for.
        prototypes: class index -> global prototype, unit (D,): background, target, rivals and every class kept here.
        beta: share of the global prototype, in [0, 1].
        tau: temperature of the softmax, > 0.
        theta: least confidence, in [0, 1].
        lambda_keep: with no kept target pixel, the least `similarity_best` that is evidence of the target.
        rivals: classes that compete for free pixels but are never given: a pixel that resembles one of them most stays free. These
            are the other novel classes, which the image may show though it was not made for them.
        rival_margin: subtracted from the rivals' cosines: the image was made for the target, so a rival needs more evidence.
        min_target: least share of the image that the target covers afterwards.
        max_target: greatest share.
        align_corners: how the network's cells lie on the pixels; cosines are upsampled accordingly.

    Returns:
        `Relabeled`; with reason "no_evidence" the label equals `kept`.

    Raises:
        ValueError: a candidate has no global prototype, or tau is not positive.
    """
    given = {BACKGROUND, target, *label_values(kept)} - {UNLABELED}
    candidates = sorted(given.union(rivals))
    missing = [k for k in candidates if k not in prototypes]
    if missing:
        needed = f"background (0), the target ({target}), every kept class and every rival"
        raise ValueError(f"prototypes lacks {missing}; relabeling needs {needed}")
    if tau <= 0:
        raise ValueError(f"tau is {tau}; expected a temperature above 0, e.g. 0.1")
    local = local_prototypes(features, _drop_background_borders(kept, features.shape[1:]), candidates, align_corners)
    adapted = [blend(prototypes[k], local.get(k, prototypes[k]), beta) for k in candidates]
    similarity = cosines(features, np.stack(adapted))
    best = float(similarity[candidates.index(target)].max())
    if target not in local and best < lambda_keep:
        return Relabeled(kept.copy(), best, local, "no_evidence", 0)
    label = kept.copy()
    similarity[[candidates.index(k) for k in set(rivals) - given]] -= np.float32(rival_margin)
    changed = _fill_free_pixels(label, similarity, candidates, given, tau, theta, align_corners)
    return Relabeled(label, best, local, judge_target(label, target, min_target, max_target), changed)


def judge_target(label: np.ndarray, target: int, min_target: float, max_target: float) -> str:
    """Return why a label uint8 (H, W) is rejected, "target_too_small" or "target_too_large", by the target's share of it; or ""."""
    share = np.count_nonzero(label == target) / label.size
    return "target_too_small" if share < min_target else "target_too_large" if share > max_target else ""


def cosines(features: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Return the cosine of every cell's feature with every prototype.

    Args:
        features: (D, h, w) float, raw.
        prototypes: (C, D) float32 unit vectors.

    Returns:
        (C, h, w) float32 in [-1, 1]; 0 where a feature is zero.
    """
    depth, h, w = features.shape
    flat = np.asarray(features, np.float32).reshape(depth, h * w)
    length = np.sqrt(np.einsum("dn,dn->n", flat, flat))
    inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    return (prototypes @ flat * inverse).reshape(-1, h, w)


def _drop_background_borders(kept: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the kept label without the background within one grid cell of anything else."""
    side = 2 * cell_size(kept.shape, grid) + 1
    background = (kept == BACKGROUND).view(np.uint8)
    far = cv2.erode(background, np.ones((side, side), np.uint8))
    return kept | (background > far) * np.uint8(UNLABELED)


def _at_pixels(planes: np.ndarray, shape: tuple[int, int], chosen: np.ndarray, align_corners: bool) -> list[np.ndarray]:
    """Return new arrays float32 (n,): each plane of (C, h, w), brought to `shape` bilinearly, at the `chosen` pixels int64 (n,)."""
    if align_corners:
        rows, columns = (corner_interpolation(n, size) for n, size in zip(planes.shape[1:], shape, strict=True))
        return [np.take(plane, chosen) for plane in rows @ planes @ columns.T]
    full = np.empty(shape, np.float32)
    return [np.take(cv2.resize(plane, shape[::-1], full, interpolation=cv2.INTER_LINEAR), chosen) for plane in planes]


def _fill_free_pixels(
    label: np.ndarray, similarity: np.ndarray, candidates: list[int], given: set[int], tau: float, theta: float, align_corners: bool
) -> int:
    """Write the clear classes that may be `given` into the free pixels of `label`, in place; return how many pixels took one."""
    free = np.flatnonzero(label.ravel() == UNLABELED)
    planes = _at_pixels(similarity, label.shape, free, align_corners)
    winner, best = np.full(len(free), candidates[0], np.uint8), planes[0].copy()
    for index, plane in zip(candidates[1:], planes[1:], strict=True):
        better = plane > best
        winner[better] = index
        np.maximum(best, plane, out=best)
    for plane in planes:  # in place: a new array costs as much as the arithmetic on it
        plane -= best
        plane /= np.float32(tau)
        np.exp(plane, out=plane)
    odds = sum(planes[1:], planes[0])
    may_be_given = np.zeros(256, bool)
    may_be_given[list(given)] = True
    clear = (1.0 / odds >= theta) & may_be_given[winner]
    label.ravel()[free[clear]] = winner[clear]
    return int(np.count_nonzero(clear))
