"""A trained segmenter in a folder, as a function from images to masks: `syn4seg.load("model/")`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.segmenter.model_folder import ModelConfig, find_model, own_config, read_model
from syn4seg.trained.images import images_of, results_like
from syn4seg.trust import trust as trust_code

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.network import Segmenter
    from syn4seg.trained.pictures import Views

BATCH = 16
"""Images that the network sees at a time; as many as in a run's evaluation."""


class Model:
    """A trained segmenter: `model(image)` is its mask.

    Args:
        segmenter: on its device, in eval mode.
        config: of its folder.
    """

    def __init__(self, segmenter: Segmenter, config: ModelConfig):
        self.segmenter, self.config, self.canvas = segmenter, config, config.as_canvas

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class index, "background" first."""
        return tuple(entry.name for entry in self.config.classes)

    @property
    def novel(self) -> tuple[str, ...]:
        """Names of the classes that were learned from the support set."""
        return tuple(entry.name for entry in self.config.classes if entry.kind == "novel")

    @property
    def palette(self) -> np.ndarray:
        """RGB colours by class index, uint8 (C, 3)."""
        return np.array([entry.color for entry in self.config.classes], np.uint8)

    def __call__(self, image: Any) -> Any:
        """Return the mask of an image: class indices uint8 (H, W) at its own resolution.

        Args:
            image: a path or URL, a PIL image, uint8 or float in [0, 1] as NumPy (H, W, 3) or (N, H, W, 3), as a tensor (3, H, W)
                or (N, 3, H, W), or a list of these; photos are turned upright by their EXIF orientation.

        Returns:
            Of a batch in one array (N, H, W), of a list a list; of tensors tensors on their device.

        Raises:
            UserError: a file is missing or no photo.
            ValueError: another kind of image.
        """
        from syn4seg.trained.pixels import label_pixels

        images, batch = images_of(image)
        return results_like([label_pixels(s, self.canvas, i.shape[:2])[0] for i, s in self._scored(images)], image, batch)

    def probabilities(self, image: Any) -> Any:
        """Return the probability of every class float32 (C, H, W) at every pixel; `image` and results as of a call."""
        from syn4seg.trained.pixels import probabilities

        images, batch = images_of(image)
        return results_like([probabilities(s, self.canvas, i.shape[:2]) for i, s in self._scored(images)], image, batch)

    def show(self, image: Any) -> Views:
        """Return a picture of an image or a batch beside its masks and their classes: a notebook shows it, `save` writes it."""
        from syn4seg.trained.pictures import View, Views

        images, _ = images_of(image)
        return Views([View("", i, mask) for i, mask in zip(images, self(images), strict=True)], self.classes, self.palette)

    def scores(self, images: list[np.ndarray]) -> Tensor:
        """Return scores float32 (N, C, size, size) on the canvas, of images uint8 (H_i, W_i, 3), which are one batch."""
        import torch

        from syn4seg.segmenter.network import frozen_features

        canvases = np.stack([self.canvas.image(image) for image in images])
        features = frozen_features(self.segmenter, canvases, batch=len(images))
        classifier = self.segmenter.classifier
        with torch.no_grad():  # one by one, as an evaluation has it
            found = [classifier.pixels(one.to(classifier.weight)[None], self.canvas.size) for one in features]
        return torch.cat(found)

    def _scored(self, images: list[np.ndarray]) -> Any:
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            yield from zip(part, self.scores(part)[:, None], strict=True)


def load(place: str | Path, device: str = "auto", trust: bool = False) -> Model:
    """Load a trained model; neither a run nor Ray is needed.

    Args:
        place: folder or URL of a model, or of a finished run, whose model/ is taken.
        device: "cpu", "cuda" or "auto".
        trust: allow the code that the folder names as its backbone (package.module:factory).

    Raises:
        UserError: there is no model, a file of it is damaged or was changed, or it is one for another program.
    """
    from syn4seg.models.device import resolve_device

    folder = find_model(place)
    backbone = own_config(folder).network.backbone
    if trust and isinstance(backbone, str) and ":" in backbone:
        trust_code(backbone)
    segmenter, config = read_model(folder)
    return Model(segmenter.to(resolve_device(device)).eval(), config)
