"""Tiny networks of transformers and torchvision in their true formats, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

LABELS = ("background", "cat", "dog", "cow", "bus")
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
WIDTHS: dict[str, Any] = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16]}
RELATIVE = {"out_indices": [1, 2, 3, 4], "use_relative_position_bias": True, "pool_scales": [1, 2], "auxiliary_channels": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "segformer": ("Segformer", {**WIDTHS, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}),
    "upernet-convnext": ("UperNet", {"backbone": ("ConvNext", WIDTHS), "auxiliary_in_channels": 16, "auxiliary_channels": 8}),
    "upernet-swin": (
        "UperNet",
        {
            "backbone": ("Swin", {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4}),
            "use_auxiliary_head": False,
        },
    ),
    "upernet-resnet": ("UperNet", {"backbone": ("ResNet", {**WIDTHS, "embedding_size": 8}), "use_auxiliary_head": False}),
    "dpt": ("DPT", {**VIT, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}),
    "beit": ("Beit", {**VIT, **RELATIVE}),
    "data2vec": ("Data2VecVision", {**VIT, **RELATIVE}),
    "mobilevit": (
        "MobileViT",
        {"hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [4, 8, 8, 12, 12, 16, 32], "aspp_out_channels": 16},
    ),
    "mobilevitv2": ("MobileViTV2", {"width_multiplier": 0.25, "aspp_out_channels": 16}),
    "mobilenetv2": ("MobileNetV2", {"depth_multiplier": 0.1, "image_size": 64}),
}
"""Name -> how transformers' classes start, and the configuration."""


def transformers_network(family: str, labels: tuple[str, ...] = LABELS) -> Any:
    """Return a network of a family in eval mode, whose batch norms have statistics of images."""
    import transformers

    kind, options = FAMILIES[family]
    options = dict(options)
    if "backbone" in options:
        inner, shape = options.pop("backbone")
        options["backbone_config"] = getattr(transformers, f"{inner}Config")(**shape, out_features=STAGES)
        options["hidden_size"] = 16
    names = dict(enumerate(labels))
    config = getattr(transformers, f"{kind}Config")(**options, id2label=names, label2id={v: k for k, v in names.items()})
    torch.manual_seed(0)
    return _awake(getattr(transformers, f"{kind}ForSemanticSegmentation")(config).eval(), 32 if "patch_size" in options else 64)


def saved_network(folder: Path, family: str = "segformer", labels: tuple[str, ...] = LABELS) -> Any:
    """Save a network as transformers does, and return it."""
    net = transformers_network(family, labels)
    net.save_pretrained(folder)
    return net


def torchvision_network(file: Path, name: str, classes: int = 5) -> nn.Module:
    """Save the tensors of a torchvision network, auxiliary head and all, and return it."""
    import torchvision

    torch.manual_seed(0)
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    net = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **auxiliary)
    _awake(net.eval(), 64)
    torch.save(net.state_dict(), file)
    return net


def _awake(net: nn.Module, size: int) -> nn.Module:
    """Give every batch norm the statistics of random images, so that the logits depend on the image; return it in eval mode."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.momentum = 1.0
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.1)
    with torch.no_grad():
        net(torch.randn(4, 3, size, size))
    return net.eval()
