"""A base checkpoint from a network of transformers or torchvision: labels matched with base classes, classifier rows taken over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.seeds import seeded
from syn4seg.stages.setup import base_images, canvas_of, training_device

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.network import Segmenter
    from syn4seg.segmenter.semantic_networks import SemanticShape
    from syn4seg.segmenter.semantic_sources import Described, SemanticNetwork

IMAGES, CELLS = 128, 128
"""Base training images on which the background row is fitted, and random cells of each."""


def check_network(config: Config, fold: Fold) -> None:
    """Read the network that `base.checkpoint` names and refuse one that does not fit; a hub id is fetched.

    Raises:
        UserError: there is no such network, its classifier is not linear, it lacks a base class, or a key contradicts it.
    """
    if config.segmenter.weights is not None:
        raise UserError(
            f"segmenter.weights={config.segmenter.weights}: base.checkpoint={config.base.checkpoint} is a whole network with its "
            "own weights; leave segmenter.weights empty"
        )
    _load(config, fold)


def network_warnings(config: Config, fold: Fold) -> list[str]:
    """Return a line that names the novel classes which the network knows already, if there are any."""
    known = _known_novel(config, fold, _describe(config, fold))
    if not known:
        return []
    return [
        f"base.checkpoint={config.base.checkpoint} has learned {', '.join(known)} with masks: novel classes of this fold are not "
        "new to it, and their scores say nothing about few shots"
    ]


def import_network(config: Config, dataset: Dataset, fold: Fold) -> tuple[Segmenter, SemanticShape, dict[str, Any]]:
    """Return the network as a segmenter of background and base classes, its description, and facts for base.json.

    Raises:
        UserError: as `check_network`.
    """
    from syn4seg.segmenter.network import Segmenter
    from syn4seg.segmenter.semantic_classes import base_rows, merged_rows

    network = _load(config, fold)
    rows = base_rows(network.names, network.shape.labels, _names(fold, fold.base), config.base.names)
    segmenter = Segmenter(network.backbone, 1 + len(rows), align_corners=network.align_corners, bottleneck=False).eval()
    cells = network.weight[:0] if len(rows) + 1 == network.shape.labels else _cells(config, dataset, fold, segmenter)
    weight, bias, agreed = merged_rows(network.weight, network.bias, rows, cells)
    segmenter.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    segmenter.cpu()
    notes = [f"rows of the base classes, in their order: {rows} of {network.shape.labels}"]
    if agreed is not None:
        notes.append(
            f"the background row stands for {network.shape.labels - len(rows)} other labels, fitted on base training images "
            f"without their masks: {agreed:.1%} of the cells that were held out keep their class"
        )
    known = _known_novel(config, fold, _describe(config, fold))
    return segmenter, network.shape, {"sha256": network.sha256, "notes": notes, "knows_novel": known}


def _names(fold: Fold, ids: Sequence[int]) -> list[str]:
    return [fold.names[k - 1] for k in ids]


def _describe(config: Config, fold: Fold, *, weights: bool = False) -> Described:
    from syn4seg.segmenter.model_folder import is_model_folder
    from syn4seg.segmenter.semantic_classes import base_rows
    from syn4seg.segmenter.semantic_sources import describe

    if unknown := sorted(set(config.base.names) - set(fold.names)):
        raise UserError(f"base.names: {unknown[0]!r} is no class of the data set; expected some of {', '.join(fold.names[:20])}")
    if is_model_folder(config.base.checkpoint):
        raise UserError(
            f"base.checkpoint={config.base.checkpoint}: is a trained model of this project; `syn4seg extend` takes it, or set "
            "base.classes to the names of its classes in their order"
        )
    try:
        described = describe(config.base.checkpoint, weights=weights)
        base_rows(described.names, described.shape.labels, _names(fold, fold.base), config.base.names)
    except UserError as error:
        raise UserError(f"base.checkpoint={config.base.checkpoint}: {error}") from None
    return described


def _load(config: Config, fold: Fold) -> SemanticNetwork:
    from syn4seg.segmenter.semantic_sources import load

    described, wanted = _describe(config, fold, weights=True), config.segmenter.align_corners
    try:
        network = load(described, config.segmenter.size)
    except UserError as error:
        raise UserError(f"base.checkpoint={config.base.checkpoint}: {error}") from None
    if network.align_corners != wanted:
        raise UserError(
            f"segmenter.align_corners={wanted}: {network.shape.title} brings its logits to pixels the other way; set "
            f"segmenter.align_corners={str(network.align_corners).lower()}"
        )
    return network


def _known_novel(config: Config, fold: Fold, described: Described) -> list[str]:
    from syn4seg.segmenter.semantic_classes import match_rows

    novel = _names(fold, fold.novel)
    try:
        return sorted(match_rows(described.names, described.shape.labels, novel, config.base.names))
    except UserError as error:
        raise UserError(f"base.checkpoint={config.base.checkpoint}: {error}") from None


def _cells(config: Config, dataset: Dataset, fold: Fold, segmenter: Segmenter) -> Tensor:
    """Return features (n, D) of random cells of randomly drawn base training images; none of a cell beside an image."""
    import torch

    ids, canvas = base_images(config, dataset, fold), canvas_of(config)
    segmenter.to(training_device(config))
    drawn = [ids[i] for i in seeded("background-images", config.seed).permutation(len(ids))[:IMAGES]]
    parts = []
    for sample_id in drawn:
        image = dataset.image(sample_id)
        with torch.no_grad():
            features = segmenter.features(segmenter.prepare(canvas.image(image)))[0]
        rows, columns = (
            max(1, cells * side // canvas.size) for cells, side in zip(features.shape[1:], canvas.shape(image.shape), strict=True)
        )
        inside = features[:, :rows, :columns].flatten(1)
        chosen = seeded("background-cells", config.seed, sample_id).permutation(inside.shape[1])[:CELLS]
        parts.append(inside[:, torch.from_numpy(np.sort(chosen)).to(inside.device)].T.float().cpu())
    return torch.cat(parts)
