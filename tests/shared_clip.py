"""Tiny CLIP and SigLIP models of transformers in their true format, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.shared_pipelines import letters
from tools.generator import clip_tokenizer

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = SIZES | {"image_size": 32, "patch_size": 8}


def save_clip(folder: Path) -> transformers.CLIPModel:
    """Write a CLIP model with tokenizer and image processor into a folder, and return it."""
    tokenizer = clip_tokenizer(["a", "photo", "of", "ball", "star", "moon"])
    text = SIZES | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32}
    transformers.CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def save_siglip(folder: Path) -> transformers.SiglipModel:
    """Write a SigLIP model with tokenizer and image processor into a folder, and return it."""
    tokenizer = letters()
    text = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 48, "projection_size": 32, "pad_token_id": 1}
    text |= {"bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model
