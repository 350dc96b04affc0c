"""SABR, SAM-based boundary refinement: SAM redraws the outline of each component, and nothing but the outline.

Only the free region (a band around every change of label, and unlabeled pixels) may change; all else is locked, bit by
bit. Where the paper is silent, which pixels SAM wins and which it gives back to background is our decision.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from syn4seg.labeling.components import Components
from syn4seg.schema import BACKGROUND, UNLABELED

MARGIN = 8
"""Pixels around a component's box within which its SAM mask is looked for first."""


@dataclass(frozen=True)
class Refined:
    """What SAM changed in one image.

    Attributes:
        label: uint8 (H, W).
        accepted: bool (R,), whether each component's SAM mask agreed with it well enough to count.
        agreement: float32 (R,), IoU of SAM mask and component.
        changed: number of pixels that differ from the label before.
    """

    label: np.ndarray
    accepted: np.ndarray
    agreement: np.ndarray
    changed: int


def hint_boxes(components: Components, margin: float, shape: tuple[int, int]) -> np.ndarray:
    """Return SAM's box hints: each component's tight box, wider by a margin on all sides and clipped to the image.

    Args:
        components: of the label.
        margin: pixels.
        shape: (H, W) of the image.

    Returns:
        float32 (R, 4), XYXY in pixels.
    """
    height, width = shape
    wider = components.box + np.array((-margin, -margin, margin, margin), np.float32)
    return np.clip(wider, 0, np.array((width, height, width, height), np.float32))


def hint_points(components: Components) -> np.ndarray:
    """Return SAM's point hints: of each component the pixel that is deepest inside it (the first such, row by row).

    Beyond the frame is outside, and so are other components.

    Returns:
        float32 (R, 2), XY pixel indices.
    """
    points = np.zeros((len(components.area), 2), np.float32)
    for row, (x0, y0, x1, y1) in enumerate(components.box.astype(int)):
        inside = np.pad((components.map[y0:y1, x0:x1] == row + 1).astype(np.uint8), 1)
        y, x = np.unravel_index(np.argmax(cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)), inside.shape)
        points[row] = x0 + x - 1, y0 + y - 1
    return points


def component_masks(components: Components) -> np.ndarray:
    """Return the components one by one, bool (R, H, W)."""
    return components.map[None] == np.arange(1, len(components.area) + 1)[:, None, None]


