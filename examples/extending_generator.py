"""A generator of one file: flat coloured shapes, and the one line that makes it a value of `synthesis.model`.

    python examples/extending_generator.py

makes prompts, embeddings and images through the same functions as `syn4seg run`. To keep a generator, put its file into
`syn4seg/models` and its line into the table `GENERATORS` there: the workers of a cluster read the table, not this script.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from syn4seg.errors import UserError
from syn4seg.models.generators import GENERATORS, check_model, generator_source, load_generator, load_text_encoder
from syn4seg.models.protocols import PLAIN, GeneratorSource, Speed
from syn4seg.models.renderer import BagOfWords
from syn4seg.prompts.grammar import GrammarAgent

COLOURS = {"red": (200, 40, 40), "blue": (40, 70, 200), "white": (235, 235, 235), "black": (20, 20, 20)}
GROUND = (120, 140, 110)


class FlatShapes:
    """Draws one disc per image, in the first colour that the prompt names, at a place that the noise seed names."""

    def __init__(self, *, size: int, speed: Speed = PLAIN, **_: Any):  # steps, guidance and device mean nothing here
        check_speed(speed)
        self.size = size

    def generate(self, prompts: list[str], encoded: Any, noise_seeds: list[int]) -> tuple[np.ndarray, list[str]]:
        """Return images uint8 (N, size, size, 3) and the fault of each ("" for none)."""
        images = np.full((len(prompts), self.size, self.size, 3), GROUND, np.uint8)
        for image, prompt, seed in zip(images, prompts, noise_seeds, strict=True):
            colour = next((word for word in prompt.split() if word in COLOURS), "red")
            image[disc(seed, self.size)] = COLOURS[colour]
        return images, [""] * len(prompts)

    def facts(self) -> dict[str, Any]:
        """Return what makes the images, as JSON values; a run writes it into its record."""
        return {"model": "flat-shapes", "size": self.size}


def disc(seed: int, size: int) -> np.ndarray:
    """Return the pixels of the disc, bool (size, size)."""
    y, x, radius = np.random.default_rng(seed).uniform((0.3, 0.3, 0.15), (0.7, 0.7, 0.3)) * size
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def check_speed(speed: Speed) -> None:
    """Raise UserError for options that only a network has."""
    if speed != PLAIN:
        raise UserError(f"synthesis.model=flat-shapes: {speed} cannot be followed; leave these keys at their defaults")


SOURCE = GeneratorSource(load_text_encoder=lambda device: BagOfWords(), load_generator=FlatShapes, check=check_speed)

GENERATORS["flat-shapes"] = SOURCE  # the one line


def main() -> None:
    model = "flat-shapes"
    check_model(model)  # what `syn4seg run` does before it loads anything
    agent = GrammarAgent(generator_source(model).world, seed=0, per_round=4)
    prompts = agent.propose("dog", 0, [], [])
    encoded = load_text_encoder(model).encode(prompts)
    images, faults = load_generator(model, steps=1, guidance=1.0, size=64).generate(prompts, encoded, [1, 2, 3, 4])
    for prompt, image, fault in zip(prompts, images, faults, strict=True):
        print(f"{image.shape} {fault or 'sound'}: {prompt}")


if __name__ == "__main__":
    main()
