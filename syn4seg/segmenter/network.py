"""The segmenter: backbone, pyramid pooling, 3x3 bottleneck, and a classifier that is a pair of tensors.

The field's GFSS network (method.md 5.1), or a network of another library cut before its classifier (`semantic_networks`).
Because everything before the classifier is frozen after the base stage, features are computed once and many classifiers are
tried on them: `Classifier` lives apart from the module.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from syn4seg.errors import DamagedError, UserError
from syn4seg.segmenter.backbones import Backbone, described_backbone, load_backbone, may_be_skeleton
from syn4seg.segmenter.pretrained import Triple, describe_pretrained
from syn4seg.segmenter.semantic_networks import SemanticShape, rebuild
from syn4seg.store.files import as_path, write_atomically
from syn4seg.store.tensors import read_tensors, tensor_bytes

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

COSINE_SCALE = 10.0
PRODUCT_WORK, PRODUCT_WORK_TRAINING = 80, 256
"""Multiplications per output value up to which `upsample` is faster as two products, without and with a gradient (on a CPU)."""


@dataclass(frozen=True)
class Classifier:
    """One row per class index.

    Attributes:
        weight: (C, D).
        bias: (C,); not used if `cosine`.
        cosine: logits are 10 x cosine instead of linear (CAPL's classifier).
        align_corners: how its logits are brought to pixels, see `upsample`.
    """

    weight: Tensor
    bias: Tensor
    cosine: bool = False
    align_corners: bool = False

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits (N, C, h, w) of features (N, D, h, w)."""
        if self.cosine:
            return F.conv2d(F.normalize(features, dim=1), F.normalize(self.weight, dim=1)[..., None, None]) * COSINE_SCALE
        return F.conv2d(features, self.weight[..., None, None], self.bias)

    def pixels(self, features: Tensor, size: int) -> Tensor:
        """Return logits (N, C, size, size) of features (N, D, h, w), on the whole canvas."""
        return upsample(self(features), (size, size), self.align_corners)

    def to(self, device: torch.device | str) -> Classifier:
        """Return the same classifier on another device."""
        return self.replaced(self.weight.to(device), self.bias.to(device))

    def replaced(self, weight: Tensor, bias: Tensor) -> Classifier:
        """Return a classifier of other rows that are read in the same way."""
        return Classifier(weight, bias, self.cosine, self.align_corners)


def upsample(logits: Tensor, shape: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Return logits (N, C, h, w) at (N, C, *shape), bilinear: as two matrix products where these are faster, else by PyTorch.

    A small grid is: `F.interpolate` takes two to four times as long there, and its backward pass took a third of a novel step. On
    a large grid it is the products that do. With a gradient on a GPU always products: PyTorch's backward pass adds in any order.

    Args:
        align_corners: the corner cells lie on the corner pixels, as PSPNet-based code has it (DIaM, POP).
    """
    h, w = logits.shape[2:]
    training = torch.is_grad_enabled() and logits.requires_grad
    affordable = PRODUCT_WORK_TRAINING if training else PRODUCT_WORK
    if w + h * w / shape[1] > affordable and not (training and logits.is_cuda):
        return F.interpolate(logits, shape, mode="bilinear", align_corners=align_corners)
    rows, columns = (_stretch(logits.shape[i + 2], shape[i], logits, align_corners) for i in (0, 1))
    return rows @ logits @ columns.T


def _stretch(old: int, new: int, like: Tensor, align_corners: bool) -> Tensor:
    """Return linear interpolation as a matrix (new, old)."""
    unit = torch.eye(old, device=like.device, dtype=like.dtype)
    return F.interpolate(unit[None], new, mode="linear", align_corners=align_corners)[0].T


class PyramidPooling(nn.Module):
    """PSPNet's pyramid pooling: the input beside its averages over each of `bins` grids."""

    def __init__(self, channels: int, bins: tuple[int, ...], align_corners: bool = False):
        super().__init__()
        width = channels // max(1, len(bins))
        self.bins, self.align_corners = bins, align_corners
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()) for _ in bins
        )
        self.channels = channels + width * len(bins)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [
            F.interpolate(branch(F.adaptive_avg_pool2d(x, size)), x.shape[2:], mode="bilinear", align_corners=self.align_corners)
            for size, branch in zip(self.bins, self.branches, strict=True)
        ]
        return torch.cat([x, *pooled], 1)


