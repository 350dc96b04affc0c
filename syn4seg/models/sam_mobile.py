"""MobileSAM: SAM's prompt encoder and mask decoder behind TinyViT-5M, from the file in segment-anything's format.

The encoder is timm's TinyViT (extra `timm`) with SAM's neck. MobileSAM differs from it in one thing: its last stage does not
halve the map, so a cell is 16 pixels wide, as in every SAM. Its file calls layers by other names, which are translated here.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.models.sam_modules import LayerNorm2d, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

MARK = "image_encoder.patch_embed.seq.0.c.weight"
"""A tensor that is in every file of MobileSAM and of no other SAM."""
SIDE, CELL, WIDTH = 1024, 16, 256
"""Pixels of the input and of a cell of the embedding, and channels."""
TINY_VIT = {"embed_dims": (64, 128, 160, 320), "depths": (2, 2, 6, 2), "num_heads": (2, 4, 5, 10), "window_sizes": (7, 7, 14, 7)}
"""TinyViT-5M."""
UNUSED = re.compile(r"image_encoder\.(norm_head|head)\.|.*\.attention_bias_idxs$")
"""The classifier that TinyViT was trained with, and a table that the network makes itself."""


class TinyEncoder(nn.Module):
    """Images float32 (N, 3, side, side), normalised, to embeddings (N, 256, side / 16, side / 16).

    Args:
        side: pixels, a multiple of 16.

    Attributes:
        window: cells that attend to one another at most, and the heads with which they do.
    """

    window = (14 * 14, 5)

    def __init__(self, side: int = SIDE):
        super().__init__()
        self.img_size = side
        body: Any = _tiny_vit()(num_classes=0, drop_path_rate=0.0, **TINY_VIT)
        body.stages[3].downsample.conv2.conv.stride = (1, 1)
        body.head = nn.Identity()
        self.body = body
        self.neck = neck_of(body.num_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.body.forward_features(x))


def neck_of(channels: int) -> nn.Sequential:
    """Return SAM's neck: maps (N, channels, h, w) to embeddings (N, 256, h, w)."""
    first, second = nn.Conv2d(channels, WIDTH, 1, bias=False), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
    return nn.Sequential(first, LayerNorm2d(WIDTH), second, LayerNorm2d(WIDTH))


def sam_behind(encoder: nn.Module, side: int) -> Sam:
    """Return SAM's untrained prompt encoder and mask decoder behind an encoder of images of `side` pixels, 16 a cell."""
    cells = side // CELL
    prompts = PromptEncoder(WIDTH, (cells, cells), (side, side), 16)
    decoder = MaskDecoder(transformer_dim=WIDTH, transformer=TwoWayTransformer(2, WIDTH, 8, 2048))
    return Sam(encoder, prompts, decoder)  # pyright: ignore[reportArgumentType]


def build_mobile_sam(side: int = SIDE) -> Sam:
    """Return an untrained MobileSAM.

    Args:
        side: of its input in pixels; the published one has 1024.

    Raises:
        UserError: timm is not installed.
    """
    return sam_behind(TinyEncoder(side), side)


def translated(state: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of a MobileSAM file by the names of `build_mobile_sam`, without those that it does not use."""
    return {_name(name): tensor for name, tensor in state.items() if not UNUSED.match(name)}


def _name(name: str) -> str:
    if not name.startswith("image_encoder.") or name.startswith("image_encoder.neck."):
        return name
    name = re.sub(r"^image_encoder\.patch_embed\.seq\.([02])\.", lambda m: f"patch_embed.conv{1 + int(m[1]) // 2}.", name)
    name = re.sub(r"^image_encoder\.layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", name)
    name = re.sub(r"^image_encoder\.layers\.", "stages.", name)
    return "image_encoder.body." + name.replace(".c.weight", ".conv.weight")


def _tiny_vit() -> Any:
    try:
        from timm.models.tiny_vit import TinyVit
    except ImportError:
        raise UserError(
            "MobileSAM needs timm, which is not installed: `pip install 'syn4seg-ray[timm]'` (or `pip install timm`)"
        ) from None
    return TinyVit
