"""Backbones of the transformers library (DINOv2, ConvNeXt, Swin, CLIP, ...): a folder or hub id in, the deepest feature map out.

Nothing in a folder is run (no remote code), a half-precision checkpoint is loaded as float32, and tensors that are missing
from one are an error instead of random numbers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.segmenter.resnet import RESNETS

EXPECTED = (
    f"expected 'embedded', {', '.join(map(repr, RESNETS))}, a transformers AutoBackbone folder or hub id, or "
    "'package.module:factory'"
)
Triple = tuple[float, float, float]
CLIP = "clip_vision_model"
"""Kind of configuration of CLIP's image tower."""
PROBE = 6720
"""Side of the image on which the stride is counted: a multiple of every stride in use, 2^6 x 3 x 5 x 7."""


class LastMap(nn.Module):
    """The deepest feature map of a transformers backbone, of an image stretched to a multiple of the stride.

    Without stretching, patches that do not fit are cut off (DINOv2, ConvNeXt) or filled up with black (Swin): the map
    would then show less or more than the image, and logits brought back to the image would be shifted.
    """

    def __init__(self, net: nn.Module, stride: int):
        super().__init__()
        self.net, self.stride = net, stride

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (-(-side // self.stride) * self.stride for side in x.shape[2:])
        if (rows, columns) != tuple(x.shape[2:]):
            x = F.interpolate(x, (rows, columns), mode="bilinear", align_corners=False)
        return deepest_map(self.net, x)


def deepest_map(net: Any, x: Tensor) -> Tensor:
    """Return the deepest map (N, D, h, w) of normalised images (N, 3, H, W) whose sides the stride divides.

    Of CLIP's image tower, which is no AutoBackbone: the tokens of its last layer without the class token, laid out as a map, with
    positions interpolated where the image is not of its own size.
    """
    if net.config.model_type != CLIP:
        return net(x).feature_maps[-1]
    rows, columns = (side // net.config.patch_size for side in x.shape[2:])
    tokens = net(x, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    return tokens.transpose(1, 2).unflatten(2, (rows, columns))


def may_be_pretrained(name: str) -> bool:
    """Return whether a name is a folder or may be a hub id, OWNER/NAME; anything else needs no request to be refused."""
    return Path(name).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def load_pretrained(name: str) -> tuple[nn.Module, int, int, tuple[Triple, Triple] | None]:
    """Return module (float32, eval mode), channels, stride, and (mean, standard deviation) in [0, 1] if the folder says them.

    Raises:
        UserError: unknown, of another kind, or not whole.
    """
    from transformers.utils import logging

    kind, skeleton = _skeleton(name)
    channels, stride = _shape(name, skeleton)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of missing tensors is judged here
    try:
        net, report = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        raise UserError(
            f"backbone {name!r} cannot be loaded ({reason(error)}); expected config.json and a whole "
            "model.safetensors: download it again"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    # norms of the outputs start as plain normalisations; a checkpoint of the bare network does not have them
    lost = sorted(k for k in report["missing_keys"] if not k.startswith("hidden_states_norms."))
    lost += sorted(str(k) for k in report["mismatched_keys"])
    if lost:
        raise UserError(
            f"backbone {name!r}: its weights lack {len(lost)} tensors of {kind.__name__}, e.g. {lost[0]!r}; is the "
            "folder's config.json of another network?"
        )
    return LastMap(net.eval(), stride), channels, stride, _normalisation(name)


def describe_pretrained(module: nn.Module) -> dict[str, Any] | None:
    """Return the configuration of a module of `load_pretrained`, without the place that it came from; None for any other module."""
    if not isinstance(module, LastMap):
        return None
    described: dict[str, Any] = json.loads(module.net.config.to_json_string(use_diff=False))  # pyright: ignore
    return {key: value for key, value in described.items() if not key.startswith("_") and key != "auto_map"}


def build_described(description: dict[str, Any]) -> tuple[nn.Module, int, int]:
    """Return module, channels and stride of a backbone with random weights, of what `describe_pretrained` gave.

    Raises:
        UserError: it describes no backbone of transformers.
    """
    kind = str(description.get("model_type"))
    try:
        from transformers import AutoConfig

        network, config = _network_of(AutoConfig.for_model(**description))
        with torch.device("meta"):
            skeleton = network(config).eval()
        channels, stride = _shape(kind, skeleton)
        return LastMap(network(config).eval(), stride), channels, stride
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"a transformers backbone of the kind {kind[:80]!r} cannot be built ({reason(error)})") from error


def check_pretrained(name: str, size: int, key: str = "segmenter.size") -> None:
    """Check that `load_pretrained(name)` will find its files and that the canvas is large enough; load no weights.

    Args:
        size: side of the canvas.
        key: of the configuration that sets it.

    Raises:
        UserError: a file is missing or cut short, or the canvas too small.
    """
    skeleton = _skeleton(name)[1]
    stride = _shape(name, skeleton)[1]
    if size < 2 * stride:
        raise UserError(
            f"backbone {name!r} has stride {stride}: a canvas of {key}={size} gives it a single cell; set "
            f"{key} to {2 * stride} or more"
        )
    folder = Path(name)
    if not folder.is_dir():
        return
    from safetensors import SafetensorError, safe_open

    for part in _weight_files(folder):
        if not part.is_file():
            raise UserError(f"backbone {name!r}: {part.name} is missing from the folder; download it again")
        try:
            if part.suffix == ".safetensors":  # its header says how long the file is
                with safe_open(part, "pt"):
                    pass
        except SafetensorError as error:
            raise UserError(f"backbone {name!r}: {part.name} is cut short ({error}); download it again") from error


def empty_pretrained(name: str) -> tuple[nn.Module, int, int]:
    """Return module, channels and stride of a backbone on the meta device, from its configuration alone.

    Raises:
        UserError: unknown, or of another kind.
    """
    skeleton = _skeleton(name)[1]
    channels, stride = _shape(name, skeleton)
    return LastMap(skeleton, stride), channels, stride


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold, or should hold, a folder's weights; in the order in which transformers looks for them."""
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        if not (folder / name).is_file():
            continue
        if not name.endswith(".json"):
            return [folder / name]
        try:
            return sorted(folder / Path(part).name for part in json.loads((folder / name).read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / name} is no index of weight files; download the folder again") from error
    return [folder / "model.safetensors"]


def _skeleton(name: str) -> tuple[Any, nn.Module]:
    """Return the class of a backbone, and an empty one on the meta device, from its configuration alone."""
    from transformers import AutoConfig

    try:  # AutoBackbone.from_pretrained contacts the hub even for a folder, so the class is looked up here
        kind, config = _network_of(AutoConfig.from_pretrained(name, trust_remote_code=False))
        with torch.device("meta"):
            return kind, kind(config).eval()
    except Exception as error:
        raise UserError(f"backbone {name!r} is unknown ({reason(error)}); {EXPECTED}") from error


def _network_of(config: Any) -> tuple[Any, Any]:
    """Return the class of the backbone that a configuration describes, and the part of the configuration that it reads."""
    from transformers import MODEL_FOR_BACKBONE_MAPPING, CLIPVisionModel

    if config.model_type == "clip":  # image and text tower in one
        config = config.vision_config
    if config.model_type == CLIP:
        return CLIPVisionModel, config
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise UserError(f"transformers has no AutoBackbone of the kind {config.model_type!r}")
    return MODEL_FOR_BACKBONE_MAPPING[type(config)], config


def _shape(name: str, skeleton: nn.Module) -> tuple[int, int]:
    """Return channels and stride of the deepest map, counted on a large empty image."""
    try:
        with torch.device("meta"), torch.no_grad():
            _, channels, side, _ = deepest_map(skeleton, torch.zeros(1, 3, PROBE, PROBE)).shape
    except Exception as error:
        raise UserError(
            f"backbone {name!r} takes no images of other sizes than its own ({reason(error)}); choose another"
        ) from error
    return channels, PROBE // side


def _normalisation(name: str) -> tuple[Triple, Triple] | None:
    """Return the mean and standard deviation as preprocessor_config.json has them."""
    from transformers import ImageProcessingMixin

    try:
        facts = ImageProcessingMixin.get_image_processor_dict(name)[0]
    except OSError:
        return None
    if not facts.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = facts.get("image_mean"), facts.get("image_std")
    if mean is None or std is None:
        return None
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(
            f"backbone {name!r}: preprocessor_config.json has image_mean {mean} and image_std {std}; expected three "
            "numbers each, the latter above 0"
        )
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def reason(error: Exception) -> str:
    """Return the kind of an error and the first line of its text."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
