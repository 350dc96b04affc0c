"""Where a semantic segmentation network comes from: a transformers folder or hub id, or `torchvision:NAME[:FILE]`.

Only safetensors are read of a transformers folder and only tensors of a torch file; nothing in either is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.models import transformers_folder
from syn4seg.segmenter import semantic_networks as networks
from syn4seg.segmenter.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, read_weights
from syn4seg.segmenter.pretrained import reason
from syn4seg.segmenter.semantic_networks import TORCHVISION, SemanticShape

PREFIX = "torchvision:"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_JSON = 20 * 2**20
EXPECTED = (
    "expected shipped, train, a checkpoint file, a folder or hub id of a transformers ...ForSemanticSegmentation, or "
    "torchvision:NAME (its own weights) or torchvision:NAME:FILE"
)


@dataclass(frozen=True)
class Described:
    """A network as its configuration alone describes it.

    Attributes:
        shape: without its classifiers, which are found by running it.
        names: of its labels, by row; None for a file whose rows have no names.
        folder: of transformers; None for torchvision.
        file: of torchvision's weights; None where they are torchvision's own, which are fetched.
    """

    shape: SemanticShape
    names: tuple[str, ...] | None
    folder: Path | None = None
    file: Path | None = None


@dataclass(frozen=True)
class SemanticNetwork:
    """A network that is cut before its classifier.

    Attributes:
        backbone: what stands before it.
        shape: its description, for a checkpoint's header.
        weight: (labels, D).
        bias: (labels,).
        names: of the labels, or None.
        align_corners: how its logits come to the library's own grid.
        sha256: of the file of weights, or of its parts one after the other.
    """

    backbone: Backbone
    shape: SemanticShape
    weight: Tensor
    bias: Tensor
    names: tuple[str, ...] | None
    align_corners: bool
    sha256: str


def describe(checkpoint: str, *, weights: bool = False) -> Described:
    """Describe a network from its configuration; of a hub id that is fetched, of a torchvision file the tensors' shapes are read.

    Args:
        weights: of a hub id the weights are fetched too.

    Raises:
        UserError: there is no such network, it is of another kind, or its configuration is not sound.
    """
    if checkpoint.startswith(PREFIX):
        return _describe_torchvision(checkpoint.removeprefix(PREFIX))
    folder = _folder(checkpoint, "*.json", *(["model*.safetensors"] if weights else []))
    config = _read_json(folder / "config.json")
    networks.check_config(config)
    kind = networks.network_class(config)
    try:
        parsed = networks.transformers_config(config)
        plain = json.loads(json.dumps(parsed.to_dict()))
        plain = {key: value for key, value in plain.items() if not key.startswith("_") and key != "auto_map"}  # places, code
        names = tuple(str(parsed.id2label[i]) for i in range(parsed.num_labels))
    except Exception as error:  # transformers checks configurations by raising whatever comes
        raise UserError(f"config.json is no configuration of {kind.__name__} ({reason(error)}); download it again") from error
    mean, std, blue_first = _normalisation(folder, type(parsed))
    shape = SemanticShape(
        library="transformers", kind=kind.__name__, config=plain, labels=len(names), mean=mean, std=std, blue_first=blue_first
    )
    return Described(shape, names, folder=folder)


def load(described: Described, size: int) -> SemanticNetwork:
    """Load the weights of a network, cut it before its classifier and compare it with the library's own logits.

    Args:
        described: of `describe(checkpoint, weights=True)`.
        size: side of the canvas in pixels.

    Raises:
        UserError: weights are missing, damaged, of another kind or not this network's, or its classifier is not linear.
    """
    shape, empty = networks.skeleton(described.shape, size)
    files = weight_files(described)
    net = _load_transformers(described, files) if described.folder else _load_torchvision(shape, files[0])
    bad = networks.is_finite_as_half(net.state_dict())
    if bad:
        raise UserError(f"{shape.title}: {bad!r} holds NaN, infinity or values too large for float16; take another checkpoint")
    features, weight, bias, corners = networks.take_apart(net, shape, size)
    backbone = replace(empty, module=features)
    return SemanticNetwork(backbone, shape, weight, bias, described.names, corners, _sha256(files))


def weight_files(described: Described) -> list[Path]:
    """Return the files that hold a network's weights; torchvision's own are fetched where they are not here.

    Raises:
        UserError: they are not there or damaged.
    """
    if described.folder is None:
        return [described.file or _torchvision_file(described.shape.kind, fetch=True)]
    return transformers_folder.weight_files(described.folder)


def source_path(checkpoint: str) -> Path | None:
    """Return the folder or file on this machine that holds a network; None if it is still to be fetched. Nothing is fetched."""
    if checkpoint.startswith(PREFIX):
        name, _, file = checkpoint.removeprefix(PREFIX).partition(":")
        return Path(file) if file else _torchvision_file(name, fetch=False) if name in TORCHVISION else None
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, local_files_only=True))
    except (OSError, ValueError):
        return None


def _folder(checkpoint: str, *patterns: str) -> Path:
    """Return a folder, or the snapshot of a hub id, of which only the files of these patterns are fetched."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", checkpoint):
        raise UserError(f"no such file, folder or hub id; {EXPECTED}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(checkpoint, allow_patterns=list(patterns)))
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise UserError(
            f"no such folder, and it cannot be fetched from the hub ({reason(error)}); check name and network, or fetch it "
            f"elsewhere with `hf download {checkpoint} --local-dir FOLDER` and set base.checkpoint=FOLDER"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        raise UserError(f"{path.name} is missing from {path.parent}; expected a folder of `save_pretrained`") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path.name} cannot be read ({reason(error)}); download it again") from None
    return content


def _normalisation(folder: Path, config_class: Any) -> tuple[networks.Three, networks.Three, bool]:
    """Return mean and deviation of [0, 1] and whether the network takes BGR: preprocessor_config.json, then the kind's defaults."""
    from transformers import IMAGE_PROCESSOR_MAPPING

    kinds: Any = IMAGE_PROCESSOR_MAPPING.get(config_class, None)
    kind = next(iter(kinds.values())) if isinstance(kinds, dict) else kinds
    file = folder / "preprocessor_config.json"
    given = _read_json(file) if file.is_file() else {}

    def fact(key: str, otherwise: Any) -> Any:
        value = given.get(key, getattr(kind, key, None))
        return otherwise if value is None else value

    factor = fact("rescale_factor", 1 / 255) if fact("do_rescale", True) else 1.0
    mean, std = fact("image_mean", IMAGENET_MEAN), fact("image_std", IMAGENET_STD)
    if not fact("do_normalize", False):
        mean, std = (0.0,) * 3, (1.0,) * 3
    try:
        (r, g, b), (sr, sg, sb) = ([float(v) / (255 * float(factor)) for v in values] for values in (mean, std))
        sound = all(abs(v) < 1e6 for v in (r, g, b)) and all(0 < v < 1e6 for v in (sr, sg, sb))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        sound = False
    if not sound:
        raise UserError(
            f"preprocessor_config.json has image_mean {str(mean)[:80]}, image_std {str(std)[:80]} and rescale_factor "
            f"{str(factor)[:20]}; expected three numbers each, the latter ones above 0"
        )
    return (r, g, b), (sr, sg, sb), bool(fact("do_flip_channel_order", False))


def _load_transformers(described: Described, files: list[Path]) -> nn.Module:
    from transformers.utils import logging

    folder, shape = described.folder, described.shape
    kind, config = networks.network_class(shape.config), networks.transformers_config(shape.config)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # its report of missing tensors is judged here
    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    try:
        net, report = kind.from_pretrained(folder, config=config, trust_remote_code=False, output_loading_info=True, **options)
    except Exception as error:  # transformers raises whatever comes
        raise UserError(f"{shape.title} cannot be loaded ({reason(error)}); is the folder whole? Download it again") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    lost = sorted(str(k) for key in ("missing_keys", "mismatched_keys") for k in report[key])
    lost = [name for name in lost if not name.lstrip("('").startswith(networks.AUXILIARY)]
    if lost:
        raise UserError(
            f"{files[0].name} lacks {len(lost)} tensors of {shape.title}, e.g. {lost[0]}; is config.json of another network?"
        )
    for name in networks.AUXILIARY:
        if getattr(net, name, None) is not None:
            setattr(net, name, None)
    return net.float().eval()


def _describe_torchvision(given: str) -> Described:
    name, _, file = given.partition(":")
    if name not in TORCHVISION:
        raise UserError(f"torchvision has no segmentation network {name!r}; expected one of {', '.join(TORCHVISION)}")
    own = _torchvision_weights(name).meta["categories"]
    labels = _torchvision_labels(read_weights(file), name, file) if file else len(own)
    names = tuple(own) if labels == len(own) else None
    shape = SemanticShape(library="torchvision", kind=name, labels=labels, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Described(shape, names, file=Path(file) if file else None)


def _torchvision_labels(state: dict[str, Tensor], name: str, file: str) -> int:
    last = "classifier.low_classifier.weight" if name.startswith("lraspp") else "classifier.4.weight"
    if last not in state or state[last].ndim != 4 or not 1 <= len(state[last]) <= 65_536:
        raise UserError(f"{file} has no classifier {last!r} of {name}; it has e.g. {sorted(state)[:3]}")
    return len(state[last])


def _torchvision_weights(name: str) -> Any:
    import torchvision

    return torchvision.models.get_model_weights(name)["COCO_WITH_VOC_LABELS_V1"]  # pyright: ignore[reportIndexIssue]


def _torchvision_file(name: str, *, fetch: bool) -> Path:
    """Return the place of torchvision's own weights in torch's cache."""
    weights = _torchvision_weights(name)
    if fetch:
        try:
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"torchvision's own weights of {name} cannot be fetched ({reason(error)}); fetch {weights.url} elsewhere and set "
                f"base.checkpoint={PREFIX}{name}:FILE"
            ) from error
    return Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]


def _load_torchvision(shape: SemanticShape, file: Path) -> nn.Module:
    net = networks.build_network(shape)
    own, state = net.state_dict(), read_weights(file)
    state = {k: v for k, v in state.items() if not k.startswith(networks.AUXILIARY)}
    for name in sorted({*own, *state}):
        if name not in state and name.endswith("num_batches_tracked"):
            continue
        have, want = (tuple(table[name].shape) if name in table else "missing" for table in (state, own))
        if have != want:
            wanted = "which the network does not have" if want == "missing" else f"expected {want}"
            raise UserError(f"{file} does not fit {shape.kind}: {name!r} is {have}, {wanted}; is it of another network?")
    net.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=False)
    return net


def _sha256(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as f:
            while block := f.read(2**24):
                total.update(block)
    return total.hexdigest()
