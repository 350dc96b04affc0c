"""Semantic segmentation networks of transformers and torchvision as feature maps: all that stands before the last 1x1 convolution.

That convolution is a linear classifier, so a network cut in front of it is a backbone, and the convolution's weights are
classifier rows. A network is described by plain data (`SemanticShape`) that a checkpoint keeps in its header: a run needs
nothing of the folder from which it came.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from threading import get_ident
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.seeds import seeded
from syn4seg.segmenter.backbones import Backbone
from syn4seg.segmenter.pretrained import reason

TORCHVISION = (
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)
AUXILIARY = ("auxiliary_head", "aux_classifier")
"""Heads that help a network to train and take no part in what it predicts."""
CODE_KEYS = ("auto_map", "custom_pipelines")
FETCHING_KEYS = ("backbone", "use_timm_backbone", "use_pretrained_backbone")
"""Keys of a configuration for which transformers would look for a further model."""
TOLERANCE = 1e-4
"""Largest difference to the library's own logits, as a share of their largest value (float32 in another order of sums)."""
Three = tuple[float, float, float]
Name = Annotated[str, Field(min_length=1, max_length=300)]


class SemanticShape(BaseModel):
    """What a network is built of, as plain data.

    Attributes:
        library: where its code is.
        kind: torchvision's name of the network, or the class of transformers.
        config: transformers' configuration; empty for torchvision.
        labels: classes of the network, before any are chosen.
        classifiers: names of the 1x1 convolutions whose outputs, summed, are the logits.
        mean: per channel as RGB, in units of [0, 1].
        std: likewise.
        blue_first: the network takes BGR.
        stride: pixels per cell of the features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    library: Literal["transformers", "torchvision"]
    kind: Name
    config: dict[str, Any] = {}
    labels: Annotated[int, Field(ge=1, le=65_536)]
    classifiers: Annotated[tuple[Name, ...], Field(max_length=2)] = ()
    mean: Three
    std: Three
    blue_first: bool = False
    stride: Annotated[int, Field(ge=1, le=65_536)] = 1

    @property
    def title(self) -> str:
        """The network and its library, as records and reports name it."""
        return f"{self.kind} of {self.library}"


class _Tap(nn.Module):
    """Takes a classifier's place: keeps its input, one per thread, and hands on a single channel of it, which costs little."""

    kernel_size = stride = dilation = (1, 1)  # some networks ask their convolutions

    def __init__(self):
        super().__init__()
        self.taken: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.taken[get_ident()] = x
        return x[:, :1]


class SemanticFeatures(nn.Module):
    """What the classifiers of a network see, (N, channels, h, w), joined where there are two of them (LR-ASPP)."""

    def __init__(self, net: nn.Module, shape: SemanticShape):
        super().__init__()
        self.net, self.blue_first, self.taps = net, shape.blue_first, [_Tap() for _ in shape.classifiers]
        for name, tap in zip(shape.classifiers, self.taps, strict=True):
            net.set_submodule(name, tap)

    def forward(self, x: Tensor) -> Tensor:
        run_network(self.net, x.flip(1) if self.blue_first else x)
        maps = [tap.taken.pop(get_ident()) for tap in self.taps]
        return maps[0] if len(maps) == 1 else torch.cat(maps, 1)


def run_network(net: nn.Module, x: Tensor) -> Tensor:
    """Return the library's logits of prepared images, in the library's order of channels; on the grid that the library has.

    Networks with a grid of position embeddings for one size of image (BEiT, Data2Vec) interpolate it for others.
    """
    options: dict[str, Any] = {}
    own = getattr(getattr(net, "config", None), "image_size", None)
    if "interpolate_pos_encoding" in inspect.signature(net.forward).parameters and own not in (None, x.shape[2]):
        options["interpolate_pos_encoding"] = True
    out: Any = net(x, **options)
    return out["out"] if "out" in out else out["logits"]


def build_network(shape: SemanticShape) -> nn.Module:
    """Return the library's network with random weights, in eval mode, without auxiliary heads; on torch's default device.

    Raises:
        UserError: there is no such network, its description is not sound, or it would need other code or a download.
    """
    try:
        net = _build(shape)
    except UserError:
        raise
    except Exception as error:  # a configuration from a file may fail anywhere in the library
        raise UserError(f"{shape.title} cannot be built ({reason(error)}); is its config.json whole?") from error
    for name in AUXILIARY:
        if getattr(net, name, None) is not None:
            setattr(net, name, None)
    return net.eval()