class Segmenter(nn.Module):
    """Backbone, pyramid pooling, bottleneck and classifier.

    Args:
        backbone: see `load_backbone`.
        classes: classifier rows, background included.
        channels: D, the width of the bottleneck.
        ppm_bins: grids of the pyramid pooling; () leaves it out.
        dropout: share of bottleneck channels dropped in training.
        cosine: 10 x cosine classifier instead of a linear one.
        align_corners: of the logits, see `upsample`.
        pool_align_corners: of the pyramid pooling; None: as the logits (POP's differ).
        project: a 1x1 convolution ends the bottleneck (CAPL, POP), so that features may be negative.
        bottleneck: False where the backbone's map itself is what the classifier sees: `channels`, `ppm_bins`, `dropout` and
            `project` do not count then.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        channels: int = 512,
        ppm_bins: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.1,
        cosine: bool = False,
        align_corners: bool = False,
        pool_align_corners: bool | None = None,
        project: bool = False,
        bottleneck: bool = True,
    ):
        super().__init__()
        self.backbone, self.stride, self.cosine, self.align_corners = backbone.module, backbone.stride, cosine, align_corners
        pool_corners = align_corners if pool_align_corners is None else pool_align_corners
        self.ppm = PyramidPooling(backbone.channels, tuple(ppm_bins) if bottleneck else (), pool_corners)
        self.bottleneck = nn.Sequential()
        if bottleneck:
            self.bottleneck.extend([nn.Conv2d(self.ppm.channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)])
            self.bottleneck.extend([nn.ReLU(), nn.Dropout2d(dropout), *([nn.Conv2d(channels, channels, 1)] if project else [])])
        else:
            channels = backbone.channels
        head = nn.Conv2d(channels, classes, 1)
        self.weight, self.bias = nn.Parameter(head.weight.detach()[..., 0, 0]), nn.Parameter(torch.zeros(classes))
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)

    @property
    def classifier(self) -> Classifier:
        """The classifier's own parameters (not a copy)."""
        return Classifier(self.weight, self.bias, self.cosine, self.align_corners)

    def prepare(self, images: np.ndarray) -> Tensor:
        """Return normalised float (N, 3, H, W) on the module's device, of RGB uint8 (N, H, W, 3) or (H, W, 3)."""
        batch = torch.tensor(images, device=self.weight.device)
        batch = batch[None] if batch.ndim == 3 else batch
        return (batch.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def trunk(self, x: Tensor) -> Tensor:
        """Return the output of backbone and pyramid pooling, (N, Dt, h, w) of prepared images."""
        return self.ppm(self.backbone(x))

    def features(self, x: Tensor) -> Tensor:
        """Return bottleneck features f(x), (N, D, h, w), of prepared images."""
        return self.bottleneck(self.trunk(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, C, h, w) on the feature grid, of prepared images."""
        return self.classifier(self.features(x))

    def head(self, backbone_features: Tensor) -> Tensor:
        """Return logits (N, C, h, w) from the backbone's output: what is trained when the backbone is frozen."""
        return self.classifier(self.bottleneck(self.ppm(backbone_features)))

    def predict(self, x: Tensor) -> Tensor:
        """Return logits (N, C, H, W) at the size of the prepared images."""
        return upsample(self(x), (x.shape[2], x.shape[3]), self.align_corners)


def frozen_features(segmenter: Segmenter, images: np.ndarray, *, batch: int = 32) -> Tensor:
    """Return float16 features (N, D, h, w) on the CPU of RGB uint8 (N, H, W, 3); the module is put in eval mode."""
    segmenter.eval()
    with torch.no_grad():
        parts = [segmenter.features(segmenter.prepare(images[i : i + batch])).half().cpu() for i in range(0, len(images), batch)]
    return torch.cat(parts)


Finite = Annotated[float, Field(ge=-1e3, le=1e3)]
Positive = Annotated[float, Field(gt=0, le=1e3)]


class NetworkShape(BaseModel):
    """The header of a segmenter checkpoint: what its network is built of.

    Attributes:
        mean, std: normalisation per RGB channel, in units of [0, 1]; None: that of the backbone.
        transformers: configuration of a transformers backbone, whose weights are among the tensors; None: the backbone is built
            by its name.
    """

    backbone: str | SemanticShape
    classes: Annotated[int, Field(ge=1, le=65_536)]
    channels: Annotated[int, Field(ge=1, le=65_536)]
    ppm_bins: Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(max_length=16)]
    cosine: bool
    align_corners: bool = False
    pool_align_corners: bool | None = None
    project: bool = False
    mean: tuple[Finite, Finite, Finite] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    transformers: dict[str, Any] | None = None


def shape_of(segmenter: Segmenter, backbone: str | SemanticShape, *, whole: bool = False) -> NetworkShape:
    """Return what a segmenter is built of.

    Args:
        backbone: the name given to `load_backbone`, or the description of another library's network.
        whole: with the normalisation, and with the configuration of a transformers backbone, so that its folder is not needed.
    """
    more = {}
    if whole:
        mean, std = (tuple(buffer.flatten().tolist()) for buffer in (segmenter.mean, segmenter.std))
        more = {"mean": mean, "std": std, "transformers": describe_pretrained(segmenter.backbone)}
    return NetworkShape(
        backbone=backbone,
        classes=len(segmenter.weight),
        channels=segmenter.weight.shape[1],
        ppm_bins=segmenter.ppm.bins,
        cosine=segmenter.cosine,
        align_corners=segmenter.align_corners,
        pool_align_corners=segmenter.ppm.align_corners,
        project=len(segmenter.bottleneck) > 4,
        **more,
    )


def save_segmenter(
    segmenter: Segmenter,
    path: str | AnyPath,
    *,
    backbone: str | SemanticShape,
    facts: dict[str, object],
    write: Callable[[AnyPath, bytes], None] = write_atomically,
    whole: bool = False,
) -> None:
    """Write safetensors; `load_segmenter` needs nothing else.

    Args:
        backbone: the name given to `load_backbone`, or the description of another library's network.
        facts: kept in the file's header under "facts" (JSON).
        write: puts the bytes there; `seals.write_sealed` for a file of a run.
        whole: lose no digit (a tensor is float16 only where that changes none of its numbers), and need no folder of a
            transformers backbone; else every tensor is float16.
    """
    state = {k: _halved(v, whole) if v.is_floating_point() else v for k, v in segmenter.state_dict().items()}
    shape = shape_of(segmenter, backbone, whole=whole).model_dump(mode="json", exclude_none=True)
    tensors = {k: v.contiguous().cpu() for k, v in state.items()}
    header = {"network": json.dumps(shape)} | ({"facts": json.dumps(facts)} if facts else {})
    write(as_path(path), tensor_bytes(tensors, header))


def _halved(tensor: Tensor, exactly: bool) -> Tensor:
    half = tensor.half()
    return half if not exactly or torch.equal(half.to(tensor.dtype), tensor) else tensor


def load_segmenter(path: str | AnyPath) -> tuple[Segmenter, dict]:
    """Return the segmenter of `save_segmenter` (float32, eval mode) and its facts; it raises what `read_segmenter` does."""
    segmenter, _, facts = read_segmenter(path)
    return segmenter, facts


def read_segmenter(path: str | AnyPath) -> tuple[Segmenter, NetworkShape, dict]:
    """Return the segmenter of `save_segmenter` (float32, eval mode), what its header says that it is built of, and its facts.

    Raises:
        UserError: the file is missing or was written by something else.
    """
    try:
        state, header = read_tensors(as_path(path))
    except FileNotFoundError:
        raise UserError(
            f"segmenter checkpoint {str(path)!r} does not exist; train the base stage first or correct the path"
        ) from None
    except DamagedError as error:
        raise UserError(f"segmenter checkpoint {str(path)!r} is not a safetensors file ({error})") from error
    if "network" not in header:
        raise UserError(
            f"{str(path)!r} is no segmenter checkpoint: its header has no 'network'; expected a file of `save_segmenter`"
        )
    try:
        shape, facts = NetworkShape.model_validate_json(header["network"]), json.loads(header.get("facts", "{}"))
        if not isinstance(facts, dict):
            raise ValueError("its facts are no object")
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} is no segmenter checkpoint ({' '.join(str(error).split())[:200]}); take a complete file"
        ) from None
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    try:
        net = _assembled(shape, state)
    except RuntimeError as error:
        raise UserError(
            f"segmenter checkpoint {str(path)!r} does not hold the tensors that its header promises "
            f"({' '.join(str(error).split())[:200]}); take a complete file"
        ) from None
    for buffer, values in ((net.mean, shape.mean), (net.std, shape.std)):
        if values is not None:
            buffer.copy_(torch.tensor(values).view(1, 3, 1, 1))
    return net.eval(), shape, facts


