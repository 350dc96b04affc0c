"""Boundary masks without a network: GrabCut (Rother et al., SIGGRAPH 2004; OpenCV's) on colours, or none at all.

They stand where SAM stands (`refinement.model=grabcut|none`) and need no weights.
"""

from __future__ import annotations

import cv2
import numpy as np

from syn4seg.labeling.components import Components
from syn4seg.labeling.refinement import component_masks

WITHOUT_WEIGHTS = ("grabcut", "none")
"""Values of `refinement.model` that name no SAM."""
ROUNDS = 3
"""Rounds of fitting colours and cutting."""
SMALLEST = 16
"""Pixels of sure foreground and of background below which colours cannot be fitted; the component stays as it is."""


class ComponentMasks:
    """Each component is its own mask, so that boundary refinement changes nothing: the label without SABR."""

    def masks(self, image: np.ndarray, regions: Components) -> tuple[np.ndarray, np.ndarray]:
        """Return bool (R, H, W), and a quality of 1 each, float32 (R,)."""
        return component_masks(regions), np.ones(len(regions.area), np.float32)


class GrabCut(ComponentMasks):
    """Each component is cut anew by colour, inside a band around its outline.

    Args:
        band_width: pixels on both sides of the outline in which the cut may run, as `refinement.band_width`.
    """

    def __init__(self, band_width: int):
        self.band_width = band_width

    def masks(self, image: np.ndarray, regions: Components) -> tuple[np.ndarray, np.ndarray]:
        """Return masks bool (R, H, W) of an RGB image uint8 (H, W, 3), and as their quality the IoU with the component."""
        masks, quality = super().masks(image, regions)
        reach = 2 * self.band_width + 2
        for row, (x0, y0, x1, y1) in enumerate(regions.box.astype(int)):
            window = np.s_[max(0, y0 - reach) : y1 + reach, max(0, x0 - reach) : x1 + reach]
            before = masks[row][window]
            after = self._cut(np.ascontiguousarray(image[window]), before)
            quality[row] = np.count_nonzero(before & after) / max(1, np.count_nonzero(before | after))
            masks[row][window] = after
        return masks, quality

    def _cut(self, image: np.ndarray, component: np.ndarray) -> np.ndarray:
        square = np.ones((2 * self.band_width + 1,) * 2, np.uint8)
        inside = component.astype(np.uint8)
        sure, near = cv2.erode(inside, square, borderValue=1), cv2.dilate(inside, square)
        trimap = np.where(inside == 1, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        trimap[sure == 1], trimap[near == 0] = cv2.GC_FGD, cv2.GC_BGD
        if np.count_nonzero(trimap == cv2.GC_FGD) < SMALLEST or np.count_nonzero(trimap == cv2.GC_BGD) < SMALLEST:
            return component
        cv2.setRNGSeed(0)  # the colours are clustered from a random start
        cv2.grabCut(image, trimap, None, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
