"""The start of the embedded segmenters: the network learns to tell 128 families of random outlines apart.

ImageNet stands behind the field's backbones; without something like it, features learned on twelve base classes hardly tell
novel ones apart. No family resembles a class of the embedded world (`shapes.LIKENESS`), so no class is known beforehand.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from syn4seg.data import embedded
from syn4seg.segmenter.backbones import load_backbone
from syn4seg.segmenter.base import BaseSchedule, train_base
from syn4seg.segmenter.network import Segmenter
from syn4seg.segmenter.views import Augmentation
from tools.shapes import random_outline

FAMILIES = 128
IMAGES = 6000
CHANNELS = 128
SCHEDULE = BaseSchedule(
    epochs=8, batch=8, lr=0.002, head_factor=1.0, weight_decay=0.01, optimizer="adamw", warmup=0.05, background_weight=0.2
)
HOW = Augmentation(crop=64, scale=(0.75, 1.33), blur=0.0)
FIRST = 100_000  # number of the first family's outline; SAM learned on lower ones


def _member(outline: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Return an outline bent a little by two waves: a member of its family."""
    size, phase = rng.normal(0, 0.04, (2, 2)), rng.uniform(0, 7, 2)
    bent = []
    for contour in outline:
        first, second = np.sin(2.5 * contour[:, 1] + phase[0]), np.cos(2.5 * contour[:, 0] + phase[1])
        other_first, other_second = np.cos(2.5 * contour[:, 0] + phase[0]), np.sin(2.5 * contour[:, 1] + phase[1])
        bent.append(
            contour + np.stack([size[0, 0] * first + size[0, 1] * second, size[1, 0] * other_first + size[1, 1] * other_second], 1)
        )
    return bent


class OutlineDataset:
    """Scenes of random outlines with the families' numbers as masks; what `train_base` needs of a data set."""

    def __init__(self) -> None:
        self.outlines = [random_outline(FIRST + i) for i in range(FAMILIES)]
        self.drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def _draw(self, sample_id: str) -> tuple[np.ndarray, np.ndarray]:
        if sample_id not in self.drawn:
            rng = embedded.seeded("pretrain", sample_id)
            scene = embedded.sample_scene(rng)
            families = [int(rng.integers(FAMILIES)) for _ in scene.things]
            image, owner = embedded.compose(scene, [_member(self.outlines[k], rng) for k in families])
            self.drawn[sample_id] = image, np.array([0, *(k + 1 for k in families)], np.uint8)[owner]
        return self.drawn[sample_id]

    def image(self, sample_id: str) -> np.ndarray:
        """Return the image uint8 (64, 64, 3)."""
        return self._draw(sample_id)[0]

    def mask(self, sample_id: str) -> np.ndarray:
        """Return the family's number from 1, or 0, of each pixel: uint8 (64, 64)."""
        return self._draw(sample_id)[1]


def pretrain(work: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the pretrained network without its classifier; trained under `work` unless they are there."""
    path = work / "pretrained.pt"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = Segmenter(load_backbone("embedded"), 1 + FAMILIES, CHANNELS)
        dataset: Any = OutlineDataset()
        fold: Any = SimpleNamespace(base=tuple(range(1, 1 + FAMILIES)), to_base_index=np.arange(256).astype(np.uint8))
        train_base(
            net,
            dataset,
            fold,
            [f"outline-{i:06d}" for i in range(IMAGES)],
            schedule=SCHEDULE,
            augmentation=HOW,
            seed=0,
            bfloat16=True,
            checkpoint=work / "pretraining.pt",
            progress=lambda facts: print(facts, flush=True),
        )
        torch.save(net.state_dict(), path)
    state = torch.load(path, weights_only=True)
    return {key: value for key, value in state.items() if key not in ("weight", "bias")}
