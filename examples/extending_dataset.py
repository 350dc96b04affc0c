"""A data set of one file: PNG pairs in two folders, and the one line that makes it a value of `data.source`.

    python examples/extending_dataset.py

writes a tiny data set of three classes, opens it through the same path as `syn4seg run`, and draws its support images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from syn4seg.config.loading import load
from syn4seg.config.sections import DataConfig
from syn4seg.data.datasets import class_areas
from syn4seg.data.photos import decode_image, decode_mask
from syn4seg.data.sources import DATASETS, DatasetSource
from syn4seg.errors import UserError
from syn4seg.stages.setup import load_dataset, support_of
from syn4seg.store.images import write_image


class PairsDataset:
    """ROOT/{train,val}/NAME.png with masks ROOT/{train,val}/NAME-mask.png: 0 background, 1..3 the classes, 255 unlabeled."""

    classes = ("leaf", "stone", "shell")
    folds = ((3,), (1,))  # dataset ids of the novel classes of each fold

    def __init__(self, root: str):
        self.root = Path(root)
        self.train, self.val = (self._names(part) for part in ("train", "val"))

    def _names(self, part: str) -> list[str]:
        names = sorted(p.stem.removesuffix("-mask") for p in (self.root / part).glob("*-mask.png"))
        if not names:
            raise UserError(f"data.root={self.root}: no {part}/NAME-mask.png; expected pairs NAME.png and NAME-mask.png")
        return [f"{part}_{name}" for name in names]

    def _path(self, sample_id: str, ending: str = ".png") -> Path:
        part, _, name = sample_id.partition("_")
        return self.root / part / f"{name}{ending}"

    def check(self) -> None:
        """Raise UserError if an image of a listed id is missing."""
        for sample_id in (*self.train, *self.val):
            if not self._path(sample_id).is_file():
                raise UserError(f"{self._path(sample_id)} is missing; add it, or delete its mask")

    def image(self, sample_id: str) -> np.ndarray:
        """Return the RGB image uint8 (H, W, 3)."""
        return decode_image(self._path(sample_id))

    def mask(self, sample_id: str) -> np.ndarray:
        """Return dataset ids uint8 (H, W)."""
        return decode_mask(self._path(sample_id, "-mask.png"), len(self.classes))

    def areas(self, sample_id: str) -> dict[int, float]:
        """Return the share of the image that each dataset id covers."""
        return class_areas(self.mask(sample_id))


def open_pairs(data: DataConfig) -> PairsDataset:
    """Open the data set that the section `data` describes."""
    return PairsDataset(str(data.root))


DATASETS["pairs"] = DatasetSource(open_pairs)  # the one line; in the package it stands in syn4seg/data/sources.py


def write_example(root: Path) -> None:
    """Write twelve noisy images, each with one square of one class."""
    rng = np.random.default_rng(0)
    for i in range(12):
        image, mask = rng.integers(0, 80, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        mask[8:24, 8:24] = 1 + i % 3
        image[mask > 0] += np.uint8(60 * (1 + i % 3) - 40)
        folder = root / ("train" if i < 9 else "val")
        write_image(folder / f"{i:02d}.png", image)
        write_image(folder / f"{i:02d}-mask.png", mask)


def main() -> dict[int, list[str]]:
    """Open the example and return its support set: novel dataset id -> image ids."""
    with tempfile.TemporaryDirectory() as folder:
        write_example(Path(folder))
        config = load(None, ["data.source=pairs", f"data.root={folder}", "data.shots=2", "base.checkpoint=train"])
        dataset, fold = load_dataset(config)
        support = support_of(config, dataset, fold, draw=0)
    print(f"{len(dataset.train)} train images, novel classes {[fold.names[k - 1] for k in fold.novel]}, support {support}")
    return support


if __name__ == "__main__":
    main()
