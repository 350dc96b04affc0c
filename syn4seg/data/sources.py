"""The data sets that `data.source` may name: one line each. See docs/extending.md for how one is added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syn4seg.config.sections import DataConfig
from syn4seg.data.datasets import Dataset, EmbeddedDataset
from syn4seg.errors import UserError, did_you_mean

EMBEDDED_TRAIN, EMBEDDED_VAL = 6000, 300
"""Images of the embedded world where `data.train_images` and `data.val_images` are empty."""


@dataclass(frozen=True)
class DatasetSource:
    """How a data set is opened.

    Attributes:
        open: from the section `data` to the data set; raises UserError if it is incomplete, not prepared or damaged.
        needs_root: whether `data.root` must be given.
        prepare: called as prepare(root, masks, progress=..., note=...); builds what `open` reads from official files, and
            returns what it did. None where nothing is to be prepared.
    """

    open: Callable[[DataConfig], Dataset]
    needs_root: bool = True
    prepare: Callable[..., dict[str, Any]] | None = None


def _open_embedded(data: DataConfig) -> Dataset:
    return EmbeddedDataset(data.train_images or EMBEDDED_TRAIN, data.val_images or EMBEDDED_VAL)


def _open_folder(data: DataConfig) -> Dataset:
    from syn4seg.data.class_table import ALL
    from syn4seg.data.folder import FolderDataset

    return FolderDataset(str(data.root), data.exif, data.fold == ALL)


def _open_pascal(data: DataConfig) -> Dataset:
    from syn4seg.data.pascal import PascalDataset

    return PascalDataset(str(data.root), data.train_list)


def _open_coco(data: DataConfig) -> Dataset:
    from syn4seg.data.coco import CocoDataset

    return CocoDataset(str(data.root), data.masks)


def _prepare_pascal(root: Path, masks: str, **reports: Any) -> dict[str, Any]:
    from syn4seg.data.prepare import prepare_pascal

    return prepare_pascal(root, **reports)


def _prepare_coco(root: Path, masks: str, **reports: Any) -> dict[str, Any]:
    from syn4seg.data.prepare import prepare_coco

    return prepare_coco(root, masks, **reports)  # pyright: ignore[reportArgumentType]


DATASETS = {
    "embedded": DatasetSource(_open_embedded, needs_root=False),
    "folder": DatasetSource(_open_folder),
    "pascal": DatasetSource(_open_pascal, prepare=_prepare_pascal),
    "coco": DatasetSource(_open_coco, prepare=_prepare_coco),
}
"""Name in `data.source` -> how it is opened."""


def dataset_source(name: str) -> DatasetSource:
    """Return the entry of `DATASETS` for a value of `data.source`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in DATASETS:
        expected = f"expected one of {', '.join(DATASETS)}{did_you_mean(name, DATASETS)}"
        raise UserError(f"data.source={name}: unknown data set; {expected}")
    return DATASETS[name]


def open_dataset(data: DataConfig) -> Dataset:
    """Open the data set that a section `data` describes, whole.

    Raises:
        UserError: `data.source` names none, `data.root` is missing, or the files are incomplete, not prepared or damaged.
    """
    source = dataset_source(data.source)
    if source.needs_root and data.root is None:
        raise UserError(f"data.root is empty, but data.source is {data.source!r}: set data.root=FOLDER")
    return source.open(data)