def _assembled(shape: NetworkShape, state: dict[str, Tensor]) -> Segmenter:
    """Return the network of a header with the tensors of a file.

    Where it can be, it is built without numbers first: so no header makes anybody allocate what the file does not hold, and no time
    goes into random weights. Only a network with further buffers of its own is then built with them.

    Raises:
        RuntimeError: a tensor is missing, or of another shape.
    """
    if shape.transformers is not None or (isinstance(shape.backbone, str) and may_be_skeleton(shape.backbone)):
        with torch.device("meta"):
            net, mean, std = _built(shape, 0)
        _check_tensors(net.state_dict(), state)
        net.load_state_dict(state, assign=True)
        net.mean, net.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        if not any(buffer.is_meta for buffer in net.buffers()):
            return net
    net = _built(shape, sum(tensor.numel() for tensor in state.values()))[0]
    net.load_state_dict(state)
    return net


def _built(shape: NetworkShape, limit: int) -> tuple[Segmenter, Triple, Triple]:
    """Return the network of a header with random weights, and the mean and standard deviation of its backbone.

    Args:
        limit: numbers that the checkpoint holds.
    """
    if shape.transformers is not None:
        backbone = described_backbone(shape.transformers)
    elif isinstance(shape.backbone, str):
        backbone = load_backbone(shape.backbone)
    else:
        backbone = rebuild(shape.backbone, shape.channels, limit)
    segmenter = Segmenter(
        backbone,
        shape.classes,
        shape.channels,
        shape.ppm_bins,
        cosine=shape.cosine,
        align_corners=shape.align_corners,
        pool_align_corners=shape.pool_align_corners,
        project=shape.project,
        bottleneck=isinstance(shape.backbone, str),
    )
    return segmenter, backbone.mean, backbone.std


def _check_tensors(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Raise RuntimeError unless a file holds every tensor of a network in its shape."""
    for name, tensor in own.items():
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "missing"
            raise RuntimeError(f"{name} is {found}, expected {tuple(tensor.shape)}")
