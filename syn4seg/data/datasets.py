"""What a data set is (`Dataset`), what a fold is (`Fold`), and the embedded data set; masks here carry the dataset's own ids.

A dataset id k (1-based) is `classes[k - 1]`; a class index is what networks and metrics see. Only `Fold` turns one into
the other, through 256-entry lookup tables: 0 background, 1..B base, B+1..B+M novel, both by ascending id (the GFSS
field's order), 255 unlabeled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from syn4seg.data import embedded
from syn4seg.data.class_table import fold_number
from syn4seg.errors import UserError
from syn4seg.schema import BACKGROUND, UNLABELED


class Dataset(Protocol):
    """Images and masks by id. `folds[f]` are the novel dataset ids of fold f; everything else is base there.

    A data set may also have `pixels(sample_id)` (pixels per dataset id, from an index), `unpublished` (a line for each list that
    is not the published one), `manifest` (path of a file that changes whenever the data set does), `fold_names` (parallel to
    `folds`), and `check_files` with `files_digest` (see `folder.FolderDataset`), where nobody has read its files before.
    """

    classes: tuple[str, ...]
    folds: tuple[tuple[int, ...], ...]
    train: list[str]
    val: list[str]

    def check(self) -> None:
        """Raise UserError if the file of a listed id is missing; open none."""
        ...

    def image(self, sample_id: str) -> np.ndarray:
        """Return the RGB image uint8 (H, W, 3)."""
        ...

    def mask(self, sample_id: str) -> np.ndarray:
        """Return dataset ids uint8 (H, W): 0 background, 1..len(classes), 255 unlabeled."""
        ...

    def areas(self, sample_id: str) -> dict[int, float]:
        """Return the share of the image that each dataset id covers, in (0, 1]; masks are read once."""
        ...


@dataclass(frozen=True)
class Fold:
    """Which classes are base and which are novel.

    Attributes:
        names: class names by dataset id (`names[id - 1]`); the background has no entry.
        base: dataset ids of the base classes, ascending; those of a trained model in the order of its rows.
        novel: dataset ids of the novel classes, ascending.
    """

    names: tuple[str, ...]
    base: tuple[int, ...]
    novel: tuple[int, ...]

    @property
    def to_index(self) -> np.ndarray:
        """uint8 (256,): dataset id -> class index; ids of no class become 255."""
        table = np.full(256, UNLABELED, np.uint8)
        table[[BACKGROUND, *self.base, *self.novel]] = np.arange(1 + len(self.base) + len(self.novel))
        return table

    @property
    def to_base_index(self) -> np.ndarray:
        """uint8 (256,): as `to_index`, but novel ids become background, as in base training (method.md 5.2)."""
        table = self.to_index
        table[list(self.novel)] = BACKGROUND
        return table

    @property
    def index_names(self) -> tuple[str, ...]:
        """Names by class index, "background" first."""
        return ("background", *(self.names[k - 1] for k in (*self.base, *self.novel)))

    @property
    def novel_indices(self) -> range:
        """Class indices of the novel classes."""
        return range(1 + len(self.base), 1 + len(self.base) + len(self.novel))


def fold_of(dataset: Dataset, which: int | str) -> Fold:
    """Return a fold of a data set by its number or its name: fold 2 is "fold2" or "2", wherever a class table lists it.

    Raises:
        UserError: there is no such fold.
    """
    names: tuple[str, ...] = getattr(dataset, "fold_names", None) or tuple(f"fold{i}" for i in range(len(dataset.folds)))
    numbers = [fold_number(name) for name in names]
    if len(names) == 1 and numbers == [None]:
        numbers = [0]  # the only fold needs no number
    number = int(which) if str(which).isdecimal() and len(str(which)) < 10 else -1
    places = [i for i, name in enumerate(names) if name == str(which)] or [i for i, n in enumerate(numbers) if n == number]
    if not places:
        raise UserError(f"fold {which!r} does not exist; this data set has the folds {', '.join(names[:20])}")
    novel = tuple(sorted(dataset.folds[places[0]]))
    base = tuple(k for k in range(1, len(dataset.classes) + 1) if k not in novel)
    return Fold(tuple(dataset.classes), base, novel)


def extended_fold(fold: Fold, classes: Sequence[str]) -> Fold:
    """Return a fold whose base classes are those of a trained model, in the order of its rows: each keeps its class index.

    They need not be in the data set; those that are (by name, without case, spaces and punctuation) may have masks. Classes of the
    data set that are neither novel nor the model's are unlabeled.

    Args:
        fold: of the data set, for its novel classes.
        classes: names of the model's, without the background.

    Raises:
        UserError: the model has a novel class already, or all names together are too many for a mask.
    """
    names, base = list(fold.names), []
    for name in classes:
        same = [k for k, n in enumerate(names, 1) if n == name] or [k for k, n in enumerate(names, 1) if plain(n) == plain(name)]
        if not same:
            names.append(name)
            same = [len(names)]
        base.append(same[0])
    if known := [fold.names[k - 1] for k in fold.novel if k in base]:
        raise UserError(
            f"the model has learned {', '.join(map(repr, known))} already, so it cannot be new; take it out of the class table "
            "and its masks, or give it another name"
        )
    if len(names) >= UNLABELED:
        raise UserError(f"{len(names)} classes in all; a mask has values for {UNLABELED - 1}")
    for k, name in zip(base, classes, strict=True):
        names[k - 1] = name
    return Fold(tuple(names), tuple(base), fold.novel)


def plain(name: str) -> str:
    """Return a class name without case, spaces and punctuation, for comparisons."""
    return re.sub(r"[\W_]+", "", name.casefold())


def class_areas(mask: np.ndarray) -> dict[int, float]:
    """Return the share of a uint8 (H, W) mask that each value other than 0 and 255 covers."""
    counts = np.bincount(mask.ravel(), minlength=256)
    return {int(k): float(counts[k] / mask.size) for k in np.flatnonzero(counts) if k not in (BACKGROUND, UNLABELED)}


class EmbeddedDataset:
    """The embedded world as a data set: image i of a split is a pure function of (split, i), so there are no files.

    Args:
        train: images in the train list.
        val: images in the val list.
    """

    classes: tuple[str, ...] = embedded.CLASSES
    folds: tuple[tuple[int, ...], ...] = embedded.FOLDS

    def __init__(self, train: int = 1200, val: int = 300):
        self.train = [f"train-{i:06d}" for i in range(train)]
        self.val = [f"val-{i:06d}" for i in range(val)]

    def check(self) -> None:
        """Do nothing: there are no files."""

    def image(self, sample_id: str) -> np.ndarray:
        """Return the RGB image uint8 (64, 64, 3)."""
        return _draw_sample(sample_id)[0]

    def mask(self, sample_id: str) -> np.ndarray:
        """Return dataset ids uint8 (64, 64)."""
        return _draw_sample(sample_id)[1]

    def areas(self, sample_id: str) -> dict[int, float]:
        """Return the share of the image per dataset id."""
        return dict(_embedded_areas(sample_id))


@lru_cache(maxsize=8192)  # 16 KiB each
def _draw_sample(sample_id: str) -> tuple[np.ndarray, np.ndarray]:
    split, _, number = sample_id.partition("-")
    if split not in ("train", "val") or not number.isdecimal():
        raise UserError(f"id {sample_id!r} is not of the embedded data set; expected e.g. 'train-000012' or 'val-000003'")
    image, mask = embedded.draw(embedded.sample_scene(embedded.seeded("embedded", split, int(number))))
    image.setflags(write=False)
    mask.setflags(write=False)
    return image, mask


@lru_cache(maxsize=65536)
def _embedded_areas(sample_id: str) -> tuple[tuple[int, float], ...]:
    return tuple(class_areas(_draw_sample(sample_id)[1]).items())
