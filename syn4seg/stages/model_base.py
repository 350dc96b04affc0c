"""A base checkpoint from a trained model of this project: all of its classes, base and novel of then, are base classes now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.stages.base_data import base_photos

if TYPE_CHECKING:
    from syn4seg.segmenter.model_folder import ModelConfig
    from syn4seg.segmenter.network import Segmenter


def read_base_model(config: Config) -> tuple[Segmenter, ModelConfig]:
    """Return the network of the model that `base.checkpoint` names, as it is, and its config.json.

    Raises:
        UserError: there is no such model, it is damaged, or a key contradicts it.
    """
    from syn4seg.segmenter.model_folder import find_model, read_model

    settings, key = config.segmenter, f"base.checkpoint={config.base.checkpoint}"
    try:
        segmenter, found = read_model(find_model(config.base.checkpoint))
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    names = tuple(entry.name for entry in found.classes[1:])
    if names != config.base.classes:
        raise UserError(
            f"base.classes has {len(config.base.classes)} names, but they are not those of {key}, in their order: "
            f"{', '.join(names[:20])}; `syn4seg extend` writes them"
        )
    own = {"size": found.canvas.size, "canvas": found.canvas.kind, "align_corners": segmenter.align_corners}
    for name, value in (own | {"cosine": segmenter.cosine}).items():
        if getattr(settings, name) != value:
            raise UserError(f"segmenter.{name}={getattr(settings, name)}: {key} has {value}; set segmenter.{name}={value}")
    return segmenter, found


def model_facts(found: ModelConfig) -> dict[str, Any]:
    """Return what base.json says of a model: no path."""
    about = found.provenance
    of = ", ".join(f"{key} {about[key]}" for key in ("run", "row", "draw", "data", "fold") if key in about)
    novel = [entry.name for entry in found.classes if entry.kind == "novel"]
    notes = [f"{len(found.classes) - 1} classes of a trained model ({of}); novel ones of then: {', '.join(novel) or 'none'}"]
    return {"sha256": found.weights.sha256, "family": "syn4seg model", "notes": notes}


def check_base_data(config: Config, dataset: Dataset, fold: Fold) -> None:
    """Check that base images can be had from where `novel.base_data` says, and that masks say what they are taken to say.

    Raises:
        UserError: base classes have no masks, but they are to be read; or there are no photos.
    """
    novel, absent = config.novel, [fold.names[k - 1] for k in fold.base if k > len(dataset.classes)]
    if novel.base_photos is not None and novel.base_data != "predicted":
        raise UserError(
            f"novel.base_photos={novel.base_photos}: it is not read with novel.base_data={novel.base_data}; leave it empty"
        )
    if absent and novel.base_data == "labelled":
        raise UserError(
            f"novel.base_data=labelled: the masks of {config.data.root or config.data.source} have no class {absent[0]!r}, which "
            f"the model has ({len(absent)} such); set novel.base_data=none, or predicted with novel.base_photos=FOLDER"
        )
    if absent and config.data.base_in_support == "kept":
        raise UserError(
            f"data.base_in_support=kept: the masks have no class {absent[0]!r}, which the model has, so its objects would be "
            "taught as background; leave it at background"
        )
    if novel.base_data == "predicted" and novel.base_photos is None and config.data.fold == "all":
        raise UserError(
            "novel.base_data=predicted: the images of the data set are annotated ones of new classes; set "
            "novel.base_photos=FOLDER of photos without masks, or novel.base_data=none"
        )
    base_photos(config, dataset)
