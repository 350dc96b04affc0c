"""Image generators and their text encoders: small Protocols, loaded apart, and the file that joins them.

Prompts are encoded once (`load_text_encoder`) and stored; image actors read only the rows they need (`EmbeddingStore`)
and never load a text encoder (`load_generator`). Importing this module loads no heavy library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from syn4seg.files import StoreError, at, published
from syn4seg.tensors import TensorFile

if TYPE_CHECKING:
    import torch

    from syn4seg.files import AnyPath

EMBEDDED_SD3 = Path(__file__).parent.parent / "weights" / "embedded-sd3"
"""The small Stable Diffusion 3 pipeline of the embedded world, in diffusers' folder format."""


@dataclass(frozen=True)
class Encoded:
    """Text embeddings of P prompts, and of the empty prompt, which classifier-free guidance steers away from.

    Attributes:
        pooled: float32 (P, E), the vector that a prompt is compared and conditioned by.
        sequence: float32 (P, T, C), one vector per token.
        empty_pooled: float32 (1, E).
        empty_sequence: float32 (1, T, C).
    """

    pooled: np.ndarray
    sequence: np.ndarray
    empty_pooled: np.ndarray
    empty_sequence: np.ndarray

    def __len__(self) -> int:
        return len(self.pooled)

    def rows(self, indices: Sequence[int]) -> Encoded:
        """The prompts `indices`, in that order; repeats are allowed."""
        at = np.asarray(indices, np.int64)
        return Encoded(self.pooled[at], self.sequence[at], self.empty_pooled, self.empty_sequence)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """The prompts of one or more parts, made by the same text encoder, one after another."""
    pooled, sequence = np.concatenate([p.pooled for p in parts]), np.concatenate([p.sequence for p in parts])
    return Encoded(pooled, sequence, parts[0].empty_pooled, parts[0].empty_sequence)


class TextEncoder(Protocol):
    """Text to embeddings."""

    def encode(self, prompts: list[str]) -> Encoded:
        """Embeddings of `prompts` in order; a prompt's embedding does not depend on its neighbours."""
        ...


