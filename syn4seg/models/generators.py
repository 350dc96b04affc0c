"""Image generators and their text encoders: the table of those that have a name, and how any of them is loaded.

Prompts are encoded once (`load_text_encoder`) and stored; image actors read only the rows that they need (`EmbeddingStore`)
and never load a text encoder (`load_generator`). Importing this module loads no heavy library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from syn4seg.config.images import API
from syn4seg.errors import UserError
from syn4seg.models import renderer
from syn4seg.models.families import FAMILIES, SD3
from syn4seg.models.protocols import PLAIN, GeneratorSource, ImageGenerator, PromptWorld, Speed, TextEncoder

EMBEDDED_SD3 = Path(__file__).parent.parent / "weights" / "embedded-sd3"
"""The small Stable Diffusion 3 pipeline of the embedded world, in the folder format of diffusers."""


def diffusers_source(path: str, world: PromptWorld = "natural") -> GeneratorSource:
    """Return how a text-to-image pipeline of diffusers is loaded from a folder or a hub id.

    Stable Diffusion 3 has a class of its own; other families are told apart in `families.FAMILIES`, and what is none of them is
    called whole: its prompts are compared as the renderer's bags of words.
    """

    def check(speed: Speed) -> None:
        from syn4seg.models import hub

        hub.check(path)

    def text_encoder(device: str) -> TextEncoder:
        from syn4seg.models.hub import read_index

        kind = read_index(path)["_class_name"]
        if kind == SD3:
            from syn4seg.models.diffusion import DiffusionTextEncoder

            return DiffusionTextEncoder(path, device=device)
        if kind in FAMILIES:
            from syn4seg.models.pipelines import PipelineTextEncoder

            return PipelineTextEncoder(path, device=device)
        return renderer.SOURCE.load_text_encoder(device)

    def generator(**options: Any) -> ImageGenerator:
        from syn4seg.models.hub import read_index

        if read_index(path)["_class_name"] == SD3:
            from syn4seg.models.diffusion import DiffusionGenerator

            return DiffusionGenerator(path, **options)
        from syn4seg.models.pipelines import PipelineGenerator

        return PipelineGenerator(path, **options)

    return GeneratorSource(text_encoder, generator, check, path, world)


GENERATORS = {"renderer": renderer.SOURCE, "embedded-sd3": diffusers_source(str(EMBEDDED_SD3), "embedded")}
"""Name in `synthesis.model` -> how it is loaded; any other value is a folder or a hub id of a diffusers pipeline."""


def generator_source(model: str) -> GeneratorSource:
    """Return how the image model of a name, a folder or a hub id is loaded; whether it can be is not checked.

    A service's (`api:NAME`, see `SynthesisConfig.generator`) is not loaded: its prompts are natural English, compared as bags of
    words.
    """
    if model.startswith(API):
        return GeneratorSource(renderer.SOURCE.load_text_encoder, _not_loaded)
    return GENERATORS.get(model) or diffusers_source(model)


def _not_loaded(**_: Any) -> ImageGenerator:
    raise UserError("synthesis.source=api: the images of a service are asked for and not made here; set synthesis.source=generate")


def _installed(model: str) -> GeneratorSource:
    source = generator_source(model)
    if model in GENERATORS and source.path is not None and not Path(source.path, "model_index.json").is_file():
        raise UserError(
            f"model {model!r} has no weights in this installation (looked in {source.path}); reinstall the package, or set "
            "synthesis.model=renderer, which needs none"
        )
    return source


def check_model(model: str, speed: Speed = PLAIN) -> None:
    """Check what can be said about a model before a run, without loading weights or using the network.

    Raises:
        UserError: as `load_generator`, as far as files, cache, token and `speed` show it.
    """
    _installed(model).check(speed)


def load_text_encoder(model: str, *, device: str = "auto") -> TextEncoder:
    """Load the text encoder of an image model, without the image model.

    Args:
        model: a name in `GENERATORS`, or a folder or hub id of a text-to-image pipeline of diffusers.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".

    Raises:
        UserError: the model is missing or cannot be read; the text says what to do.
    """
    return _installed(model).load_text_encoder(device)


def load_generator(
    model: str, *, steps: int, guidance: float, size: int, device: str = "auto", speed: Speed = PLAIN
) -> ImageGenerator:
    """Load the image model, without its text encoders.

    Args:
        model: as for `load_text_encoder`.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 or less switches it off.
        size: side of an image in pixels.
        speed: options that make it faster or smaller.

    Raises:
        UserError: the model is missing, cannot be read, or cannot make images of that size or in that way.
    """
    options: dict[str, Any] = {"steps": steps, "guidance": guidance, "size": size, "device": device, "speed": speed}
    return _installed(model).load_generator(**options)
