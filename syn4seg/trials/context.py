"""What trials need of a run in their process: its network, its images by digest, frozen features that were used before."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.stages.arrivals import FeatureCache
from syn4seg.stages.labels import load_on_device
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.rows import ROWS
from syn4seg.stages.setup import canvas_of, class_check, digest_inputs, load_dataset
from syn4seg.store.files import MAX_TABLE, read_bytes
from syn4seg.store.images import pixel_digest
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredImage

if TYPE_CHECKING:
    from torch import Tensor

ROW = "syn4seg"
"""The ablation row that a trial trains: the whole method."""
IMAGES_PER_ENTRY = 64
"""Images whose results share an entry of the cache."""


@dataclass(frozen=True)
class SyntheticImage:
    """A synthetic image of a run: id and target of its plan row, the digest of its pixels, its shape (H, W, 3), its location."""

    sample_id: str
    target: int
    class_name: str
    batch: int
    digest: str
    shape: tuple[int, int, int]
    location: str


def _version() -> str:
    """Return the version of this program, or "" from a source tree."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("syn4seg-ray")
    return ""


def _checking(config: Config) -> tuple[str, float, str]:
    """Return what the verdicts of the picture check depend on, besides images and the names of classes."""
    return config.synthesis.check, config.synthesis.check_margin, digest_inputs(config).get("synthesis.check", "")


@dataclass(frozen=True)
class Chunk:
    """Up to `IMAGES_PER_ENTRY` images, and the labels uint8 (H, W) of those that a draw accepts, by place."""

    images: Sequence[SyntheticImage]
    labels: dict[int, np.ndarray]
    key: str


class RunContext:
    """A run that has prompts, images and base checkpoint, and what trials need of it in this process.

    Attributes:
        planned: ids of the samples of the row's bank, in the order of the plan.
        images: those of them that could be made, and that pass the picture check.
        network: what features depend on besides an image.
    """

    def __init__(self, config: Config, run: RunDir, device: str):
        import torch

        self.run, self.canvas = run, canvas_of(config)
        self.dataset, self.fold = load_dataset(config)
        self.segmenter = load_on_device(run, device)
        self.device = self.segmenter.weight.device
        weights = hashlib.blake2b(read_bytes(run.base, MAX_TABLE), digest_size=16).hexdigest()
        self.software = [_version(), torch.__version__, self.device.type]
        self.network = [*self.software, weights, self.canvas.size, self.canvas.kind]
        rows = [row for row in read_planned_samples(run).to_pylist() if row["bank"] == ROWS[ROW][0]]
        self.planned = [row["sample_id"] for row in rows]
        self.checking = _checking(config)
        self.images = self._shown(config, self._images(rows), device)
        self.features = FeatureCache()
        self.digests: dict[str, str] = {}

    def _images(self, rows: list[dict[str, Any]]) -> list[SyntheticImage]:
        names, stored = self.fold.index_names, self.run.samples.images()
        locations = dict(zip(stored["sample_id"].to_pylist(), stored["image_at"].to_pylist(), strict=True))
        rows, images = [row for row in rows if row["sample_id"] in locations], []
        for start in range(0, len(rows), IMAGES_PER_ENTRY):
            part = rows[start : start + IMAGES_PER_ENTRY]
            requests = [
                StoredImage(r["sample_id"], names[r["class_id"]], r["batch"], np.zeros(0), {}, locations[r["sample_id"]])
                for r in part
            ]
            for row, image in zip(part, self.run.samples.read_images(requests), strict=True):
                if image is not None:
                    shape = (*image.pixels.shape[:2], 3)
                    digest = pixel_digest(image.pixels)
                    ids = row["sample_id"], row["class_id"], image.class_name, image.batch
                    images.append(SyntheticImage(*ids, digest, shape, image.location))
        return images

    def checks_as(self, config: Config) -> bool:
        """Return whether a configuration has the picture check that these images have passed."""
        return self.checking == _checking(config)

    def _shown(self, config: Config, images: list[SyntheticImage], device: str) -> list[SyntheticImage]:
        """Return the images that the picture check does not reject; like one that cannot be labelled, one that it cannot judge is
        left out."""
        check, shown = class_check(config, self.fold.index_names, device), []
        for image in images if check else ():
            with contextlib.suppress(FloatingPointError):
                if check and not check(self.pixels([image])[0], image.target)[0]:
                    shown.append(image)
        return shown if check else images

    def pixels(self, images: Sequence[SyntheticImage]) -> list[np.ndarray]:
        """Read the RGB pixels uint8 (H, W, 3) of images.

        Raises:
            UserError: one has been deleted or damaged since.
        """
        requests = [StoredImage(m.sample_id, m.class_name, m.batch, np.zeros(0), {}, m.location) for m in images]
        stored = self.run.samples.read_images(requests)
        for image, read in zip(images, stored, strict=True):
            if read is None or pixel_digest(read.pixels) != image.digest:
                raise UserError(
                    f"{self.run.root}: image {image.sample_id} was deleted or changed while trials used it; run the "
                    "command that made the run again"
                )
        return [image.pixels for image in stored if image is not None]

    def tensor(self, array: np.ndarray) -> Tensor:
        """Return a copy of an array on the device of the segmenter."""
        import torch

        return torch.from_numpy(array.copy()).to(self.device)

    def digest(self, image_id: str) -> str:
        """Return the digest of the pixels of a real image."""
        if image_id not in self.digests:
            self.digests[image_id] = pixel_digest(self.dataset.image(image_id))
        return self.digests[image_id]
