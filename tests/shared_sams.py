"""Tiny SAMs of transformers in their true formats, with random weights, one asked by name; the files of MobileSAM and EdgeSAM."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH = 16
DECODER = {"hidden_size": WIDTH, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "output_channels": WIDTH,
    "num_pos_feats": WIDTH // 2,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 32,
}
HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "image_size": [64, 64],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 24, 32],
    "num_attention_heads_per_stage": [1, 2, 2, 4],
    "window_size_per_stage": [8, 4, 4, 2],
    "global_attention_blocks": [3],
}
MAPS = [[16, 16], [8, 8], [4, 4]]
HIERA_NECK = {
    "backbone_config": HIERA,
    "backbone_channel_list": [32, 24, 16, 8],
    "backbone_feature_sizes": MAPS,
    "fpn_hidden_size": WIDTH,
}
ROPE_VIT = {
    "model_type": "sam3_vit_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "window_size": 2,
    "global_attn_indexes": [1],
    "pretrain_image_size": 28,
}
ROPE_NECK = {
    "model_type": "sam3_vision_model",
    "backbone_config": ROPE_VIT,
    "fpn_hidden_size": WIDTH,
    "backbone_feature_sizes": MAPS,
}
MEMORY = {
    "memory_attention_hidden_size": WIDTH,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 16,
    "memory_attention_rope_feat_sizes": [4, 4],
    "memory_encoder_hidden_size": WIDTH,
    "memory_encoder_output_channels": 8,
    "mask_downsampler_embed_dim": WIDTH,
    "memory_fuser_embed_dim": WIDTH,
    "memory_fuser_intermediate_dim": 16,
}
"""Of the video models: what one image does not need."""
DETR = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 16, "num_layers": 1}
DETECTOR = {
    "vision_config": ROPE_NECK,
    "text_config": {
        "model_type": "clip_text_model",
        "vocab_size": 99,
        "hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
    },
    "geometry_encoder_config": DETR,
    "detr_encoder_config": DETR,
    "detr_decoder_config": DETR | {"num_queries": 5},
    "mask_decoder_config": {"hidden_size": WIDTH, "num_attention_heads": 2},
}


def _prompts(side: int, patch: int) -> dict[str, Any]:
    return {"hidden_size": WIDTH, "image_size": side, "patch_size": patch}


SAM1 = {"vision_config": VIT, "prompt_encoder_config": _prompts(64, 8), "mask_decoder_config": DECODER}
SAM2 = {"vision_config": HIERA_NECK, "prompt_encoder_config": _prompts(64, 16), "mask_decoder_config": DECODER}
SAM3 = {"vision_config": ROPE_NECK, "prompt_encoder_config": _prompts(56, 14), "mask_decoder_config": DECODER}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sam": ("Sam", SAM1),
    "sam_hq": ("SamHQ", SAM1 | {"mask_decoder_config": DECODER | {"vit_dim": VIT["hidden_size"]}}),
    "sam2": ("Sam2", SAM2),
    "sam2_video": ("Sam2Video", SAM2 | MEMORY | {"image_size": 64}),
    "sam3_tracker": ("Sam3Tracker", SAM3),
    "sam3_video": ("Sam3Video", {"detector_config": DETECTOR, "tracker_config": SAM3 | MEMORY | {"image_size": 56}}),
}
"""`model_type` -> how transformers' classes start, and the configuration."""
LIBRARY = {
    "sam": ("SamModel", "SamImageProcessor", "SamProcessor"),
    "sam_hq": ("SamHQModel", "SamImageProcessor", "SamHQProcessor"),
    "sam2": ("Sam2Model", "Sam2ImageProcessor", "Sam2Processor"),
    "sam2_video": ("Sam2Model", "Sam2ImageProcessor", "Sam2Processor"),
    "sam3_tracker": ("Sam3TrackerModel", "Sam3ImageProcessor", "Sam3TrackerProcessor"),
    "sam3_video": ("Sam3TrackerModel", "Sam3ImageProcessor", "Sam3TrackerProcessor"),
}
"""`model_type` -> transformers' classes that segment one image: the network, its image processor and its processor."""


