"""Networks by which APF and APR may compare images, other than the segmenter (`labeling.features`, method.md 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from syn4seg.errors import UserError
from syn4seg.segmenter.backbones import Backbone, check_backbone, load_backbone, may_be_skeleton
from syn4seg.segmenter.pretrained import empty_pretrained


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A frozen backbone without any training of ours: an image in, a map of raw features out.

    The map covers the image and nothing else: there is no canvas around it, since a transformer would look at the padding too.

    Attributes:
        backbone: frozen, in eval mode, on `device`.
        size: pixels to which an image's long side is brought.
    """

    backbone: Backbone
    size: int
    device: torch.device

    @staticmethod
    def load(name: str, weights: str | None, size: int, device: torch.device | str) -> FeatureNetwork:
        """Load a network; `name` as for `load_backbone`, `weights` too, but None where it has its own.

        Raises:
            UserError: as `load_backbone`.
        """
        backbone = load_backbone(name, weights or "none")
        backbone.module.requires_grad_(False).eval().to(device)
        return FeatureNetwork(backbone, size, torch.device(device))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the map float32 (D, r, c) of an RGB image uint8 (H, W, 3)."""
        fitted = fit(image, self.size, self.backbone.stride)
        pixels = torch.tensor(fitted, device=self.device).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (self.backbone.mean, self.backbone.std))
        with torch.no_grad():
            return self.backbone.module(((pixels - mean) / std)[None])[0].float().cpu().numpy()


def fit(image: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Return an image uint8 (H, W, 3) with its long side brought to `size`, each side to the nearest multiple of the stride.

    So no cell of the map hangs over the image's edge; the shape changes by half a cell at most. Shrunk by area, enlarged linearly.
    """
    rows, columns = fitted_shape(image.shape, size, stride)
    if image.shape[:2] == (rows, columns):
        return image
    how = cv2.INTER_AREA if rows * columns < image.shape[0] * image.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(image, (columns, rows), interpolation=how)


def fitted_shape(shape: Sequence[int], size: int, stride: int) -> tuple[int, int]:
    """Return the rows and columns to which `fit` brings an image of `shape` (H, W, ...)."""
    rows, columns = (max(1, round(n * size / max(shape[:2]) / stride)) * stride for n in shape[:2])
    return rows, columns


def check_network(name: str, weights: str | None, size: int) -> None:
    """Check what can be checked of `FeatureNetwork.load` before it is called, see `check_backbone`.

    Raises:
        UserError: it would fail, or the network would have random weights.
    """
    if may_be_skeleton(name) and weights is None:
        raise UserError(
            "its weights would be random numbers; set labeling.feature_weights to a file, or to 'imagenet' (EfficientNet-Lite, "
            "timm), 'imagenet-v1' or 'imagenet-v2' (ResNets)"
        )
    check_backbone(name, weights or "none", size, "labeling.feature_size")


def empty_network(name: str) -> Backbone:
    """Return a network on the meta device, without its weights: of a transformers one the configuration alone is read.

    Raises:
        UserError: as `load_backbone`.
    """
    if may_be_skeleton(name) or ":" in name:
        with torch.device("meta"):
            backbone = load_backbone(name)
        backbone.module.to("meta").eval()
        return backbone
    return Backbone(*empty_pretrained(name))
