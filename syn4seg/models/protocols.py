"""What an image generator and a text encoder are: small Protocols, and the options that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from syn4seg.errors import UserError
from syn4seg.models.embeddings import Encoded

PromptWorld = Literal["embedded", "natural"]
"""What prompts are made of: the sentences of the embedded world, or natural English."""


class TextEncoder(Protocol):
    """Text to embeddings."""

    def encode(self, prompts: list[str]) -> Encoded:
        """Return embeddings of `prompts` in order; a prompt's embedding does not depend on its neighbours."""
        ...


class ImageGenerator(Protocol):
    """Prompts, embeddings and noise seeds to images."""

    def generate(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> tuple[np.ndarray, list[str]]:
        """Make N images as ONE batch; the caller pads, because rounding depends on the batch.

        Args:
            prompts: N texts.
            encoded: their embeddings, row by row.
            noise_seeds: one integer per image; the same batch gives the same bytes.

        Returns:
            images uint8 (N, H, W, 3) RGB and, for each, "" or what is wrong with it (see `image_fault`).
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return what makes the images, as plain JSON values; no path, user name or secret."""
        ...


@dataclass(frozen=True)
class GeneratedBatch:
    """One batch: images uint8 (N, H, W, 3) RGB, for each "" or what is still wrong with it, and for each what was out of the
    ordinary, as plain JSON values (empty if nothing was)."""

    images: np.ndarray
    faults: list[str]
    audit: list[dict[str, Any]]


@runtime_checkable
class AuditingGenerator(ImageGenerator, Protocol):
    """An image generator that tries a faulty image once more, in safer precision, and says so."""

    def make(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> GeneratedBatch:
        """Make N images as `generate` does, with an audit of each."""
        ...


@runtime_checkable
class SupportedGenerator(Protocol):
    """An image generator that starts from the support images of a class, so it is told the class of each image."""

    def make_for(self, targets: list[int], prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> GeneratedBatch:
        """Make N images of the class indices `targets`, otherwise as `AuditingGenerator.make`."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what makes the images, see `ImageGenerator.facts`."""
        ...


@dataclass(frozen=True)
class Speed:
    """What makes Stable Diffusion 3 faster or smaller; all of it is off by default, since all of it may change pixels.

    Attributes:
        compile: compile the transformer's blocks, one for all.
        attention: "default", or a backend of diffusers, such as "native" or "flash".
        vae_slicing: decode one image at a time.
        weights: of the transformer; "nf4" (bitsandbytes) and "fp8" need a GPU.
        step_cache: above 0, the threshold of `step_cache.StepCache`.
    """

    compile: bool = False
    attention: str = "default"
    vae_slicing: bool = False
    weights: Literal["full", "nf4", "fp8"] = "full"
    step_cache: float = 0.0

    def __post_init__(self) -> None:
        if self.compile and self.weights == "fp8":
            raise UserError(
                "synthesis.compile=True with synthesis.weights=fp8: weights that are cast layer by layer cannot be "
                "compiled; set one of the two back, or weights=nf4"
            )


PLAIN = Speed()
"""The whole pipeline as diffusers runs it."""


@dataclass(frozen=True)
class GeneratorSource:
    """How an image model is loaded: one line in `syn4seg.models.generators.GENERATORS`.

    Attributes:
        load_text_encoder: called with a device ("auto", "cpu" or "cuda").
        load_generator: called with the keywords steps, guidance, size, device and speed, see `generators.load_generator`.
        check: called with a `Speed`; raises UserError for what can be known before a run without loading anything.
        path: folder or hub id of the weights; None for a generator without a network.
        world: the prompts that it understands: the sentences of the embedded world, or natural English.
        truth: called with (prompt, noise seed, size); the exact mask uint8 (size, size) in class ids of the embedded data
            set. None where no exact mask is known.
    """

    load_text_encoder: Callable[[str], TextEncoder]
    load_generator: Callable[..., ImageGenerator]
    check: Callable[[Speed], None] = lambda speed: None
    path: str | None = None
    world: PromptWorld = "natural"
    truth: Callable[[str, int, int], np.ndarray] | None = None