def saved_sam(folder: Path, kind: str) -> None:
    """Save a network as transformers does, with weights large enough that its masks depend on image and hints."""
    import transformers

    start, options = KINDS[kind]
    config = getattr(transformers, f"{start}Config")(**options)
    torch.manual_seed(0)
    net = getattr(transformers, f"{start}Model")(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1.5 / math.sqrt(max(1, parameter[0].numel())))
    config.architectures = [type(net).__name__]
    config.save_pretrained(folder)
    names = net.state_dict(keep_vars=True)
    tied = {"prompt_encoder.shared_embedding.positional_embedding"} if start in ("Sam", "SamHQ") else set()
    # by the names of the network: save_pretrained of transformers 5.24 writes tracker_model. twice before those of SAM 3
    state = {name: tensor.detach().contiguous() for name, tensor in names.items() if name not in tied}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def saved_named_sam(folder: Path, kind: str, words: list[str], seed: int = 0) -> None:
    """Save a SAM 3 that is asked by name, as it is published, with a tokenizer of some words.

    Args:
        kind: `sam3`, the detector alone, or `sam3_video`, the whole.
    """
    import transformers

    from tools.generator import clip_tokenizer

    tokenizer = clip_tokenizer(words)
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    text = DETECTOR["text_config"] | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    detector = DETECTOR | {"text_config": text}
    whole = {"detector_config": detector, "tracker_config": SAM3 | MEMORY | {"image_size": 56}}
    start, options = ("Sam3", detector) if kind == "sam3" else ("Sam3Video", whole)
    config = getattr(transformers, f"{start}Config")(**options)
    torch.manual_seed(seed)
    net = getattr(transformers, f"{start}Model")(config).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1.5 / math.sqrt(max(1, parameter[0].numel())))
            if "presence_head.layer3.bias" in name:
                parameter.fill_(9.0)  # something is always there
    config.save_pretrained(folder)
    save_file(
        {name: t.detach().contiguous() for name, t in net.state_dict().items()}, folder / "model.safetensors", {"format": "pt"}
    )
    tokenizer.save_pretrained(folder)
    transformers.Sam3ImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder)


def mobile_sam_state(side: int) -> dict[str, Tensor]:
    """Return random tensors by the names and in the shapes of MobileSAM's file, whose batch norms have statistics.

    Args:
        side: of the input in pixels; the published one has 1024.
    """
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    conv = functools.partial(_conv, state)

    def dense(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs) / math.sqrt(inputs)
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.1 * torch.randn(width), 0.1 * torch.randn(width)

    widths, depths, heads, windows = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
    conv("image_encoder.patch_embed.seq.0", 3, 32, 3)
    conv("image_encoder.patch_embed.seq.2", 32, 64, 3)
    for stage, width in enumerate(widths):
        for block in range(depths[stage]):
            name = f"image_encoder.layers.{stage}.blocks.{block}"
            if stage == 0:
                conv(f"{name}.conv1", width, 4 * width, 1)
                conv(f"{name}.conv2", 1, 4 * width, 3)
                conv(f"{name}.conv3", 4 * width, width, 1)
                continue
            norm(f"{name}.attn.norm", width)
            dense(f"{name}.attn.qkv", width, 3 * width)
            dense(f"{name}.attn.proj", width, width)
            state[f"{name}.attn.attention_biases"] = torch.randn(heads[stage], windows[stage] ** 2)
            norm(f"{name}.mlp.norm", width)
            dense(f"{name}.mlp.fc1", width, 4 * width)
            dense(f"{name}.mlp.fc2", 4 * width, width)
            conv(f"{name}.local_conv", 1, width, 3)
        if stage < 3:
            name, wider = f"image_encoder.layers.{stage}.downsample", widths[stage + 1]
            conv(f"{name}.conv1", width, wider, 1)
            conv(f"{name}.conv2", 1, wider, 3)
            conv(f"{name}.conv3", wider, wider, 1)
    norm("image_encoder.norm_head", 320)
    dense("image_encoder.head", 320, 1000)
    state["image_encoder.neck.0.weight"] = torch.randn(256, 320, 1, 1) / math.sqrt(320)
    state["image_encoder.neck.2.weight"] = torch.randn(256, 256, 3, 3) / math.sqrt(256 * 9)
    norm("image_encoder.neck.1", 256)
    norm("image_encoder.neck.3", 256)
    return state | _behind(side)


