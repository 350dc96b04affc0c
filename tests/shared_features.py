"""Tiny networks in the true format, with random weights, for `labeling.features`."""

from __future__ import annotations

from pathlib import Path

import torch


def tiny_dinov2(folder: Path) -> str:
    """Write a DINOv2 of two layers with patches of 8 pixels; return its folder."""
    from transformers import Dinov2Backbone, Dinov2Config

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2Backbone(Dinov2Config(**shape)).save_pretrained(folder)
    return str(folder)


def tiny_clip(folder: Path, *, whole: bool) -> str:
    """Write a CLIP of two layers with patches of 8 pixels, both towers or the image tower alone; return its folder."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = layers | {"image_size": 32, "patch_size": 8}
    text = layers | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    net = CLIPModel(CLIPConfig(vision_config=vision, text_config=text)) if whole else CLIPVisionModel(CLIPVisionConfig(**vision))
    net.save_pretrained(folder)
    return str(folder)
