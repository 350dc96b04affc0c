"""The fused attention of SAM's image encoder against segment-anything's own."""

from __future__ import annotations

import copy

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from syn4seg.models.attention import FusedAttention, fuse_attention
from syn4seg.models.sam import load_sam


def attention(side: int, heads: int = 3, width: int = 24, table: int | None = None) -> Attention:
    torch.manual_seed(side)
    made = Attention(width, heads, use_rel_pos=True, input_size=(table or side, table or side)).eval()
    for name, values in made.named_parameters():
        values.data.normal_(0, 1 if "rel_pos" in name else 0.2)
    return made


@pytest.mark.parametrize(("side", "table"), [(14, None), (5, None), (8, None), (6, 9), (9, 4)])
def test_fused_attention_equals_the_original(side, table):
    original = attention(side, table=table)
    x = torch.randn(2, side, side, 24)
    with torch.no_grad():
        torch.testing.assert_close(FusedAttention(original, side)(x), original(x), rtol=1e-4, atol=1e-5)


def test_relative_positions_count_in_both_directions():
    original = attention(6)
    x = torch.randn(1, 6, 6, 24)
    with torch.no_grad():
        whole = FusedAttention(original, 6)(x)
        for table in (original.rel_pos_h, original.rel_pos_w):
            kept = table.data.clone()
            table.data.zero_()
            assert (FusedAttention(original, 6)(x) - whole).abs().max() > 0.01
            table.data.copy_(kept)


def test_a_fused_encoder_gives_the_embeddings_of_the_original_and_keeps_its_weights():
    sam = load_sam("embedded-sam")
    fused = copy.deepcopy(sam)
    fuse_attention(fused.image_encoder)
    side = sam.image_encoder.img_size
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(fused.image_encoder(x), sam.image_encoder(x), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in fused.parameters()) <= sum(p.numel() for p in sam.parameters())
