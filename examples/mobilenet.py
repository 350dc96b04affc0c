"""A backbone of your own: an ImageNet MobileNetV2 1.0 with folded batch norms and TensorFlow's padding, as a dense feature map.

Name it in a config as `segmenter.backbone: examples.mobilenet:mobilenet_v2` and give its file as `segmenter.weights`. A
factory is one function: weights path in, module out, with `channels`, `stride`, `mean` and `std` set on the module.

The feature map joins stride 8 (32 channels: edges), stride 16 (96 channels: parts) and stride 32 (320 channels: things),
all at stride 8 and brought to one root mean square each, so that none of the three drowns the others.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.segmenter.backbones import read_weights

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, blocks, stride) of the seven stages."""
TAKEN = (2, 4, 6)
"""Stages whose outputs are joined: strides 8, 16 and 32."""


class Convolution(nn.Module):
    """A convolution with bias and SAME padding, which at stride 2 pads more on the right and below; ReLU6 unless linear."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride, groups=groups)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        spare = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        x = self.conv(F.pad(x, [part for total in spare for part in (total // 2, total - total // 2)]))
        return x if self.linear else F.relu6(x)


class Block(nn.Module):
    """Expand 1x1 (left out at expansion 1), depthwise 3x3, project 1x1; residual where the shapes allow it."""

    def __init__(self, inner: int, outer: int, expansion: int, stride: int):
        super().__init__()
        wide = inner * expansion
        expand = [Convolution(inner, wide, 1)] if expansion > 1 else []
        self.body = nn.Sequential(
            *expand, Convolution(wide, wide, 3, stride, groups=wide), Convolution(wide, outer, 1, linear=True)
        )
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetFeatures(nn.Module):
    """Joined features (N, 448, ~H/8, ~W/8) of RGB in [-1, 1]."""

    channels, stride = sum(STAGES[i][1] for i in TAKEN), 8
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self):
        super().__init__()
        self.stem = Convolution(3, 32, 3, 2)
        stages, inner = [], 32
        for expansion, outer, count, stride in STAGES:
            blocks = [Block(inner if i == 0 else outer, outer, expansion, stride if i == 0 else 1) for i in range(count)]
            stages.append(nn.Sequential(*blocks))
            inner = outer
        self.blocks = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        x, taken = self.stem(x), []
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in TAKEN:
                taken.append(x / x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6))
        grid = taken[0].shape[2:]
        return torch.cat([F.interpolate(t, grid, mode="bilinear", align_corners=False) for t in taken], 1)


def mobilenet_v2(weights: str) -> MobileNetFeatures:
    """The factory.

    Args:
        weights: a safetensors file with the names `stem.conv`, `blocks.G.B.body.I.conv`, or "none" for random weights.

    Raises:
        ValueError: the file lacks a tensor of the network.
    """
    net = MobileNetFeatures()
    if weights != "none":
        state = OrderedDict((k, v.float()) for k, v in read_weights(weights).items())
        lacking = sorted(set(net.state_dict()) - set(state))
        if lacking:
            raise UserError(
                f"weights {weights!r} have no tensor {lacking[0]!r}; expected a MobileNetV2 1.0 with folded batch norms"
            )
        net.load_state_dict(state, strict=False)
    return net