class ImageGenerator(Protocol):
    """Prompts, embeddings and noise seeds to images."""

    def generate(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> tuple[np.ndarray, list[str]]:
        """Makes N images as ONE batch; the caller pads, because rounding depends on the batch.

        Args:
            prompts: N texts.
            encoded: their embeddings, row by row.
            noise_seeds: one integer per image; the same batch gives the same bytes.

        Returns:
            images uint8 (N, H, W, 3) RGB and, for each, "" or what is wrong with it (see `image_fault`).
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What makes the images, as plain JSON values; no path, user name or secret."""
        ...


@dataclass(frozen=True)
class Made:
    """One batch: images uint8 (N, H, W, 3) RGB, for each "" or what is still wrong with it, and for each what was out of the
    ordinary, as plain JSON values (empty if nothing was)."""

    images: np.ndarray
    faults: list[str]
    audit: list[dict[str, Any]]


@runtime_checkable
class CarefulGenerator(ImageGenerator, Protocol):
    """An image generator that tries a faulty image once more, in safer precision, and says so."""

    def make(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> Made:
        """As `generate`, with an audit."""
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
            raise ValueError("synthesis.compile=True with synthesis.weights=fp8: weights that are cast layer by layer cannot be "
                             "compiled; set one of the two back, or weights=nf4")  # fmt: skip


PLAIN = Speed()
"""The whole pipeline as diffusers runs it."""


# ----------------------------------------------------------------------------------------------- loading
def check_model(model: str, speed: Speed = PLAIN) -> None:
    """What can be said about a model before a run, without loading weights or using the network.

    Raises:
        ValueError: as `load_generator`, as far as files, cache, token and `speed` show it.
    """
    from syn4seg.models import hub

    _check_renderer(speed) if model == "renderer" else hub.check(_place(model))


def load_text_encoder(model: str, *, device: str = "auto") -> TextEncoder:
    """The text encoder of an image model, without the image model.

    Args:
        model: "renderer", "embedded-sd3", or a folder or hub id in diffusers' Stable Diffusion 3 format.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".

    Raises:
        ValueError: the model is not there or cannot be read; the text says what to do.
    """
    if model == "renderer":
        from syn4seg.models.renderer import BagOfWords

        return BagOfWords()
    from syn4seg.models.diffusion import DiffusionTextEncoder

    return DiffusionTextEncoder(_place(model), device=device)


def load_generator(
    model: str, *, steps: int, guidance: float, size: int, device: str = "auto", speed: Speed = PLAIN
) -> ImageGenerator:
    """The image model, without its text encoders.

    Args:
        model: as for `load_text_encoder`.
        steps: denoising steps; the renderer has none.
        guidance: classifier-free guidance scale; 1 or less switches it off; the renderer has none.
        size: side of an image in pixels.
        speed: the renderer takes the default only.

    Raises:
        ValueError: the model is not there, cannot be read, or cannot make images of that size or in that way.
    """
    if model == "renderer":
        from syn4seg.models.renderer import Renderer

        _check_renderer(speed)
        return Renderer(size)
    from syn4seg.models.diffusion import DiffusionGenerator

    options: dict[str, Any] = {"steps": steps, "guidance": guidance, "size": size, "device": device, "speed": speed}
    return DiffusionGenerator(_place(model), **options)


def _place(model: str) -> str:
    if model != "embedded-sd3":
        return model
    if not (EMBEDDED_SD3 / "model_index.json").is_file():
        raise ValueError(f"model 'embedded-sd3' has no weights in this installation (looked in {EMBEDDED_SD3}); "
                         "reinstall the package, or set synthesis.model=renderer, which needs none")  # fmt: skip
    return str(EMBEDDED_SD3)


def _check_renderer(speed: Speed) -> None:
    for key, default in vars(PLAIN).items():
        if getattr(speed, key) != default:
            raise ValueError(f"synthesis.{key}={getattr(speed, key)}: the renderer has no network; leave it at {default}, or set "
                             "synthesis.model to a Stable Diffusion 3 model")  # fmt: skip


# ------------------------------------------------------------------------------------------ faulty images
def image_fault(image: np.ndarray) -> str:
    """What is wrong with an image that no mask could repair, or "".

    Args:
        image: (H, W, 3), uint8 or float in [0, 1].

    Returns:
        "nan" (some value is not finite), "black" (nothing above 2 of 255), "flat" (in every channel a standard
        deviation below 1 of 255), or "".
    """
    levels = image.astype(np.float32) * (1 if image.dtype == np.uint8 else 255)
    if not np.isfinite(levels).all():
        return "nan"
    if levels.max() <= 2:
        return "black"
    return "flat" if levels.std(axis=(0, 1)).max() < 1 else ""


def quantised(images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Float images (N, H, W, 3) in [0, 1] as uint8, with the fault of each; what is not finite becomes 0."""
    faults = [image_fault(image) for image in images]
    levels = np.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1) * 255
    return np.rint(levels).astype(np.uint8), faults


# ----------------------------------------------------------------------------------------- the embedding store
def save_embeddings(path: AnyPath, encoded: Encoded) -> None:
    """Writes one safetensors file, complete or not at all; bfloat16 where that loses no bit, else float32."""
    from safetensors.torch import save_file

    with published(path) as partial:
        save_file({name: _compact(values) for name, values in vars(encoded).items()}, partial)


def _compact(values: np.ndarray) -> torch.Tensor:
    import torch

    tensor = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))
    half = tensor.to(torch.bfloat16)
    return half if torch.equal(half.float(), tensor) else tensor


class EmbeddingStore:
    """A file of `save_embeddings`, of which only the rows asked for are read. It keeps no file open: it can be pickled.

    Raises:
        ValueError: the file is not there, is cut short, or is something else; or a row does not exist.
    """

    def __init__(self, path: str | AnyPath):
        self.path = at(path)
        try:
            self.file = TensorFile(self.path)
        except StoreError:
            raise
        except (FileNotFoundError, IsADirectoryError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"embeddings {self.path} cannot be read ({error}); delete the file and, beside it, prompts.parquet "
                             "and plan.parquet (not proposals/), and run the same command again: the same prompts, plan and "
                             "embeddings are made anew") from error  # fmt: skip
        if missing := set(Encoded.__dataclass_fields__) - set(self.file.tensors):
            raise ValueError(f"embeddings {self.path}: no {', '.join(sorted(missing))} in it; expected a file "
                             "written by `save_embeddings`")  # fmt: skip
        self.count = self.file.tensors["pooled"][1][0]

    def __len__(self) -> int:
        return self.count

    def pooled(self, indices: Sequence[int]) -> np.ndarray:
        """Only the vectors float32 (P, E) of the prompts `indices` in that order; the tokens are not read."""
        wanted = self._checked(indices)
        place = {row: i for i, row in enumerate(wanted)}
        return self.file.rows("pooled", wanted)[[place[row] for row in indices]]

    def rows(self, indices: Sequence[int]) -> Encoded:
        """The prompts `indices` in that order, with the empty prompt; repeats are allowed and read once."""
        wanted = self._checked(indices)
        place = {row: i for i, row in enumerate(wanted)}
        parts = [self.file.rows(name, wanted) for name in ("pooled", "sequence")]
        empty = [self.file.rows(name, [0]) for name in ("empty_pooled", "empty_sequence")]
        return Encoded(*parts, *empty).rows([place[row] for row in indices])

    def _checked(self, indices: Sequence[int]) -> list[int]:
        wanted = sorted(set(indices))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self.count:
            raise ValueError(f"embeddings {self.path}: asked for rows {wanted[0]} to {wanted[-1]}, but they are 0 to "
                             f"{self.count - 1}; the plan and this file are of different runs")  # fmt: skip
        return wanted
