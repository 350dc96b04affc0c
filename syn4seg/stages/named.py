"""Labels of the control by name (`evaluation.by_name`): what a network finds in an image that is asked for its class by name."""

from __future__ import annotations

import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Fold
from syn4seg.models.hub import cached_revision
from syn4seg.schema import BACKGROUND, UNLABELED
from syn4seg.stages.setup import file_digest

if TYPE_CHECKING:
    from syn4seg.models.sam_named import NamedSam


class NamedLabels:
    """The labels that the network of `evaluation.by_name` gives for the names of classes, whatever the draw.

    They depend on the image and the name alone. The network is loaded with the first image, sees each image once, and the masks are
    kept, packed.
    """

    def __init__(self, config: Config, fold: Fold):
        self.config = config
        self.words = tuple(config.prompts.words(name).name for name in fold.index_names)
        self.asked = [self.words[index] for index in fold.novel_indices]
        self.masks: dict[str, bytes] = {}

    @cached_property
    def digest(self) -> str:
        """What the labels depend on besides image and name: the digest of the network's files, or a hub's commit."""
        model = str(self.config.evaluation.by_name)
        return file_digest(Path(model)) if Path(model).exists() else cached_revision(model) or model

    @cached_property
    def _network(self) -> NamedSam:
        from syn4seg.models.sam_named import NamedSam

        return NamedSam(str(self.config.evaluation.by_name), self.asked, self.config.placement.device)

    def of(self, sample_id: str, image: np.ndarray, target: int) -> np.ndarray:
        """Return the label uint8 (H, W) of an RGB uint8 (H, W, 3) image: its class inside the mask, background elsewhere.

        An image in which nothing of its name is found, or to which the answer is nan or infinite, teaches nothing: it is unlabeled.

        Raises:
            UserError: the network cannot be loaded.
        """
        if sample_id not in self.masks:
            self.masks[sample_id] = zlib.compress(np.packbits(self._found(image, self.words[target])).tobytes())
        bits = np.frombuffer(zlib.decompress(self.masks[sample_id]), np.uint8)
        mask = np.unpackbits(bits, count=image.shape[0] * image.shape[1]).reshape(image.shape[:2]).view(bool)
        return np.where(mask, np.uint8(target), np.uint8(BACKGROUND if mask.any() else UNLABELED))

    def _found(self, image: np.ndarray, name: str) -> np.ndarray:
        try:
            return self._network.mask(image, name)
        except FloatingPointError:  # an image's fault is not the training's
            return np.zeros(image.shape[:2], bool)
