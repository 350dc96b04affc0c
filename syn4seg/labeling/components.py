"""Connected components of a label map: the regions that filtering judges and that boundary refinement hands to SAM.

OpenCV labels binary images only, so each class is labelled inside its own bounding box; nothing loops over regions.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from syn4seg.schema import BACKGROUND, UNLABELED


@dataclass(frozen=True)
class Components:
    """The R foreground components of a label map, by ascending class.

    Attributes:
        map: int32 (H, W), 0 outside and i + 1 on component i.
        class_index: int32 (R,).
        box: float32 (R, 4), tight XYXY in pixels, inclusive-exclusive.
        area: int32 (R,), pixels.
    """

    map: np.ndarray
    class_index: np.ndarray
    box: np.ndarray
    area: np.ndarray


def components(label: np.ndarray) -> Components:
    """8-connected components of each foreground class (all but background and unlabeled).

    Args:
        label: uint8 (H, W).
    """
    regions = np.zeros(label.shape, np.int32)
    classes, stats, count = [], [np.zeros((0, 5), np.int32)], 0
    present = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    for index in (int(k) for k in present if k not in (BACKGROUND, UNLABELED)):
        mask = (label == index).view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        window = np.s_[y : y + height, x : x + width]
        found, ids, stat, _ = cv2.connectedComponentsWithStats(mask[window], connectivity=8, ltype=cv2.CV_32S)
        np.add(ids, count, out=regions[window], where=ids > 0)
        stats.append(stat[1:] + np.array((x, y, 0, 0, 0), np.int32))
        classes += [index] * (found - 1)
        count += found - 1
    left, top, width, height, area = np.concatenate(stats).T
    box = np.stack([left, top, left + width, top + height], 1).astype(np.float32)
    return Components(regions, np.array(classes, np.int32), box, area)
