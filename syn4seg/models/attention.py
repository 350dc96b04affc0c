"""SAM's attention with relative positions as one fused call, for GPUs: the positions become columns of queries and keys.

segment-anything writes the whole matrix of logits to memory to add q . R_h[row] + q . R_w[column] to it. The same sum is a longer
scalar product: [scale q, q R_h, q R_w] . [k, one-hot(row), one-hot(column)]. So no matrix is ever written, and the kernel that
PyTorch has for plain attention does all of it. On a CPU it is no faster, and its rounding differs: there the original stays.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedAttention(nn.Module):
    """Takes the place of an `Attention` of segment-anything's image encoder and gives the same, up to rounding.

    Args:
        original: the attention, with relative positions.
        side: height and width of the maps that it is given, in patches.
    """

    def __init__(self, original: Any, side: int):
        super().__init__()
        self.heads, self.scale = original.num_heads, original.scale
        self.qkv: nn.Module = original.qkv
        self.proj: nn.Module = original.proj
        self.rows: Tensor
        self.columns: Tensor
        self.place: Tensor
        rows, columns = (_by_offset(table, side) for table in (original.rel_pos_h, original.rel_pos_w))
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        place = torch.cat([F.one_hot(y.flatten(), side), F.one_hot(x.flatten(), side)], 1)
        width = rows.shape[-1] + 2 * side
        self.missing = -width % 8  # kernels want a multiple of 8
        for name, values in (("rows", rows), ("columns", columns), ("place", F.pad(place, (0, self.missing)).to(rows))):
            self.register_buffer(name, values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over x (B, H, W, C); the shape stays."""
        batch, height, width, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        grid = q.reshape(batch * self.heads, height, width, -1)
        near = [
            torch.einsum("bhwc,hkc->bhwk", grid, self.rows.to(q.dtype)),
            torch.einsum("bhwc,wkc->bhwk", grid, self.columns.to(q.dtype)),
        ]
        offsets = F.pad(torch.cat(near, -1).reshape(batch, self.heads, height * width, -1), (0, self.missing))
        queries = torch.cat([q * self.scale, offsets], -1)
        keys = torch.cat([k, self.place.to(q.dtype).expand(batch, self.heads, -1, -1)], -1)
        values = F.pad(v, (0, queries.shape[-1] - v.shape[-1]))
        seen = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., : v.shape[-1]]
        return self.proj(seen.transpose(1, 2).reshape(batch, height, width, -1))


def _by_offset(table: Tensor, side: int) -> Tensor:
    """Return embeddings (side, side, C) by query and key place, from those by offset, (2 side - 1, C) or stretched to that."""
    size = 2 * side - 1
    if len(table) != size:
        table = F.interpolate(table.detach().T[None], size=size, mode="linear")[0].T
    place = torch.arange(side, device=table.device)
    return table.detach()[place[:, None] - place[None] + side - 1]


def fuse_attention(encoder: Any) -> None:
    """Replace every attention of a segment-anything image encoder, in place."""
    for block in encoder.blocks:
        block.attn = FusedAttention(block.attn, block.window_size or encoder.img_size // encoder.patch_embed.proj.stride[0])
