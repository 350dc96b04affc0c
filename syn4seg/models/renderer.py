"""The procedural generator: draws what a prompt of the embedded world says, in 2 ms, and knows the exact mask.

It stands behind the same Protocols as Stable Diffusion 3; its text embedding is a bag of hashed words.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.models.embeddings import Encoded
from syn4seg.models.images import image_fault
from syn4seg.models.protocols import PLAIN, GeneratorSource, Speed

WIDTH = 64  # numbers per word
TOKENS = 16  # words per prompt; the longest sentence of the world has 13


class BagOfWords:
    """A text encoder without weights: every word is a unit vector drawn from its hash."""

    def encode(self, prompts: list[str]) -> Encoded:
        """Return pooled float32 (P, 64): the normalised sum of the words; sequence float32 (P, 16, 64): the words, then zeros.

        Words after the sixteenth are ignored; upper case and commas do not matter.
        """
        sequence = np.zeros((len(prompts), TOKENS, WIDTH), np.float32)
        for row, prompt in zip(sequence, prompts, strict=True):
            words = prompt.lower().replace(",", " ").replace(".", " ").split()[:TOKENS]
            for i, word in enumerate(words):
                row[i] = _word(word)
        total = sequence.sum(1)
        pooled = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
        return Encoded(pooled, sequence, np.zeros((1, WIDTH), np.float32), np.zeros((1, TOKENS, WIDTH), np.float32))


def _word(word: str) -> np.ndarray:
    vector = embedded.seeded("word", word).standard_normal(WIDTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class Renderer:
    """Draws prompts of the embedded world."""

    def __init__(self, size: int):
        """Take `size`, the side of an image in pixels."""
        self.size = size

    def generate(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> tuple[np.ndarray, list[str]]:
        """Return images uint8 (N, size, size, 3), and faults, all "" but for a world gone wrong; `encoded` only has to fit.

        Raises:
            UserError: a prompt names no class of the embedded world, or the lengths differ.
        """
        if not len(prompts) == len(encoded) == len(noise_seeds):
            raise UserError(
                f"{len(prompts)} prompts, {len(encoded)} embeddings and {len(noise_seeds)} noise seeds; expected as many of each"
            )
        images = [self._draw(p, s)[0] for p, s in zip(prompts, noise_seeds, strict=True)]
        return np.stack(images), [image_fault(image) for image in images]

    def facts(self) -> dict[str, Any]:
        """Return the model's name and the side of an image."""
        return {"model": "renderer", "size": self.size}

    def truth(self, prompt: str, noise_seed: int) -> np.ndarray:
        """Return the exact mask uint8 (size, size) of the image made from the same prompt and seed: 0, or 1..16 as in
        `embedded.CLASSES`."""
        return self._draw(prompt, noise_seed)[1]

    def _draw(self, prompt: str, noise_seed: int) -> tuple[np.ndarray, np.ndarray]:
        return embedded.draw(embedded.scene_of_prompt(prompt, noise_seed), self.size)


def check_speed(speed: Speed, why: str = "the renderer has no network") -> None:
    """Refuse options that are about a network.

    Args:
        why: for the message.

    Raises:
        UserError: an option differs from its default.
    """
    for key, default in vars(PLAIN).items():
        if getattr(speed, key) != default:
            raise UserError(
                f"synthesis.{key}={getattr(speed, key)}: {why}; leave it at {default}, or set "
                "synthesis.model to a Stable Diffusion 3 model"
            )


def _load(*, size: int, speed: Speed, **_: Any) -> Renderer:
    check_speed(speed)
    return Renderer(size)


SOURCE = GeneratorSource(
    load_text_encoder=lambda device: BagOfWords(),
    load_generator=_load,
    check=check_speed,
    world="embedded",
    truth=lambda prompt, noise_seed, size: Renderer(size).truth(prompt, noise_seed),
)
"""How the renderer is loaded."""
