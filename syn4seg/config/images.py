"""The sections `prompts` and `synthesis`: which images are asked for, and what makes them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from syn4seg.config.class_words import ClassWords, read_names
from syn4seg.config.sections import Cosine, Count, Section

API = "api:"
"""Before the name of an image model that a service has."""


def refuse_key(section: str, base_url: str | None, key_variable: str) -> None:
    """Refuse a key that stands in the configuration, which is written to the run.

    Raises:
        ValueError: the address has a user name or a key in it, or the name of the environment variable is none.
    """
    if "@" in (base_url or ""):
        raise ValueError(
            f"{section}.base_url holds a user name or a key: it would be written to the run; put the key into the "
            f"environment variable of {section}.key_variable and nowhere else"
        )
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", key_variable):
        raise ValueError(
            f"{section}.key_variable is not the name of an environment variable (is it the key itself? That would be "
            "written to the run); set the variable to the key, and this to its name"
        )


class PromptsConfig(Section):
    agent: Literal["grammar", "chat", "transformers"] = "grammar"
    """Who proposes prompts: `grammar` needs no language model; `chat` asks an OpenAI-compatible endpoint; `transformers`
    runs a causal language model here."""
    llm: str | None = None
    """`chat`: the model's name at the endpoint. `transformers`: a folder or hub id."""
    base_url: str | None = None
    """`chat`: address of the endpoint, e.g. http://127.0.0.1:8000/v1 (vLLM, Ollama); empty for OpenAI's own."""
    key_variable: str = "OPENAI_API_KEY"
    """`chat`: environment variable that holds the key; its value is never written anywhere."""
    per_round: Count = 16
    """Prompts that a language model is asked for at once."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature of a language model."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """`chat`: seconds to wait for a reply; late, 429 and 5xx replies are asked for again, a few times."""
    bank_size: Count = 48
    """Prompts wanted per novel class."""
    lambda_prompt: Cosine = 0.97
    """A prompt is accepted iff its largest cosine to an accepted one is below this (HDIG)."""
    names: dict[str, ClassWords] = {}
    """How classes are called in prompts where their names in the data set say something else: `{mouse: computer mouse}`, or
    `{mouse: {name: computer mouse, synonyms: [pc mouse], definition: the hand-held device that moves a pointer}}`. A prompt may
    use a synonym instead of the name; language models are told the synonyms and the definition."""
    patience: Count = 400
    """Stop after this many candidates in a row without an acceptance."""

    @field_validator("names", mode="before")
    @classmethod
    def _names_are_words(cls, value: Any) -> Any:
        return read_names(value)

    def words(self, class_name: str) -> ClassWords:
        """Return the words for a class, its own name where no other is given."""
        given = self.names.get(class_name, ClassWords())
        return given if given.name else given.model_copy(update={"name": class_name})

    @model_validator(mode="after")
    def _llm_is_given_and_no_key(self) -> PromptsConfig:
        if self.agent != "grammar" and not self.llm:
            raise ValueError(f"prompts.llm is empty, but prompts.agent is {self.agent!r}: name the language model")
        refuse_key("prompts", self.base_url, self.key_variable)  # here, before any agent or file sees it
        return self


class SynthesisConfig(Section):
    source: Literal["generate", "folder", "api"] = "generate"
    """`generate`: from the prompt bank, by a model here. `folder`: import images, one folder per class under `synthesis.root`.
    `api`: from the prompt bank, by an OpenAI-compatible images endpoint, which may cost money (`synthesis.max_images`)."""
    root: Path | None = None
    """Folder of images to import: ROOT/CLASS/*.jpg|png."""
    model: str = "renderer"
    """`renderer`, `embedded-sd3`, or a text-to-image pipeline of diffusers: a folder, or a hub id (`OWNER/NAME`, or
    `OWNER/NAME@REVISION` for one of its commits, branches or tags). `api`: the model's name at the endpoint."""
    base_url: str | None = None
    """`api`: address of the endpoint, e.g. http://127.0.0.1:8000/v1; empty for OpenAI's own."""
    key_variable: str = "OPENAI_API_KEY"
    """`api`: environment variable that holds the key, on every machine that makes images; its value is never written anywhere."""
    max_images: Count | None = None
    """`api`: most images that the endpoint may be asked for, in this run and all its resumptions; to be given, and no less than are
    planned. Each planned image has an equal share of it. What was asked for and never arrived counts; an answer that is an error
    does not."""
    request_size: str | None = None
    """`api`: the size to ask for, as the endpoint calls it (`1024x1024`); empty: `synthesis.size`. Images are brought to that."""
    timeout: Annotated[float, Field(gt=0)] = 180.0
    """`api`: seconds to wait for an image; late, 429 and 5xx replies are asked for again, a few times."""
    images_per_class: Count = 48
    """Synthetic images per novel class and prompt bank; prompts are used in turn."""
    check: str = ""
    """Empty: off. A folder or hub id of a CLIP or SigLIP model of transformers: an image is rejected unless it is more similar to
    "a photo of a CLASS" for its own class than for every other class of the fold."""
    check_margin: Cosine = 0.0
    """By how much cosine its own class must be ahead; below 0 it may be that much behind, where images show several classes."""
    support: Literal["none", "image_to_image"] = "none"
    """`image_to_image`: an image starts from a support image of its class, noised, instead of from noise alone; which one, the
    sample's noise seed says. Images then belong to one support draw: `data.draws=1`, `data.first_draw` says which."""
    support_strength: Annotated[float, Field(gt=0, le=1)] = 0.6
    """`image_to_image`: how much of the support image is noise at the start, and which share of the denoising steps is taken; at 1
    nothing of it is left."""
    class_name_bank: bool = True
    """Also make images from the plain class-name prompt, for the ablation row `class_name_raw`."""
    batch: Count = 8
    """Images per generator batch. It is part of the plan because rounding depends on it."""
    steps: Count = 16
    """Denoising steps."""
    guidance: Annotated[float, Field(ge=0)] = 3.0
    """Classifier-free guidance scale; 1 or less switches it off."""
    size: Annotated[int, Field(ge=16, le=4096, multiple_of=16)] = 64
    """Side of an image in pixels."""
    compile: bool = False
    """Compile the transformer's blocks: faster after a minute; rounding may change."""
    attention: str = "default"
    """Attention backend of diffusers (`native`, `flash`, `sage`, ...); rounding may change."""
    vae_slicing: bool = False
    """Decode one image at a time: less memory; rounding may change."""
    weights: Literal["full", "nf4", "fp8"] = "full"
    """Precision of the transformer's weights on a GPU: `nf4` and `fp8` fit small cards and change the images."""
    step_cache: Annotated[float, Field(ge=0)] = 0.0
    """Above 0: skip most of the transformer where its first block changed by less than this share since the last full step.
    Decided for each image alone; changes the images."""

    @model_validator(mode="after")
    def _root_is_given(self) -> SynthesisConfig:
        if self.source == "folder" and self.root is None:
            raise ValueError("synthesis.root is empty, but synthesis.source is 'folder': set synthesis.root=FOLDER")
        return self

    @model_validator(mode="after")
    def _support_can_be_used(self) -> SynthesisConfig:
        if self.support == "none":
            return self
        if self.source != "generate":
            raise ValueError(
                f"synthesis.support is {self.support!r}, but synthesis.source is {self.source!r}: only a pipeline that runs here "
                "can start from a support image; set synthesis.source=generate, or synthesis.support=none"
            )
        if self.step_cache > 0:
            raise ValueError(
                f"synthesis.support is {self.support!r}, and synthesis.step_cache is {self.step_cache:g}: the two do not go "
                "together; set one of them back (synthesis.step_cache=0, synthesis.support=none)"
            )
        if self.steps * self.support_strength < 1:
            raise ValueError(
                f"synthesis.support_strength is {self.support_strength:g} of synthesis.steps={self.steps}: expected at least one "
                f"step, so {1 / self.steps:g} or more"
            )
        return self

    @model_validator(mode="after")
    def _service_is_described_and_no_key(self) -> SynthesisConfig:
        refuse_key("synthesis", self.base_url, self.key_variable)
        if self.source == "api" and self.model in ("renderer", "embedded-sd3"):
            raise ValueError(
                f"synthesis.model is {self.model!r}, but synthesis.source is 'api': set synthesis.model to the name of an image "
                "model at the endpoint"
            )
        if self.source == "api" and self.max_images is None:
            raise ValueError(
                "synthesis.max_images is empty, but synthesis.source is 'api', and images may cost money: set it to how many may "
                "be asked for; `syn4seg plan` counts those that a run needs"
            )
        return self

    @property
    def steps_taken(self) -> int:
        """Denoising steps of an image: all of them, or the share that is left from a support image on."""
        return self.steps if self.support == "none" else math.ceil(self.steps * self.support_strength)

    @property
    def from_prompts(self) -> bool:
        """Whether images are made from the prompt bank, here or elsewhere; imported ones are not."""
        return self.source != "folder"

    @property
    def generator(self) -> str:
        """What `models.generators` knows the image model by, and records name: the model, behind "api:" where a service has it."""
        return f"{API}{self.model}" if self.source == "api" else self.model