def _build(shape: SemanticShape) -> nn.Module:
    if shape.library == "torchvision":
        if shape.kind not in TORCHVISION:
            raise UserError(f"torchvision has no segmentation network {shape.kind!r}; expected one of {', '.join(TORCHVISION)}")
        import torchvision

        options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": shape.labels, "aux_loss": False}
        return torchvision.models.get_model(shape.kind, **options)
    check_config(shape.config)
    kind, config = network_class(shape.config), transformers_config(shape.config)
    if kind.__name__ != shape.kind or config.num_labels != shape.labels:
        raise UserError(f"{shape.title}: its configuration is of {kind.__name__} with {config.num_labels} labels")
    return kind(config)


def check_config(config: Any) -> None:
    """Refuse a configuration of transformers that names code or a further model to fetch, at any depth.

    Raises:
        UserError: with the key.
    """
    for key, value in config.items() if isinstance(config, dict) else ():
        if key in CODE_KEYS and value:
            raise UserError(f"config.json names code of its own ({key}), which is never run; take a network that transformers has")
        if key in FETCHING_KEYS and value:
            raise UserError(
                f"config.json names a further model ({key}={str(value)[:60]!r}); expected a network that is described whole, "
                "by backbone_config: load and save it with transformers once"
            )
        check_config(value)


def network_class(config: dict[str, Any]) -> Any:
    """Return transformers' class for a configuration.

    Raises:
        UserError: it has no linear classifier of pixels.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

    model_type, given = config.get("model_type"), config.get("architectures")
    given = str(given[0]) if isinstance(given, list) and given else "none"
    known = CONFIG_MAPPING[model_type] if isinstance(model_type, str) and model_type in CONFIG_MAPPING else None
    kind: Any = MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING.get(known, None) if known else None
    if kind is None or given != kind.__name__:
        kinds: Any = MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
        names = sorted(kinds[key].__name__ for key in kinds)
        of_masks = any(word in given for word in ("MaskFormer", "Mask2Former", "OneFormer", "Eomt"))
        why = "; it predicts masks and their classes" if of_masks else ""
        raise UserError(
            f"its architecture is {given[:80]!r}, which has no linear classifier of pixels{why}; expected one of {', '.join(names)}"
        )
    return kind


def transformers_config(config: dict[str, Any]) -> Any:
    """Return transformers' configuration object of plain data that `check_config` has passed."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[config["model_type"]].from_dict({key: value for key, value in config.items() if key not in CODE_KEYS})


def find_classifiers(net: nn.Module, shape: SemanticShape, size: int) -> tuple[str, ...]:
    """Return the names of the convolutions that make the logits: the last 1x1 convolution to run with an output per label; for
    LR-ASPP the last two, whose outputs are summed. The network may be on the meta device.

    Raises:
        UserError: there is none, or the network takes no images of `size` pixels.
    """
    ran: list[str] = []
    found = [
        m.register_forward_hook(lambda _m, _x, _y, name=name: ran.append(name))
        for name, m in net.named_modules()
        if isinstance(m, nn.Conv2d) and m.out_channels == shape.labels and m.kernel_size == (1, 1) and m.groups == 1
    ]
    try:
        _probe(net, shape, torch.zeros(1, 3, size, size, device=next(net.parameters()).device))
    finally:
        for hook in found:
            hook.remove()
    count = 2 if shape.kind.startswith("lraspp") else 1
    if len(ran) < count:
        raise UserError(f"{shape.title} has no 1x1 convolution with an output for each of its {shape.labels} labels")
    return tuple(ran[-count:])