def boundary_band(label: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels within `width` pixels (chessboard distance) of a pixel with another label, bool (H, W).

    Unlabeled counts as a label of its own here, so labels are also redrawn where they border on it; beyond the frame
    there is nothing. Equals "the square window holds two different labels", which dilation and erosion decide.

    Args:
        label: uint8 (H, W).
        width: pixels, >= 0 (0 gives an empty band).
    """
    window = np.ones((2 * width + 1,) * 2, np.uint8)
    return cv2.dilate(label, window) != cv2.erode(label, window)


def refine_boundary(
    label: np.ndarray, components: Components, sam_masks: np.ndarray, sam_ious: np.ndarray, *, band_width: int, min_agreement: float
) -> Refined:
    """Redraw the boundaries of a label with one SAM mask per component (method.md 4).

    A mask is accepted iff its IoU with its component is >= min_agreement; the others are ignored. In the free region:

    1. a pixel inside accepted masks takes the class of the one with the highest predicted IoU (ties: the lower class);
    2. a pixel inside none, whose own component's mask was accepted, is given back: to background, or to unlabeled where
       another foreground class of `label` lies within `band_width` of it (it may be that one's);
    3. every other pixel stays, among them those of a component whose mask was ignored.

    Args:
        label: uint8 (H, W).
        components: `find_components(label)`.
        sam_masks: bool (R, H, W), SAM's foreground per component.
        sam_ious: float (R,), SAM's own predicted IoU.
        band_width: pixels, see `boundary_band`.
        min_agreement: in [0, 1].

    Raises:
        ValueError: there is not one mask and one predicted IoU of the right size per component.
    """
    count = len(components.area)
    if sam_masks.shape != (count, *label.shape) or sam_ious.shape != (count,):
        raise ValueError(
            f"sam_masks {sam_masks.shape} and sam_ious {sam_ious.shape} do not fit {count} components of a label "
            f"{label.shape}; expected {(count, *label.shape)} and {(count,)}: pass the components that gave the hints"
        )
    frames, areas = _frames(components.box, sam_masks)
    agreement, withdrawn = _agreement(components, sam_masks, areas, min_agreement)
    accepted = agreement >= min_agreement
    claimed = _claimed_classes(components.class_index, sam_masks, frames, sam_ious, accepted)
    free = boundary_band(label, band_width) | (label == UNLABELED)
    won, given_back = free & (claimed > 0), free & withdrawn & (claimed == 0)
    refined = cv2.copyTo(claimed, won.view(np.uint8), label.copy())
    left = _two_classes_near(label, band_width).view(np.uint8) * np.uint8(UNLABELED)  # BACKGROUND elsewhere
    refined = cv2.copyTo(left, given_back.view(np.uint8), refined)
    return Refined(refined, accepted, agreement, int(np.count_nonzero(refined != label)))


def _frames(boxes: np.ndarray, sam_masks: np.ndarray) -> tuple[list[tuple[slice, slice]], np.ndarray]:
    """Return for each mask a window that holds all of it, and its pixels int64 (R,).

    Each mask is read once: the window is its component's box and a margin, unless that misses pixels of the mask.
    """
    height, width = sam_masks.shape[1:]
    frames, areas = [], np.zeros(len(boxes), np.int64)
    near = np.clip(boxes.astype(int) + (-MARGIN, -MARGIN, MARGIN, MARGIN), 0, (width, height, width, height))
    for row, (mask, (x0, y0, x1, y1)) in enumerate(zip(sam_masks.view(np.uint8), near.tolist(), strict=True)):
        areas[row] = area = int(cv2.sumElems(mask)[0])  # a quarter faster than countNonZero
        frame = slice(y0, y1), slice(x0, x1)
        if cv2.countNonZero(mask[frame]) < area:
            x, y, columns, rows = cv2.boundingRect(mask)
            frame = slice(y, y + rows), slice(x, x + columns)
        frames.append(frame)
    return frames, areas


def _agreement(components: Components, sam_masks: np.ndarray, areas: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU float32 (R,) of mask and component, and bool (H, W), the component pixels that an accepted mask leaves out."""
    agreement = np.zeros(len(components.area), np.float32)
    withdrawn = np.zeros(components.map.shape, bool)
    union = (components.area + areas).tolist()
    for row, (x0, y0, x1, y1) in enumerate(components.box.astype(int).tolist()):
        window = slice(y0, y1), slice(x0, x1)
        inside = components.map[window] == row + 1
        both = inside & sam_masks[row, *window]
        common = np.count_nonzero(both)
        agreement[row] = common / (union[row] - common)
        if agreement[row] >= least:
            withdrawn[window] |= inside ^ both
    return agreement, withdrawn


def _claimed_classes(
    class_index: np.ndarray, sam_masks: np.ndarray, frames: list[tuple[slice, slice]], sam_ious: np.ndarray, accepted: np.ndarray
) -> np.ndarray:
    """Return the class uint8 (H, W) that wins each pixel among the accepted masks, 0 for none: the strongest is painted last."""
    claimed = np.zeros(sam_masks.shape[1:], np.uint8)
    classes = class_index.astype(np.uint8)
    for row in np.lexsort((-class_index, sam_ious)).tolist():
        if accepted[row]:
            np.copyto(claimed[frames[row]], classes[row], where=sam_masks[row, *frames[row]])
    return claimed


def _two_classes_near(label: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels with two different foreground classes within `width` (chessboard), bool (H, W)."""
    window = np.ones((2 * width + 1,) * 2, np.uint8)
    high = label * (label != UNLABELED)  # unlabeled pixels as background
    low = label | (label == BACKGROUND) * np.uint8(UNLABELED)  # background pixels as unlabeled
    high, low = cv2.dilate(high, window), cv2.erode(low, window)
    return (high != low) & (high != BACKGROUND)
