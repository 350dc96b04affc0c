"""Dilated ResNets at stride 8: torchvision's, and the "deep" one of the GFSS field, whose features differ in two ways.

The deep stem is three 3x3 convolutions (3 to 64 at stride 2, 64 to 64, 64 to 128), and its code dilates *every* 3x3
convolution of layer3 by 2 and of layer4 by 4, where torchvision gives the first block of a dilated stage the dilation of
the stage before (1 and 2). Both hold for CAPL, BAM, DIaM, BCM and POP: a base checkpoint of theirs needs both.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from syn4seg.errors import UserError

RESNETS = ("resnet50", "resnet101", "resnet50-deep", "resnet101-deep")
CHANNELS, STRIDE = 2048, 8
IMAGENET = {"imagenet-v1": "IMAGENET1K_V1", "imagenet-v2": "IMAGENET1K_V2"}
"""Names of torchvision's two sets of ImageNet weights."""


def build_resnet(name: str) -> nn.Sequential:
    """Return the backbone of a name: `dilated_resnet` with the stem and the dilation that belong together."""
    deep = name.endswith("-deep")
    return dilated_resnet(int(name.removeprefix("resnet").removesuffix("-deep")), deep_stem=deep, dilate_first=deep)


def dilated_resnet(layers: int, *, deep_stem: bool, dilate_first: bool) -> nn.Sequential:
    """Return a ResNet without its classifier, (N, 3, H, W) to (N, 2048, ceil(H/8), ceil(W/8)).

    Its tensors have torchvision's names; with the deep stem those of the public resnet50_v2.pth: conv1, bn1, conv2, bn2,
    conv3, bn3, layer1 to layer4.

    Args:
        layers: 50 or 101.
        deep_stem: three 3x3 convolutions instead of one 7x7.
        dilate_first: the first blocks of layer3 and layer4 are dilated like the others.
    """
    import torchvision  # two seconds, which actors without a ResNet are spared

    net = getattr(torchvision.models, f"resnet{layers}")(weights=None, replace_stride_with_dilation=[False, True, True])
    parts: OrderedDict[str, Any] = OrderedDict((k, m) for k, m in net.named_children() if k not in ("avgpool", "fc"))
    if deep_stem:
        first = parts["layer1"][0]
        first.conv1, first.downsample[0] = _convolution(128, 64, 1), _convolution(128, 256, 1)
        stages = [(k, m) for k, m in parts.items() if k.startswith("layer")]
        parts = OrderedDict([*_deep_stem().items(), ("maxpool", parts["maxpool"]), *stages])
    if dilate_first:
        for stage, dilation in (("layer3", 2), ("layer4", 4)):
            middle = parts[stage][0].conv2
            middle.dilation = middle.padding = (dilation, dilation)
    return nn.Sequential(parts)


def _deep_stem() -> OrderedDict[str, nn.Module]:
    stem = OrderedDict()
    for i, (inner, outer, stride) in enumerate(((3, 64, 2), (64, 64, 1), (64, 128, 1)), 1):
        stem[f"conv{i}"], stem[f"bn{i}"] = _convolution(inner, outer, 3, stride), nn.BatchNorm2d(outer)
        stem[f"relu{i}"] = nn.ReLU(inplace=True)
    return stem


def _convolution(inner: int, outer: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, initialised as torchvision initialises a ResNet's."""
    convolution = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def imagenet_weights(name: str, version: str = "imagenet-v2") -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights of "resnet50" or "resnet101", downloaded once.

    Args:
        version: "imagenet-v1" (2016's recipe, as the field's checkpoints start from) or "imagenet-v2" (2021's).

    Raises:
        UserError: they cannot be downloaded, are no version, or the backbone has the deep stem, which torchvision never trained.
    """
    import torchvision

    check_imagenet(name, version)
    try:
        weights = torchvision.models.get_weight(f"{name.replace('resnet', 'ResNet')}_Weights.{IMAGENET[version]}")
        return dict(weights.get_state_dict(check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"weights {version!r} of {name!r} cannot be downloaded ({error}); download the file of torchvision "
            "elsewhere and give its path"
        ) from error


def check_imagenet(name: str, version: str = "imagenet-v2") -> None:
    """Raise UserError unless torchvision has ImageNet weights of this backbone in this version."""
    if version not in IMAGENET:
        raise UserError(
            f"weights {version!r} of backbone {name!r}: torchvision has two sets, which give different scores; expected "
            f"{' or '.join(IMAGENET)}"
        )
    if name.endswith("-deep"):
        other = name.removesuffix("-deep")
        raise UserError(
            f"weights 'imagenet' are torchvision's, which has none for {name!r}; give the path of the public file "
            f"({other}_v2.pth of PSPNet's authors), or name the backbone {other!r}"
        )


def stem_hint(name: str, state: dict[str, Tensor]) -> str:
    """Return the hint for a file whose stem is the other one; empty if it is not."""
    first = state.get("conv1.weight")
    if name not in RESNETS or first is None or first.ndim != 4 or (first.shape[2] == 3) == name.endswith("-deep"):
        return ""
    other = name.removesuffix("-deep") if name.endswith("-deep") else f"{name}-deep"
    return f"; its stem is that of {other!r}: set this backbone, or give other weights"
