"""Parameters, bytes and FLOPs of SAM and of the segmenter, from their architectures on the meta device (see `sizes`)."""

from __future__ import annotations

import contextlib
import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syn4seg.errors import UserError
from syn4seg.labeling.grabcut import WITHOUT_WEIGHTS
from syn4seg.models.sam_folders import is_transformers_sam
from syn4seg.planning.sizes import ModelPart, counted, flops_of, part_of, read_json, tensor_shapes


@dataclass(frozen=True)
class SamSize:
    """A SAM.

    Attributes:
        part: all of it.
        encode_flops: per image, also where the image is not square (it is padded).
        box_flops: per box, decoding from the image's embedding.
        tokens: of the image encoder that attend to one another.
        heads: of its attention.
    """

    part: ModelPart
    encode_flops: int
    box_flops: int
    tokens: int
    heads: int


@counted
def sam_size(model: str) -> SamSize:
    """Count the parts of a SAM: a published or packaged name, a folder with config.json, or a checkpoint file (its header).

    One of transformers counts from its config.json, which is fetched of a hub id; `grabcut` and `none` have no parts.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    import torch

    if model in WITHOUT_WEIGHTS:
        return SamSize(part_of("sam", torch.nn.Identity()), 0, 0, 0, 0)
    if is_transformers_sam(model):
        return _transformers_sam_size(model)
    with torch.device("meta"):
        sam: Any = _sam_architecture(model)().requires_grad_(False)
        side, grid = sam.image_encoder.img_size, sam.prompt_encoder.image_embedding_size
        encode = flops_of(sam.image_encoder, torch.empty(1, 3, side, side))
        sparse, dense = sam.prompt_encoder(points=None, boxes=torch.empty(1, 4), masks=None)
        embedding = torch.empty(1, sam.prompt_encoder.embed_dim, *grid)
        box = flops_of(sam.mask_decoder, embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, False)
    blocks = getattr(sam.image_encoder, "blocks", None)
    tokens, heads = (grid[0] * grid[1], blocks[-1].attn.num_heads) if blocks else sam.image_encoder.window
    return SamSize(part_of("sam", sam), encode, box, tokens, heads)


def _transformers_sam_size(model: str) -> SamSize:
    import torch

    from syn4seg.models.refiners import Prompts
    from syn4seg.models.sam_transformers import empty_network

    sam = empty_network(model)
    try:
        with torch.device("meta"):
            encode = flops_of(sam.maps, torch.empty(1, 3, sam.side, sam.side))
            box = flops_of(sam.decode, [torch.empty(1, *shape) for shape in sam.shapes], Prompts(torch.empty(1, 4), None, None))
    except RuntimeError as error:
        raise UserError(f"config.json of {model}: its numbers do not fit together ({error}); fetch it again") from error
    return SamSize(part_of("sam", sam.network), encode, box, sam.cells**2, sam.heads)


def _sam_architecture(model: str) -> Callable[[], Any]:
    from syn4seg.models.sam import ARCHITECTURES, build_sam, encoder_shape, timm_sam
    from syn4seg.models.sam_files import EMBEDDED, PUBLISHED, WEIGHTS, known_sam

    known_sam(model)
    if model in PUBLISHED:
        return ARCHITECTURES[PUBLISHED[model].encoder]
    path = WEIGHTS if model == EMBEDDED else Path(model)
    if path.is_dir():
        return functools.partial(build_sam, read_json(path / "config.json"))
    tensors = _meta_tensors(path)
    small = timm_sam(tensors)
    return ARCHITECTURES[encoder_shape(tensors, path)] if small is None else small.build


def _meta_tensors(path: Path) -> dict[str, Any]:
    """Return name -> tensor on the meta device, of a checkpoint of which only the header is read."""
    import torch

    if path.suffix == ".safetensors":
        return {name: torch.empty(shape, device="meta") for name, (_, shape) in tensor_shapes(path).items()}
    try:
        state = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"SAM weights {path} cannot be read ({type(error).__name__}); download the file again") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}; expected a SAM checkpoint, a table of tensors")
    return state


@dataclass(frozen=True)
class SegmenterSize:
    """A segmenter on its canvas.

    Attributes:
        part: all of it.
        backbone: its backbone alone.
        flops: of one forward pass of one image; with the backward pass it is three times as many.
        backbone_flops: the backbone's share of them.
        features: D, h, w of the features before the classifier.
        trunk: numbers of one image that go into the bottleneck.
        kept: numbers that one image leaves for the backward pass: the outputs of all layers with parameters.
        backbone_kept: the backbone's share of them.
    """

    part: ModelPart
    backbone: ModelPart
    flops: int
    backbone_flops: int
    features: tuple[int, int, int]
    trunk: int
    kept: int
    backbone_kept: int


@counted
def segmenter_size(backbone: str, classes: int, channels: int, ppm_bins: tuple[int, ...], size: int) -> SegmenterSize:
    """Count the parts of the segmenter for images on a canvas of `size` pixels; a transformers backbone is loaded for it.

    Args:
        backbone: as for `load_backbone`.
        classes: rows of the classifier, background included.

    Raises:
        UserError: the backbone is unknown.
    """
    import torch

    from syn4seg.segmenter.backbones import load_backbone
    from syn4seg.segmenter.network import Segmenter

    built_here = backbone == "embedded" or backbone.startswith("resnet") or ":" in backbone
    with torch.device("meta") if built_here else contextlib.nullcontext():
        net = Segmenter(load_backbone(backbone, "none"), classes, channels, ppm_bins)
    return _measure(net.to("meta"), size)


@dataclass(frozen=True)
class FeatureSize:
    """A network that looks at a square image: all of it, FLOPs of an image, numbers of its largest layer's output."""

    part: ModelPart
    flops: int
    largest: int


