"""Backbones: one name in, one dense feature map out, with the normalisation it expects.

Four kinds of name: "embedded" (the small network of the embedded world), "resnet50"/"resnet101" (torchvision, dilated to
stride 8 as the field does), a transformers AutoBackbone folder or hub id, and "package.module:factory" for your own.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """Builds a backbone and loads its weights.

    Args:
        name: "embedded", "resnet50", "resnet101", a transformers folder or hub id, or "package.module:factory", where
            `factory(weights: str)` returns a module with the attributes `channels`, `stride`, `mean` and `std`.
        weights: path of a safetensors file or a tensors-only torch file, or "none" for random ones; for the ResNets also
            "imagenet" (torchvision downloads them); a factory gets the string as it is. Transformers backbones carry
            their own.

    Raises:
        ValueError: unknown name, missing file, or weights of another network.
    """
    if name == "embedded":
        return _loaded(Backbone(_Embedded(), _Embedded.channels, 4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), name, weights)
    if name in ("resnet50", "resnet101"):
        return _loaded(Backbone(_resnet(name), 2048, 8), name, weights)
    if ":" in name:
        return _from_factory(name, weights)
    if weights != "none":
        raise ValueError(
            f"weights {weights!r} cannot be given for backbone {name!r}: a transformers backbone carries its own; leave it empty"
        )
    return _from_transformers(name)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file, or of a torch file that holds nothing else.

    Raises:
        ValueError: missing or unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights file {str(path)!r} does not exist; expected a .safetensors or torch file, or 'none'")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"weights file {str(path)!r} cannot be read ({type(error).__name__}); expected safetensors, or a torch "
                         "file of tensors only (other pickles are refused: they can run code)") from error  # fmt: skip
    for key in ("state_dict", "model"):
        state = state.get(key, state)
    return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


def _loaded(backbone: Backbone, name: str, weights: str) -> Backbone:
    if weights == "none":
        return backbone
    state = _imagenet(name) if weights == "imagenet" and name != "embedded" else read_tensors(weights)
    own = backbone.module.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"weights {weights!r} do not fit backbone {name!r}: {len(missing)} of {len(own)} tensors are missing, "
                         f"the first is {missing[0]!r}; the file has e.g. {sorted(state)[:3]}")  # fmt: skip
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if wrong:
        raise ValueError(f"weights {weights!r} do not fit backbone {name!r}: {wrong[0]!r} is {tuple(state[wrong[0]].shape)}, "
                         f"expected {tuple(own[wrong[0]].shape)}")  # fmt: skip
    backbone.module.load_state_dict({k: state[k].to(own[k].dtype) for k in own if k in state}, strict=False)
    return backbone


# ------------------------------------------------------------------------------------------------------- the kinds
def _stage(inner: int, outer: int, blocks: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or inner != outer:
        shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
    rest = [BasicBlock(outer, outer) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inner, outer, stride, shortcut), *rest)


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
        coarse = F.interpolate(
            self.merge_coarse(self.coarse(fine)), fine.shape[2:], mode="bilinear", align_corners=False
        )
        return F.relu(self.norm(self.merge_fine(fine) + coarse))


def _resnet(name: str) -> nn.Sequential:
    """torchvision's ResNet without its classifier, stride 8 (PSPNet's dilation), under torchvision's tensor names."""
    from collections import OrderedDict

    import torchvision

    net = getattr(torchvision.models, name)(weights=None, replace_stride_with_dilation=[False, True, True])
    return nn.Sequential(OrderedDict((k, m) for k, m in net.named_children() if k not in ("avgpool", "fc")))


def _imagenet(name: str) -> dict[str, Tensor]:
    import torchvision

    try:
        return dict(
            torchvision.models.get_weight(f"{name.replace('resnet', 'ResNet')}_Weights.DEFAULT").get_state_dict()
        )
    except OSError as error:
        raise ValueError(f"weights 'imagenet' of {name!r} cannot be downloaded ({error}); download the file of torchvision "
                         "elsewhere and give its path") from error  # fmt: skip


def _from_factory(name: str, weights: str) -> Backbone:
    package, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(package), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"backbone {name!r} cannot be imported ({error}); expected 'package.module:factory', importable "
                         "from where you run") from error  # fmt: skip
    module = factory(weights)
    lacking = [a for a in ("channels", "stride", "mean", "std") if not hasattr(module, a)]
    if lacking:
        raise ValueError(f"backbone {name!r} returned a module without {', '.join(lacking)}; set the attributes channels, "
                         "stride, mean and std on it")  # fmt: skip
    return Backbone(module, module.channels, module.stride, tuple(module.mean), tuple(module.std))


class _LastMap(nn.Module):
    """The deepest feature map of a transformers backbone."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).feature_maps[-1]


def _from_transformers(name: str) -> Backbone:
    from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig

    try:  # AutoBackbone.from_pretrained asks the hub even for a folder, so the class is looked up here
        kind: Any = MODEL_FOR_BACKBONE_MAPPING[type(AutoConfig.from_pretrained(name))]
        net = kind.from_pretrained(name)
    except Exception as error:
        known = "'embedded', 'resnet50', 'resnet101', a transformers AutoBackbone folder or hub id, or 'package.module:factory'"
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"backbone {name!r} is unknown ({reason}); expected {known}") from error
    module = _LastMap(net).eval()
    with torch.no_grad():
        probe = module(torch.zeros(1, 3, 224, 224))
    return Backbone(module, probe.shape[1], round(224 / probe.shape[-1]))
