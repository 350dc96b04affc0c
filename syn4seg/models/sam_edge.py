"""EdgeSAM: SAM's prompt encoder and mask decoder behind RepViT-M1, from the file in segment-anything's format.

The encoder is timm's RepViT (extra `timm`). Its last two stages, at 16 and at 32 pixels a cell, are brought to 256 channels and
added, the coarser one enlarged; then comes SAM's neck. The finer one ends with the block that timm counts to the next stage's
downsampling. The file calls layers by other names, which are translated here.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from syn4seg.errors import UserError
from syn4seg.models.sam_mobile import SIDE, WIDTH, neck_of, sam_behind
from syn4seg.models.sam_modules import Sam

MARK = "image_encoder.fuse_stage2.weight"
"""A tensor that is in every file of EdgeSAM and of no other SAM."""
DEPTHS = (2, 2, 14, 2)
"""Blocks of the stages, besides those that stand before and inside a downsampling."""
REPVIT = {"embed_dim": (48, 96, 192, 384), "depth": DEPTHS, "legacy": True, "num_classes": 0}
"""RepViT-M1."""


class EdgeEncoder(nn.Module):
    """Images float32 (N, 3, side, side), normalised, to embeddings (N, 256, side / 16, side / 16).

    Args:
        side: pixels, a multiple of 32.

    Attributes:
        window: cells that attend to one another and the heads with which they do: none.
    """

    window = (0, 0)

    def __init__(self, side: int = SIDE):
        super().__init__()
        self.img_size = side
        self.body: Any = _repvit()(**REPVIT)
        fine, coarse = self.body.embed_dim[2:]
        self.fine, self.coarse = (nn.Conv2d(width, WIDTH, 1, bias=False) for width in (fine, coarse))
        self.neck = neck_of(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        *first, last = self.body.stages
        x = self.body.stem(x)
        for stage in first:
            x = stage(x)
        step = last.downsample
        fine = step.pre_block(x)
        halved = step.channel_downsample(step.spatial_downsample(fine))
        coarse = self.coarse(last.blocks(halved + step.ffn(halved)))
        return self.neck(self.fine(fine) + interpolate(coarse, scale_factor=2, mode="bicubic"))


def build_edge_sam(side: int = SIDE) -> Sam:
    """Return an untrained EdgeSAM.

    Args:
        side: of its input in pixels; the published one has 1024.

    Raises:
        UserError: timm is not installed.
    """
    return sam_behind(EdgeEncoder(side), side)


def translated(state: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of an EdgeSAM file by the names of `build_edge_sam`."""
    return {_name(name): tensor for name, tensor in state.items()}


def _name(name: str) -> str:
    name = re.sub(r"^image_encoder\.fuse_stage2\.", "image_encoder.fine.", name)
    name = re.sub(r"^image_encoder\.fuse_stage3\.op_list\.0\.", "image_encoder.coarse.", name)
    found = re.match(r"image_encoder\.features\.(\d+)\.(.*)", name)
    if found is None or int(found[1]) >= len(PLACES):
        return name
    place, part = PLACES[int(found[1])], found[2]
    if place == "stem":
        part = re.sub(r"^([02])\.", lambda m: f"conv{1 + int(m[1]) // 2}.", part)
    elif place.endswith(".downsample"):
        part = part.replace("token_mixer.0.", "spatial_downsample.").replace("token_mixer.2.", "channel_downsample.")
        part = part.replace("channel_mixer.m.0.", "ffn.conv1.").replace("channel_mixer.m.2.", "ffn.conv2.")
    else:
        part = part.replace("token_mixer.0.", "token_mixer.").replace("token_mixer.1.", "se.")
        part = part.replace("channel_mixer.m.0.", "channel_mixer.conv1.").replace("channel_mixer.m.2.", "channel_mixer.conv2.")
    return f"image_encoder.body.{place}.{part}"


def _places() -> list[str]:
    """Return where timm has each of the layers that the file numbers."""
    places = ["stem"]
    for stage, depth in enumerate(DEPTHS):
        if stage:
            places += [f"stages.{stage}.downsample.pre_block", f"stages.{stage}.downsample"]
        places += [f"stages.{stage}.blocks.{block}" for block in range(depth)]
    return places


PLACES = _places()
"""By number in the file's `image_encoder.features`: the name in timm's network."""


def _repvit() -> Any:
    try:
        from timm.models.repvit import RepVit
    except ImportError:
        raise UserError(
            "EdgeSAM needs timm, which is not installed: `pip install 'syn4seg-ray[timm]'` (or `pip install timm`)"
        ) from None
    return RepVit