@torch.no_grad()
def _probe(net: nn.Module, shape: SemanticShape, x: Tensor) -> Tensor:
    side = x.shape[2]
    for part in (shape.config, shape.config.get("backbone_config") or {}):
        patch = part.get("patch_size")
        if isinstance(patch, int) and patch > 0 and side % patch:
            near = max(patch, side // patch * patch)
            raise UserError(f"{shape.title} sees patches of {patch} pixels: segmenter.size={side} is no multiple; set {near}")
    try:
        return run_network(net, x)
    except Exception as error:
        own = shape.config.get("image_size")
        remedy = f"set segmenter.size={own}" if isinstance(own, int) else "set a larger segmenter.size, a multiple of 32"
        raise UserError(f"{shape.title} takes no canvas of segmenter.size={side} ({reason(error)}); {remedy}") from error


def classifier_rows(net: nn.Module, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return weight (labels, D) and bias (labels,) of convolutions whose outputs are summed: columns side by side, biases added."""
    layers: list[Any] = [net.get_submodule(name) for name in names]
    weight = torch.cat([layer.weight.detach()[..., 0, 0] for layer in layers], 1)
    biases = [torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach() for layer in layers]
    return weight.clone(), torch.stack(biases).sum(0)


@torch.no_grad()
def take_apart(net: nn.Module, shape: SemanticShape, size: int) -> tuple[SemanticFeatures, Tensor, Tensor, bool]:
    """Cut a network before its classifiers, and check that features and rows give the library's own logits on a random image.

    Returns:
        The features, weight (labels, D), bias (labels,), and whether the library's logits are those brought to its grid with
        aligned corners (DPT doubles its grid so).

    Raises:
        UserError: they are not: something other than an interpolation comes after the classifier.
    """
    noise = torch.from_numpy(seeded("semantic-probe").standard_normal((1, 3, size, size), "float32"))
    expected = _probe(net, shape, noise.flip(1) if shape.blue_first else noise)
    weight, bias = classifier_rows(net, shape.classifiers)
    features = SemanticFeatures(net, shape).eval()
    logits = F.conv2d(features(noise), weight[..., None, None], bias)
    away = []
    for corners in (False, True):
        mine = F.interpolate(logits, expected.shape[2:], mode="bilinear", align_corners=corners)
        away.append((mine - expected).abs().max().item() / expected.abs().max().clamp_min(1e-6).item())
    if min(away) <= TOLERANCE:
        return features, weight, bias, away[1] < away[0]
    raise UserError(
        f"{shape.title}: its logits are not those of its last 1x1 convolution ({', '.join(shape.classifiers)}); expected a network "
        "whose classifier of pixels is linear and comes last"
    )


def skeleton(shape: SemanticShape, size: int) -> tuple[SemanticShape, Backbone]:
    """Return a description with its classifiers and its stride on a canvas, and the features on the meta device.

    Raises:
        UserError: as `build_network` and `find_classifiers`.
    """
    with torch.device("meta"):  # it is run outside of this: BEiT keeps index tables, which would be empty ones for every later BEiT
        net = build_network(shape)
    shape = shape.model_copy(update={"classifiers": find_classifiers(net, shape, size)})
    features = SemanticFeatures(net, shape).eval()
    with torch.no_grad():
        _, channels, side, _ = features(torch.empty(1, 3, size, size, device="meta")).shape
    shape = shape.model_copy(update={"stride": max(1, round(size / side))})
    return shape, Backbone(features, channels, shape.stride, shape.mean, shape.std)


def rebuild(shape: SemanticShape, channels: int, limit: int) -> Backbone:
    """Return the features of a description from a checkpoint's header, with random weights.

    Args:
        channels: that the classifier sees.
        limit: numbers that the checkpoint holds; a larger network is refused before it takes memory.

    Raises:
        UserError: the description is not of a network that is known here, or not of the checkpoint's.
    """
    with torch.device("meta"):
        net = build_network(shape)
    width = 0
    for name in shape.classifiers:
        layer = None
        with contextlib.suppress(AttributeError):
            layer = net.get_submodule(name)
        if not isinstance(layer, nn.Conv2d):
            raise UserError(f"{shape.title} has no convolution {name!r}")
        width += layer.in_channels
    if width != channels:
        raise UserError(f"{shape.title} has {width} features; expected {channels}")
    if sum(t.numel() for t in SemanticFeatures(net, shape).state_dict().values()) > limit:
        raise UserError(f"{shape.title} has more weights than the checkpoint holds")
    return Backbone(SemanticFeatures(build_network(shape), shape).eval(), channels, shape.stride, shape.mean, shape.std)


def is_finite_as_half(tensors: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a value that float16, which checkpoints are kept in, cannot hold; else None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not math.isfinite(tensor.abs().max().half().item() if tensor.numel() else 0.0):
            return name
    return None