@functools.cache
def feature_size(backbone: str, side: int) -> FeatureSize:
    """Count the parts of a network of `labeling.features`; of a transformers one the configuration alone is read.

    Args:
        backbone: as for `load_backbone`.
        side: pixels to which an image's long side is brought.

    Raises:
        UserError: the network is unknown.
    """
    import torch

    from syn4seg.segmenter.feature_networks import empty_network, fitted_shape

    network = empty_network(backbone)
    net, (side, _) = network.module.requires_grad_(False), fitted_shape((side, side), side, network.stride)
    image = torch.empty(1, 3, side, side, device="meta")
    with torch.no_grad(), _counted(net) as outputs:
        net(image)
    return FeatureSize(part_of("features", net), flops_of(net, image), max(outputs))


@functools.cache
def named_size(model: str) -> FeatureSize:
    """Count the parts of the SAM 3 of `evaluation.by_name`, from its config.json (of a hub id, fetched).

    FLOPs and the largest layer are of its image encoder, which does nearly all of the work.

    Raises:
        UserError: there is no such network, or its configuration is not sound.
    """
    import torch

    from syn4seg.models.sam_named import empty_detector

    net = empty_detector(model)
    side = net.config.vision_config.image_size
    image = torch.empty(1, 3, *((side, side) if isinstance(side, int) else side), device="meta")
    with torch.no_grad(), _counted(net.vision_encoder) as outputs:
        net.vision_encoder(image)
    return FeatureSize(part_of("by_name", net), flops_of(net.vision_encoder, image), max(outputs))


@functools.cache
def network_size(checkpoint: str, classes: int, size: int) -> SegmenterSize:
    """Count the parts of a network of transformers or torchvision as a segmenter, from its configuration (of a hub id, fetched).

    Args:
        checkpoint: `base.checkpoint`.
        classes: rows of the classifier, background included.

    Raises:
        UserError: there is no such network, or it is of another kind.
    """
    import torch

    from syn4seg.segmenter.network import Segmenter
    from syn4seg.segmenter.semantic_networks import skeleton
    from syn4seg.segmenter.semantic_sources import describe

    backbone = skeleton(describe(checkpoint).shape, size)[1]
    with torch.device("meta"):
        net = Segmenter(backbone, classes, bottleneck=False)
    return _measure(net, size)


@functools.cache
def model_size(checkpoint: str, classes: int, size: int) -> SegmenterSize:
    """Count the parts of the network of a trained model of this project (`base.checkpoint`) with `classes` rows.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    import torch

    from syn4seg.segmenter.model_folder import find_model, read_model

    net = read_model(find_model(checkpoint))[0].to("meta")
    with torch.device("meta"):
        net.weight, net.bias = (torch.nn.Parameter(torch.empty(classes, *part.shape[1:])) for part in (net.weight, net.bias))
    return _measure(net, size)


def _measure(net: Any, size: int) -> SegmenterSize:
    """Count the parts of a segmenter on the meta device."""
    import torch

    net = net.requires_grad_(False).eval()
    image = torch.empty(1, 3, size, size, device="meta")
    flops, backbone_flops = flops_of(net, image), flops_of(net.backbone, image)
    with torch.no_grad(), _counted(net) as kept, _counted(net.backbone) as backbone_kept:
        trunk = net.trunk(image)
        shape = net.bottleneck(trunk).shape
    return SegmenterSize(
        part_of("segmenter", net),
        part_of("backbone", net.backbone),
        flops,
        backbone_flops,
        (shape[1], shape[2], shape[3]),
        trunk.numel(),
        sum(kept),
        sum(backbone_kept),
    )


@contextlib.contextmanager
def _counted(net: Any):
    """Yield a list that fills with the number of outputs of every layer with parameters of its own."""
    counts: list[int] = []
    layers = [m for m in net.modules() if next(m.parameters(recurse=False), None) is not None and not hasattr(m, "ppm")]
    hooks = [layer.register_forward_hook(lambda _m, _x, y: counts.append(_numbers(y))) for layer in layers]
    yield counts
    for hook in hooks:
        hook.remove()


def _numbers(output: Any) -> int:
    """Return how many numbers a layer's output holds; layers of transformers may return several tensors."""
    return sum(_numbers(part) for part in output) if isinstance(output, list | tuple) else getattr(output, "numel", int)()
