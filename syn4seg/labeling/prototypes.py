"""Prototypes: unit vectors that stand for a class, pooled from feature maps by exact area occupancy.

Labels are finer than features (stride 8), so a mask is carried to the feature grid as the share of each cell that it
covers: a one-pixel object still weighs 1/64 of a cell and never vanishes. Pooling a grid with those shares equals
pooling over pixels, each of which carries the feature of the cell it lies in.

Conventions: features float (D, h, w), raw; label maps uint8 (H, W); a region map is int32 (H, W) with 0 for "no region"
and 1..R for the rows of every (R, ...) array that goes with it. `align_corners` is the network's: the first and last cells lie on
the first and last pixels and are half as long (DIaM, POP); otherwise the cells share the length evenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from scipy import ndimage, sparse

from syn4seg.errors import UserError
from syn4seg.schema import BACKGROUND

MANY_REGIONS = 128
"""Regions above which a sparse matrix pools them: each touches few cells, so that a dense one would multiply zeros."""


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Return unit vectors along the last axis, float32; a zero vector stays zero."""
    vectors = np.asarray(vectors, np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def blend(global_: np.ndarray, local: np.ndarray, beta: float) -> np.ndarray:
    """Return the adaptive prototype: beta * global + (1 - beta) * local, renormalised (method.md 3.2, APR).

    Args:
        global_: unit vector (D,) of the class, from the support set.
        local: unit vector (D,) of the class, from one image.
        beta: in [0, 1]; 1 gives the global prototype, 0 the local one.

    Returns:
        Unit vector (D,) float32 (zero where the two cancel).
    """
    return normalize(beta * np.asarray(global_, np.float32) + (1.0 - beta) * np.asarray(local, np.float32))


def _cell_edges(fine: int, coarse: int, align_corners: bool) -> tuple[np.ndarray, int]:
    """Return the edges int64 (coarse + 1,) of the cells along one axis, from 0, and the length of a pixel in their unit."""
    if not align_corners or 1 in (fine, coarse):
        return np.arange(coarse + 1) * fine, coarse
    inner = (2 * np.arange(1, coarse) - 1) * (fine - 1) + coarse - 1  # in the middle between two cells
    return np.concatenate([[0], inner, [2 * fine * (coarse - 1)]]), 2 * (coarse - 1)


def _cell_lengths(fine: int, coarse: int, align_corners: bool) -> np.ndarray:
    """Return the length of each cell along one axis in pixels, float64 (coarse,)."""
    edges, pixel = _cell_edges(fine, coarse, align_corners)
    return np.diff(edges) / pixel


def area_weights(fine: int, coarse: int, align_corners: bool = False) -> np.ndarray:
    """Return the matrix that averages areas along one axis, exact for any ratio.

    Args:
        fine: number of pixels.
        coarse: number of cells on the same length.

    Returns:
        (coarse, fine) float32: the share of each cell covered by each pixel; rows sum to 1.
    """
    edges, pixel = _cell_edges(fine, coarse, align_corners)
    first, last, pixels = edges[:-1, None], edges[1:, None], np.arange(fine)[None] * pixel
    covered = np.minimum(last, pixels + pixel) - np.maximum(first, pixels)
    return (np.maximum(covered, 0) / (last - first)).astype(np.float32)


def corner_interpolation(coarse: int, fine: int) -> np.ndarray:
    """Return linear interpolation along one axis, the corner cells on the corner pixels, as a matrix float32 (fine, coarse)."""
    places = np.arange(fine) * ((coarse - 1) / max(1, fine - 1))
    return np.stack([np.interp(places, np.arange(coarse), row) for row in np.eye(coarse)], 1).astype(np.float32)


def occupancy(masks: np.ndarray, grid: tuple[int, int], align_corners: bool = False) -> np.ndarray:
    """Return the share of each grid cell that a mask covers.

    Args:
        masks: (R, H, W) bool, or float shares in [0, 1].
        grid: (h, w) of the feature map.

    Returns:
        (R, h, w) float32 in [0, 1].
    """
    rows, columns = (area_weights(n, g, align_corners) for n, g in zip(masks.shape[1:], grid, strict=True))
    return rows @ masks.astype(np.float32) @ columns.T


def region_occupancy(regions: np.ndarray, count: int, grid: tuple[int, int], align_corners: bool = False) -> np.ndarray:
    """Return the `occupancy` of every region of a map: counts if the grid divides the image, else box by box.

    Args:
        regions: int32 (H, W), 0 for none and 1..count for the regions, which may be empty.
        count: number R of regions.
        grid: (h, w) of the feature map.

    Returns:
        (count, h, w) float32 in [0, 1].
    """
    (height, width), (h, w) = regions.shape, grid
    if height % h == 0 and width % w == 0 and not align_corners:
        return _count_in_cells(regions.reshape(h, height // h, w, width // w), count)
    rows, columns = area_weights(height, h, align_corners), area_weights(width, w, align_corners)
    share = np.zeros((count, h, w), np.float32)
    for index, box in enumerate(ndimage.find_objects(regions, count)):
        if box is not None:
            inside = (regions[box] == index + 1).astype(np.float32)
            share[index] = rows[:, box[0]] @ inside @ columns[:, box[1]].T
    return share


def _count_in_cells(blocks: np.ndarray, count: int) -> np.ndarray:
    """Return the share float32 (count, h, w) of each cell's pixels that are of each region, of regions int32 (h, rows, w, columns).

    Most cells lie in one region; only the pixels of the others are counted.
    """
    h, tall, w, wide = blocks.shape
    lowest, highest = blocks.min(1).min(-1).ravel(), blocks.max(1).max(-1).ravel()
    mixed = np.flatnonzero(lowest != highest)
    pixels = np.zeros((count + 1, h * w), np.float32)
    pixels[lowest, np.arange(h * w)] = tall * wide
    keys = blocks[mixed // w, :, mixed % w] * np.int64(len(mixed)) + np.arange(len(mixed))[:, None, None]
    pixels[:, mixed] = np.bincount(keys.ravel(), minlength=(count + 1) * len(mixed)).reshape(count + 1, len(mixed))
    return (pixels[1:] * np.float32(1 / (tall * wide))).reshape(count, h, w)


def pool(features: np.ndarray, regions: np.ndarray, count: int, align_corners: bool = False) -> np.ndarray:
    """Return the sum of the raw features over the pixels of each region, the numerator of mu_k and of v(r) (method.md 3.1).

    Of more than `MANY_REGIONS` regions the sums are added in another order, so they differ in the last bits.

    Args:
        features: (D, h, w) float.
        regions: int32 (H, W), 0 for none and 1..count.
        count: number R of regions.

    Returns:
        (count, D) float32, in feature units times pixels; zero for an empty region.

    Raises:
        ValueError: the features are not a (D, h, w) map.
    """
    if features.ndim != 3:
        raise ValueError(f"features have shape {features.shape}; expected one image's map (D, h, w)")
    depth, h, w = features.shape
    flat = np.asarray(features, np.float32).reshape(depth, h * w)
    if count > MANY_REGIONS:
        return _region_cells(regions, count, (h, w), align_corners) @ cv2.transpose(flat)
    share = region_occupancy(regions, count, (h, w), align_corners).reshape(count, h * w)
    if align_corners:
        rows, columns = (_cell_lengths(*n, True) for n in zip(regions.shape, (h, w), strict=True))
        return ((flat * np.outer(rows, columns).astype(np.float32).ravel()) @ share.T).T
    return (flat @ share.T).T * np.float32(regions.size / (h * w))  # faster this way round than share @ flat.T


def _region_cells(regions: np.ndarray, count: int, grid: tuple[int, int], align_corners: bool) -> sparse.csr_array:
    """Return how many pixels of each region lie in each cell, parts of pixels counted, sparse float32 (count, h * w)."""
    inside = np.flatnonzero(regions)
    owners = (np.ones(len(inside), np.float32), (regions.ravel()[inside] - 1, inside))
    sides = [
        sparse.csr_array((area_weights(n, g, align_corners).T * _cell_lengths(n, g, align_corners)).astype(np.float32))
        for n, g in zip(regions.shape, grid, strict=True)
    ]
    return sparse.csr_array(owners, shape=(count, regions.size)) @ sparse.csr_array(sparse.kron(*sides, format="csr"))


def label_values(label: np.ndarray) -> list[int]:
    """Return the values of a label map uint8 (H, W), ascending: from where the label changes along its rows, as it seldom does."""
    flat = label.ravel()
    changed = flat[1:][flat[1:] != flat[:-1]]
    return np.flatnonzero(np.bincount(np.append(changed, flat[:1]), minlength=1)).tolist()


def region_map(label: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Return the region map int32 (H, W) of a label map uint8 (H, W): pixels of `classes[i]` become i + 1, all others 0."""
    table = np.zeros(256, np.int32)
    table[list(classes)] = np.arange(1, len(classes) + 1)
    return cv2.LUT(label, table)


def support_prototypes(
    features: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    classes: Sequence[int],
    names: Sequence[str] | None = None,
    align_corners: bool = False,
) -> np.ndarray:
    """Return global prototypes: mu_k over all pixels of all support images, raw features, then normalised (method.md 3.1).

    Args:
        features: per support image (D, h, w); sizes may differ between images, D may not.
        masks: per support image the label map uint8 (H, W).
        classes: class indices, in the order of the rows.
        names: names of `classes`, for the error alone.

    Returns:
        (len(classes), D) float32 unit vectors.

    Raises:
        UserError: a class has no support pixel.
        ValueError: the lists do not pair up.
    """
    _check_paired(features, masks)
    pairs = zip(features, masks, strict=True)
    sums = np.sum([pool(f, region_map(m, classes), len(classes), align_corners) for f, m in pairs], axis=0)
    for row, index in enumerate(classes):
        if not any((mask == index).any() for mask in masks):
            name = f" ({names[row]})" if names is not None else ""
            raise UserError(
                f"class index {index}{name} has no pixel in the {len(masks)} support masks; expected one at least: "
                "draw another support set, or check the label map of its images"
            )
    return normalize(sums)


def background_prototype(
    features: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    base_predictions: Sequence[np.ndarray] | None = None,
    align_corners: bool = False,
) -> np.ndarray:
    """Return the global background prototype: support pixels labelled 0 that the base model also predicts 0 (our choice).

    Args:
        features: per support image (D, h, w).
        masks: per support image the label map uint8 (H, W).
        base_predictions: per support image the base model's argmax, uint8 (H, W); None trusts the masks alone
            (which label unannotated base objects as background).

    Returns:
        (D,) float32 unit vector.

    Raises:
        UserError: no pixel is left.
        ValueError: the lists do not pair up.
    """
    _check_paired(features, masks)
    agreed = [mask == BACKGROUND for mask in masks]
    if base_predictions is not None:
        agreed = [both & (base == BACKGROUND) for both, base in zip(agreed, base_predictions, strict=True)]
    if not any(mask.any() for mask in agreed):
        raise UserError(
            f"no background pixel in {len(masks)} support masks that the base predictions call background too; "
            "relabeling needs one: add support images, or pass base_predictions=None"
        )
    pairs = zip(features, agreed, strict=True)
    return normalize(np.sum([pool(f, a.astype(np.int32), 1, align_corners)[0] for f, a in pairs], axis=0))


def local_prototypes(
    features: np.ndarray, label: np.ndarray, classes: Sequence[int], align_corners: bool = False
) -> dict[int, np.ndarray]:
    """Return the local prototypes of one image: the unit mean feature of each class's pixels (method.md 3.2, APR).

    Args:
        features: (D, h, w) float.
        label: uint8 (H, W), usually the kept regions.
        classes: class indices to look for.

    Returns:
        Class index -> unit vector (D,) float32, in the order of `classes`; a class without a pixel is left out.
    """
    values = label_values(label)
    present = [k for k in classes if k in values]
    sums = pool(features, region_map(label, present), len(present), align_corners)
    return dict(zip(present, normalize(sums), strict=True))


def cell_size(shape: tuple[int, int], grid: tuple[int, int]) -> int:
    """Return the side of a grid cell in whole pixels, rounded up: the larger of the two axes' strides."""
    return max(math.ceil(n / g) for n, g in zip(shape, grid, strict=True))


def _check_paired(features: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> None:
    if not features or len(features) != len(masks):
        raise ValueError(f"{len(features)} feature maps and {len(masks)} support masks; expected one mask per feature map")