def _conv(state: dict[str, Tensor], name: str, inputs: int, outputs: int, size: int) -> None:
    """Add a convolution with a batch norm that has statistics."""
    state[f"{name}.c.weight"] = torch.randn(outputs, inputs, size, size) / math.sqrt(inputs * size * size)
    for part, low, high in (("weight", 0.8, 1.2), ("bias", -0.1, 0.1), ("running_mean", -0.1, 0.1), ("running_var", 0.8, 1.2)):
        state[f"{name}.bn.{part}"] = torch.empty(outputs).uniform_(low, high)
    state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)


def _behind(side: int) -> dict[str, Tensor]:
    """Return random tensors of SAM's prompt encoder and mask decoder."""
    from syn4seg.models.sam_modules import MaskDecoder, PromptEncoder, TwoWayTransformer

    rest = {
        "prompt_encoder": PromptEncoder(256, (side // 16,) * 2, (side, side), 16),
        "mask_decoder": MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
    }
    return {f"{name}.{key}": tensor for name, part in rest.items() for key, tensor in part.state_dict().items()}


EDGE_WIDTHS = (48,) * 3 + (96,) * 4 + (192,) * 16 + (384,) * 3
"""Channels of the layers 1 to 26 of EdgeSAM's encoder; the first layer of another width halves the map."""
EDGE_SQUEEZED = {1, 5, 9, 11, 13, 15, 17, 19, 21, 25}
"""Those with squeeze and excitation."""


def edge_sam_state(side: int) -> dict[str, Tensor]:
    """Return random tensors by the names and in the shapes of EdgeSAM's file, as the authors' repository has them.

    Args:
        side: of the input in pixels; the published one has 1024.
    """
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    conv = functools.partial(_conv, state)
    conv("image_encoder.features.0.0", 3, 24, 3)
    conv("image_encoder.features.0.2", 24, 48, 3)
    for number, (before, width) in enumerate(zip((48, *EDGE_WIDTHS), EDGE_WIDTHS, strict=False), 1):
        name = f"image_encoder.features.{number}"
        if before == width:
            conv(f"{name}.token_mixer.0.conv", 1, width, 3)
            conv(f"{name}.token_mixer.0.conv1", 1, width, 1)
        else:
            conv(f"{name}.token_mixer.0", 1, before, 3)
            conv(f"{name}.token_mixer.2", before, width, 1)
        if number in EDGE_SQUEEZED:
            for part, inputs, outputs in (("fc1", width, max(16, width // 4)), ("fc2", max(16, width // 4), width)):
                state[f"{name}.token_mixer.1.{part}.weight"] = torch.randn(outputs, inputs, 1, 1) / math.sqrt(inputs)
                state[f"{name}.token_mixer.1.{part}.bias"] = 0.1 * torch.randn(outputs)
        conv(f"{name}.channel_mixer.m.0", width, 2 * width, 1)
        conv(f"{name}.channel_mixer.m.2", 2 * width, width, 1)
    for name, inputs, size in (("fuse_stage2", 192, 1), ("fuse_stage3.op_list.0", 384, 1), ("neck.0", 256, 1), ("neck.2", 256, 3)):
        state[f"image_encoder.{name}.weight"] = torch.randn(256, inputs, size, size) / math.sqrt(inputs * size * size)
    for name in ("neck.1", "neck.3"):
        state[f"image_encoder.{name}.weight"] = 1 + 0.1 * torch.randn(256)
        state[f"image_encoder.{name}.bias"] = 0.1 * torch.randn(256)
    return state | _behind(side)
