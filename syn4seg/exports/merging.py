"""Real images beside the samples of a run (`--merge`), and the data set's own ids as label values (`--ids dataset`).

Classes are matched by name. Only the train list is read: an image of the val list must never be trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, plain
from syn4seg.data.folder import FolderDataset
from syn4seg.errors import StoreError, UserError
from syn4seg.exports.choice import ExportOptions
from syn4seg.exports.lineage import LINEAGE
from syn4seg.exports.samples import ExportPart, ExportSample
from syn4seg.schema import BACKGROUND, UNLABELED
from syn4seg.stages.setup import load_dataset
from syn4seg.store.files import map_threads
from syn4seg.store.images import pixel_digest
from syn4seg.store.samples import id_part

OF_RUN = "run"
"""Word of `--merge` for the data set of the run itself."""
REAL = "real"
"""Verdict, bank and beginning of the id of a real image; no id of a synthetic sample begins so."""


def dataset_values(config: Config) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names by dataset id, "background" first, and uint8 (256,): class index of the run -> dataset id.

    Raises:
        UserError: the data set is not there.
    """
    fold = load_dataset(config)[1]
    values = np.full(256, UNLABELED, np.uint8)
    ids = [BACKGROUND, *fold.base, *fold.novel]
    values[: len(ids)] = ids
    return ("background", *fold.names), values


class RealImages:
    """The train list of a real data set, as samples of an export.

    Args:
        options: `merge` names the data set; `part_of` says which image is in train.
        names: class names by exported label value; pixels of any other class are unlabeled.

    Attributes:
        name: of the data set, without the path to it.
        unknown: its classes that the export does not have.
        splits: those that have images, sorted.

    Raises:
        UserError: the data set is not there or incomplete, or none of its classes is one of the export.
    """

    def __init__(self, options: ExportOptions, config: Config, names: Sequence[str]):
        place = str(options.merge)
        self.name = config.data.source if place == OF_RUN else Path(place).name
        self._dataset = load_dataset(config)[0] if place == OF_RUN else _open(place)
        known = {plain(name): value for value, name in enumerate(names) if value != BACKGROUND}
        self._values = np.full(256, UNLABELED, np.uint8)
        self._values[BACKGROUND] = BACKGROUND
        for k, name in enumerate(self._dataset.classes, 1):
            self._values[k] = known.get(plain(name), UNLABELED)
        self._names, self.unknown = names, [name for name in self._dataset.classes if plain(name) not in known]
        if len(self.unknown) == len(self._dataset.classes):
            raise UserError(
                f"--merge {place}: none of its classes ({', '.join(self.unknown[:10])}) is one of this export "
                f"({', '.join(names[1:11])}); give the classes of its classes.json the same names"
            )
        self._ids: dict[str, list[tuple[str, str]]] = {}
        for image in self._dataset.train:
            sample_id = f"{REAL}-{id_part(image)}"
            self._ids.setdefault(options.part_of(sample_id), []).append((sample_id, image))
        self.splits = sorted(self._ids)

    def __len__(self) -> int:
        return sum(map(len, self._ids.values()))

    def digest(self) -> str:
        """Return a digest over ids, splits and classes, and over the sizes of files where there are some."""
        total = hashlib.blake2b("\x1f".join(self._dataset.classes).encode(), digest_size=16)
        for split in self.splits:
            for sample_id, image in self._ids[split]:
                sizes = self._dataset.file_sizes(image) if isinstance(self._dataset, FolderDataset) else ()
                total.update(f"{split}\x1f{sample_id}\x1f{sizes}\x1e".encode())
        return total.hexdigest()

    def parts(self, split: str, common: dict[str, str], size: int) -> Iterator[ExportPart]:
        """Yield the images of a split, at most `size` at a time; one that cannot be read costs itself alone.

        Args:
            common: columns of `LINEAGE` that all synthetic samples share, which are empty here.
        """
        ids = self._ids[split]
        for start in range(0, len(ids), size):
            found = map_threads(lambda pair: self._read(*pair, split, common), ids[start : start + size])
            items = [item for item in found if isinstance(item, ExportSample)]
            lines = [item[1] for item in found if not isinstance(item, ExportSample)]
            yield ExportPart(split, [item.row if isinstance(item, ExportSample) else item[0] for item in found], items, lines)

    def _read(self, sample_id: str, image: str, split: str, common: dict[str, str]) -> ExportSample | tuple[dict[str, Any], str]:
        texts = {"sample_id": sample_id, "bank": REAL, "verdict": REAL, "split": split, "label_stage": "annotation", "audit": "{}"}
        nothing = {key: "" for key in (*common, "class", "reason", "prompt")} | {"class_id": BACKGROUND}
        row = dict.fromkeys(LINEAGE.names) | nothing | texts
        try:
            pixels, label = self._dataset.image(image), self._values[self._dataset.mask(image)]
        except StoreError:
            raise
        except (UserError, OSError, ValueError) as error:
            return row | {"split": "", "verdict": "damaged", "label_stage": ""}, f"{sample_id}: {error}"
        counts = np.bincount(label.ravel(), minlength=256)
        counts[[BACKGROUND, UNLABELED]] = 0
        largest = int(counts.argmax())
        if counts[largest]:
            row |= {"class_id": largest, "class": self._names[largest]}
        return ExportSample(row | {"image_digest": pixel_digest(pixels), "label_digest": pixel_digest(label)}, pixels, label)


def _open(place: str) -> Dataset:
    try:
        dataset = FolderDataset(place, all_new=True)  # its folds do not matter, and lists may be absent
        dataset.check()
    except UserError as error:
        raise UserError(f"--merge {place}: {error}") from None
    return dataset
