"""Image generators and their text encoders: small Protocols, loaded apart, and the file that joins them.

Prompts are encoded once (`load_text_encoder`) and stored; image actors read only the rows they need (`EmbeddingStore`)
and never load a text encoder (`load_generator`). Importing this module loads no heavy library.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from syn4seg.errors import UserError
from syn4seg.models.protocols import PLAIN, ImageGenerator, Speed, TextEncoder

if TYPE_CHECKING:
    pass

EMBEDDED_SD3 = Path(__file__).parent.parent / "weights" / "embedded-sd3"
"""The small Stable Diffusion 3 pipeline of the embedded world, in diffusers' folder format."""


# ----------------------------------------------------------------------------------------------- loading
def check_model(model: str, speed: Speed = PLAIN) -> None:
    """What can be said about a model before a run, without loading weights or using the network.

    Raises:
        UserError: as `load_generator`, as far as files, cache, token and `speed` show it.
    """
    from syn4seg.models import hub

    _check_renderer(speed) if model == "renderer" else hub.check(_place(model))


def load_text_encoder(model: str, *, device: str = "auto") -> TextEncoder:
    """The text encoder of an image model, without the image model.

    Args:
        model: "renderer", "embedded-sd3", or a folder or hub id in diffusers' Stable Diffusion 3 format.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".

    Raises:
        UserError: the model is not there or cannot be read; the text says what to do.
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
        UserError: the model is not there, cannot be read, or cannot make images of that size or in that way.
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
        raise UserError(
            f"model 'embedded-sd3' has no weights in this installation (looked in {EMBEDDED_SD3}); "
            "reinstall the package, or set synthesis.model=renderer, which needs none"
        )
    return str(EMBEDDED_SD3)


def _check_renderer(speed: Speed) -> None:
    for key, default in vars(PLAIN).items():
        if getattr(speed, key) != default:
            raise UserError(
                f"synthesis.{key}={getattr(speed, key)}: the renderer has no network; leave it at {default}, or set "
                "synthesis.model to a Stable Diffusion 3 model"
            )


# ------------------------------------------------------------------------------------------ faulty images


# ----------------------------------------------------------------------------------------- the embedding store
