"""What every SAM is told of a component, and the passes that every SAM makes over images."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CERTAIN = 10.0
"""Logit of a pixel that a mask hint holds, and with the other sign of one that it does not hold."""


class Prompts(NamedTuple):
    """Hints as a prompt encoder takes them, on its device; what was not hinted at is None.

    Attributes:
        boxes: float32 (R, 4) XYXY in pixels of the encoder's input.
        points: float32 (R, 2) XY there.
        masks: float32 (R, 1, S, S), logits on the grid of its mask input.
    """

    boxes: Tensor | None
    points: Tensor | None
    masks: Tensor | None


@dataclass(frozen=True, eq=False)
class Hints:
    """What a SAM is told of the R components of one image; a box or a point for each, at least.

    Attributes:
        boxes: float32 (R, 4) XYXY, pixel indices of the first and last column and row.
        points: float32 (R, 2) XY, the pixel index of a point inside.
        masks: bool (R, H, W), the component itself.
    """

    boxes: np.ndarray | None = None
    points: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        """Return R."""
        return next((len(part) for part in (self.boxes, self.points, self.masks) if part is not None), 0)

    def prompts(
        self, part: slice, size: tuple[int, int], shape: tuple[int, int], grid: tuple[int, int, int], device: torch.device
    ) -> Prompts:
        """Return some of the hints in the frame of an encoder's input.

        Args:
            part: which of the R components.
            size: height and width of the image.
            shape: those of the image inside the encoder's input.
            grid: side of the mask input, and height and width of the image on it.
            device: of the tensors.
        """
        import torch

        scale = np.tile([shape[1] / size[1], shape[0] / size[0]], 2)
        boxes, points, masks = (None if values is None else values[part] for values in (self.boxes, self.points, self.masks))
        return Prompts(
            None if boxes is None else torch.from_numpy((boxes * scale).astype(np.float32)).to(device),
            None if points is None else torch.from_numpy((points * scale[:2]).astype(np.float32)).to(device),
            None if masks is None else torch.from_numpy(coarse_logits(masks, *grid)).to(device),
        )


def coarse_logits(masks: np.ndarray, side: int, height: int, width: int) -> np.ndarray:
    """Return masks bool (R, H, W) as a SAM takes them: logits float32 (R, 1, side, side), 10 inside and -10 outside.

    Between, at the outline, they are what bilinear resizing with antialiasing gives, as SAM 2 of transformers resizes masks.

    Args:
        masks: of one image.
        side: of the grid.
        height: of the image on the grid, whose rest is padding and in no mask; a very flat image has one row all the same.
        width: the same.
    """
    import torch
    from torch.nn.functional import interpolate

    logits = np.full((len(masks), 1, side, side), -CERTAIN, np.float32)
    height, width = max(1, height), max(1, width)
    sure = torch.from_numpy(np.where(masks, np.float32(CERTAIN), np.float32(-CERTAIN)))[:, None]
    logits[:, :, :height, :width] = interpolate(sure, (height, width), mode="bilinear", antialias=True).numpy()
    return logits


class HintedRefiner(abc.ABC):
    """Masks for hints from one SAM.

    Attributes:
        images_per_pass: images in one pass of the encoder. Every pass has exactly that many, the last one padded by repeating, so
            an image's masks depend on this number but not on the other images.
    """

    images_per_pass: int

    def masks(
        self, images: Sequence[np.ndarray] | np.ndarray, hints: Sequence[np.ndarray | Hints]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Segment what each hint means; images without a hint are not encoded.

        Args:
            images: N images uint8 (H_i, W_i, 3) RGB, of any sizes.
            hints: per image those of R_i components; an array is their boxes, float32 (R_i, 4) XYXY, pixel indices of the first
                and last column and row (a tight box of one pixel has x0 = x1). R_i may be 0.

        Returns:
            Per image the masks bool (R_i, H_i, W_i) and their IoU as SAM predicts it, float32 (R_i,).
        """
        results = [(np.zeros((0, *image.shape[:2]), bool), np.zeros(0, np.float32)) for image in images]
        hinted = [i for i, some in enumerate(hints) if len(some)]
        for start in range(0, len(hinted), self.images_per_pass):
            some = hinted[start : start + self.images_per_pass]
            for i, embedding in zip(some, self.embed([images[i] for i in some]), strict=False):
                results[i] = self.decode(embedding, images[i].shape[:2], hints[i])
        return results

    @abc.abstractmethod
    def embed(self, images: list[np.ndarray]) -> Tensor:
        """Return embeddings float32 (images_per_pass, ...): of at most that many images, and of the padding."""

    @abc.abstractmethod
    def decode(self, embedding: Tensor, size: tuple[int, int], hints: np.ndarray | Hints) -> tuple[np.ndarray, np.ndarray]:
        """Return masks bool (R, H, W) and predicted IoU float32 (R,) of the components of one image, from its embedding."""
