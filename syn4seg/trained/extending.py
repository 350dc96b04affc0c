"""What `syn4seg extend` runs: the keys that make new classes of a model and a folder of a few annotated images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from syn4seg.data.class_table import ALL
from syn4seg.data.datasets import Fold, extended_fold, fold_of
from syn4seg.data.folder import FolderDataset
from syn4seg.errors import UserError
from syn4seg.segmenter.model_folder import find_model, own_config

if TYPE_CHECKING:
    from syn4seg.segmenter.model_folder import ModelConfig

MOST_SHOTS = 5
"""Annotated images of a class that are taken without being asked for."""
PHOTOS = "unlabeled"
"""Folder beside images/ whose photos, if there are any, the model labels itself (`novel.base_data=predicted`)."""


def extension_words(model: str, data: str, words: Sequence[str], trusted: bool = False) -> tuple[list[str], str]:
    """Return the words of `syn4seg run` that extend a model, and a line that says what is extended by what.

    What the model decides stands behind the given words, what is only a default before them.

    Args:
        model: folder or URL of a model, or of a run with one.
        data: folder with images/, masks/ and classes.json, which names the new classes; an ordinary data folder with `folds_novel`.
        words: a configuration (or none) and keys.
        trusted: the code that the model names as its backbone may be run.

    Raises:
        UserError: no model or data, a class that the model has, a class without an annotated image, or with too many.
    """
    found = own_config(find_model(model))
    names = [entry.name for entry in found.classes[1:]]
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    fixed = {"base.checkpoint": model, "base.classes": names, "data.source": "folder", "data.root": data}
    if decided := [key for key in fixed if key in given]:
        raise UserError(f"{decided[0]}={given[decided[0]]}: `syn4seg extend MODEL --data FOLDER` decides it; leave it out")
    has_folds = FolderDataset(data, all_new=True).fold_names != (ALL,)
    which = given.get("data.fold", "0") if has_folds else ALL
    dataset = FolderDataset(data, all_new=not has_folds)
    try:
        fold = extended_fold(fold_of(dataset, which), names)
    except UserError as error:
        raise UserError(f"--data {data}: {error}") from None
    counts = annotated_images(dataset, fold)
    most = max(counts.values())
    if most > MOST_SHOTS and "data.shots" not in given:
        name = max(counts, key=lambda n: counts[n])
        raise UserError(
            f"--data {data}: class {name!r} has {most} annotated images, and extend takes 1 to {MOST_SHOTS} of a class: name "
            f"fewer in train.txt, or set data.shots=K to have K drawn"
        )
    photos = Path(data) / PHOTOS
    usual = {"data.shots": most, "data.min_support_area": 0.0, "evaluation.rows": ["syn4seg"], "synthesis.class_name_bank": False}
    usual |= {"novel.base_data": "predicted", "novel.base_photos": str(photos)} if photos.is_dir() else {"novel.base_data": "none"}
    if given.get("novel.base_data") not in (None, "predicted"):
        usual.pop("novel.base_photos", None)
    config = list(words[:1]) if words and "=" not in words[0] else []
    if not config:
        usual["name"] = "extended"
    fixed |= _network_keys(found, trusted) | ({} if has_folds else {"data.fold": ALL})
    new = ", ".join(f"{name} ({n})" for name, n in counts.items())
    how = {"predicted": "photos that it labels itself", "labelled": "labelled base images"}
    base = given.get("novel.base_data", usual["novel.base_data"])
    line = f"{len(names)} classes of {model} stay; new, with annotated images: {new}; base data: {how.get(str(base), 'none')}"
    return [*config, *map(_word, usual.items()), *words[len(config) :], *map(_word, fixed.items())], line


def annotated_images(dataset: FolderDataset, fold: Fold) -> dict[str, int]:
    """Return how many images of the train list show each novel class, by name.

    Raises:
        UserError: a class has none, or a mask is damaged or has a value that is no class.
    """
    counts = {fold.names[k - 1]: sum(k in dataset.areas(sample_id) for sample_id in dataset.train) for k in fold.novel}
    if missing := [name for name, count in counts.items() if not count]:
        values = ", ".join(f"{k} for {fold.names[k - 1]!r}" for k in fold.novel[:5])
        raise UserError(
            f"--data {dataset.root}: no mask shows the new class {missing[0]!r}; annotate one image at least (mask values: "
            f"{values}; 0 for everything else)"
        )
    return counts


def _network_keys(found: ModelConfig, trusted: bool) -> dict[str, object]:
    """Return the keys that say how the network of a model sees an image, and what it is built on, for records."""
    network, canvas = found.network, found.canvas
    keys: dict[str, object] = {"segmenter.size": canvas.size, "segmenter.canvas": canvas.kind}
    keys |= {"segmenter.align_corners": network.align_corners, "segmenter.cosine": network.cosine}
    name = network.backbone if isinstance(network.backbone, str) else network.backbone.title
    if ":" not in name or trusted:  # a name with a colon is code, which a stored file must not name
        keys["segmenter.backbone"] = name
    return keys


def _word(pair: tuple[str, object]) -> str:
    return f"{pair[0]}={json.dumps(pair[1], ensure_ascii=False)}"
