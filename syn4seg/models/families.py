"""Families of text-to-image pipelines of diffusers: what each returns for a prompt, and how it is asked for an image. Pure data.

A new family is a line in `FAMILIES`. A text-to-image pipeline without one works too, as a whole: its text encoders then stay
with the generator, and prompts are compared as bags of words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

SD3 = "StableDiffusion3Pipeline"
"""The family that has a class of its own (`models.diffusion`)."""
TEXT = re.compile(r"(text_encoder|tokenizer)(_\d)?")
"""Names of the parts that turn prompts into embeddings; the rest makes images."""
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that are never loaded: they judge or read images of people, and an image that they black out would be a fault."""
NO_WEIGHTS = re.compile(r"Scheduler|Tokenizer|Processor|FeatureExtractor")
"""Classes of parts without weights."""
OTHER_TASK = re.compile(r"Img2Img|Inpaint|ControlNet|Video|Upscale|Edit|Kontext|Audio|Pix2Pix|Depth|Image2Image|Variation|Layered")
"""Names of pipelines that need more than a text."""


@dataclass(frozen=True)
class PipelineFamily:
    """What `encode_prompt` of a pipeline returns, in order, and the names under which its call takes that.

    Attributes:
        returns: of each value: "sequence" (P, T, C), "pooled" (P, E), "mask" (P, T), the same of the empty prompt
            ("empty_..."), or "" for what the call makes by itself. Without "empty_..." the empty text is encoded.
        mask: argument of the call that takes the mask, if there is one.
        trimmed: sequences are as long as the longest prompt of the batch.
        listed: sequences come and go as a list, a tensor (T, C) for each prompt.
        guidance: argument of the call that takes the guidance scale.
        guided_above_zero: the call guides at any scale above 0, not above 1; so a scale of 1 or less is given as 0.
        packed: two by two latent cells make one token, so a side has twice the autoencoder's step.
    """

    returns: tuple[str, ...]
    mask: str = ""
    trimmed: bool = False
    listed: bool = False
    guidance: str = "guidance_scale"
    guided_above_zero: bool = False
    packed: bool = False


_PLAIN = PipelineFamily(("sequence", "empty_sequence"))
_MASKED = PipelineFamily(("sequence", "mask", "empty_sequence", "empty_mask"), mask="prompt_attention_mask")
FAMILIES = {
    "StableDiffusionPipeline": _PLAIN,
    "LatentConsistencyModelPipeline": _PLAIN,
    "StableDiffusionXLPipeline": PipelineFamily(("sequence", "empty_sequence", "pooled", "empty_pooled")),
    "FluxPipeline": PipelineFamily(("sequence", "pooled", ""), packed=True),
    "Flux2Pipeline": PipelineFamily(("sequence", ""), packed=True),
    "PixArtAlphaPipeline": _MASKED,
    "PixArtSigmaPipeline": _MASKED,
    "SanaPipeline": _MASKED,
    "SanaSprintPipeline": PipelineFamily(("sequence", "mask"), mask="prompt_attention_mask"),
    "AuraFlowPipeline": _MASKED,
    "Lumina2Pipeline": _MASKED,
    "QwenImagePipeline": PipelineFamily(
        ("sequence", "mask"), mask="prompt_embeds_mask", trimmed=True, guidance="true_cfg_scale", packed=True
    ),
    "ZImagePipeline": PipelineFamily(
        ("sequence", "empty_sequence"), trimmed=True, listed=True, guided_above_zero=True, packed=True
    ),
}
"""Class of a pipeline -> its family."""


def part_names(index: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the parts of a model_index.json that a run loads: those of texts, and those of images."""
    present = [n for n, v in index.items() if isinstance(v, list) and len(v) == 2 and v[0] and n not in LEFT_OUT]
    return tuple(n for n in present if TEXT.fullmatch(n)), tuple(n for n in present if not TEXT.fullmatch(n))


def has_weights(index: dict[str, Any], name: str) -> bool:
    """Return whether a part of a pipeline is a network."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and bool(entry[1]) and not NO_WEIGHTS.search(str(entry[1]))
