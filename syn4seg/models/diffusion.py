"""Stable Diffusion 3 through diffusers, in two halves: text encoders only, and transformer + VAE + scheduler only.

Both halves read the same folder or hub id, and each fetches only its own files. Embeddings made by the first and images
made by the second are bit for bit those of the whole pipeline called with the same batch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from syn4seg.models.generators import Encoded, quantised

PIPELINE = "StableDiffusion3Pipeline"
TEXT = ("tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2", "text_encoder_3")
IMAGE = ("transformer", "vae", "scheduler")
ENCODE_BATCH = 8  # every text batch has this many rows, so that a prompt's embedding does not depend on its neighbours
T5_TOKENS = 256  # as diffusers' default; a pipeline saved without T5 was trained without these tokens: 0
_INSTEAD = "without any download: synthesis.model=renderer or synthesis.model=embedded-sd3"


class DiffusionTextEncoder:
    """The text encoders of a Stable Diffusion 3 pipeline (CLIP-L, CLIP-G and, where the folder has it, T5)."""

    def __init__(self, model: str, *, device: str = "auto"):
        """Loads from a folder or hub id: bfloat16 on a GPU, float32 on the CPU.

        Raises:
            ValueError: the model is not there, not of this kind, or cannot be read.
        """
        folder, index = _located(model, (*TEXT, "transformer/config.json"))
        self.pipeline = _loaded(folder, index, TEXT, device)
        self.t5_tokens = T5_TOKENS if index.get("text_encoder_3", [None])[0] else 0
        if not self.t5_tokens:  # then the pipeline asks the transformer for the width of the missing tokens
            width = json.loads((folder / "transformer" / "config.json").read_text())["joint_attention_dim"]
            self.pipeline.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=width))
        self.device = _device(device)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Encoded:
        """pooled float32 (P, E), sequence float32 (P, T, C) of `prompts`; each distinct one is encoded once."""
        distinct = list(dict.fromkeys(["", *prompts]))
        pooled, sequence = [], []
        for start in range(0, len(distinct), ENCODE_BATCH):
            part = distinct[start : start + ENCODE_BATCH]
            tokens, _, vector, _ = self.pipeline.encode_prompt(
                prompt=part + part[-1:] * (ENCODE_BATCH - len(part)), prompt_2=None, prompt_3=None, device=self.device,
                do_classifier_free_guidance=False, max_sequence_length=self.t5_tokens,
            )  # fmt: skip
            sequence.append(tokens[: len(part)].float().cpu().numpy())
            pooled.append(vector[: len(part)].float().cpu().numpy())
        at = {text: i for i, text in enumerate(distinct)}
        every = Encoded(np.concatenate(pooled), np.concatenate(sequence), pooled[0][:1], sequence[0][:1])
        return every.rows([at[text] for text in prompts])


class DiffusionGenerator:
    """Transformer, VAE and scheduler of a Stable Diffusion 3 pipeline: embeddings to images."""

    def __init__(self, model: str, *, steps: int, guidance: float, size: int, device: str = "auto"):
        """Loads from a folder or hub id: bfloat16 on a GPU, float32 on the CPU.

        Args:
            steps: denoising steps, at least 1.
            guidance: classifier-free guidance scale; 1 or less switches it off and halves the work.
            size: side of an image in pixels.

        Raises:
            ValueError: the model is not there, not of this kind, cannot be read, or cannot make images of that size.
        """
        if steps < 1:
            raise ValueError(f"synthesis.steps is {steps}; expected at least 1 denoising step")
        folder, index = _located(model, IMAGE)
        self.pipeline = _loaded(folder, index, IMAGE, device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.steps, self.guidance, self.size, self.device = steps, guidance, size, _device(device)
        step = self.pipeline.vae_scale_factor * self.pipeline.patch_size
        largest = step * self.pipeline.transformer.config.pos_embed_max_size
        if size % step or not 0 < size <= largest:
            raise ValueError(f"synthesis.size is {size}; model {model!r} makes images with sides of {step}, "
                             f"{2 * step}, {3 * step}... to {largest} pixels")  # fmt: skip

    def generate(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> tuple[np.ndarray, list[str]]:
        """Images uint8 (N, size, size, 3) and the fault of each, from `encoded` alone; noise is drawn on the CPU.

        The same batch gives the same bytes on the same machine. In another batch an image may differ by rounding.

        Raises:
            ValueError: the lengths differ.
        """
        if not len(prompts) == len(encoded) == len(noise_seeds):
            raise ValueError(f"{len(prompts)} prompts, {len(encoded)} embeddings and {len(noise_seeds)} noise seeds; "
                             "expected as many of each")  # fmt: skip
        embeddings = {"prompt_embeds": encoded.sequence, "pooled_prompt_embeds": encoded.pooled}
        if self.guidance > 1:
            embeddings["negative_prompt_embeds"] = np.repeat(encoded.empty_sequence, len(prompts), axis=0)
            embeddings["negative_pooled_prompt_embeds"] = np.repeat(encoded.empty_pooled, len(prompts), axis=0)
        dtype = self.pipeline.transformer.dtype
        made = self.pipeline(
            **{name: torch.from_numpy(values).to(self.device, dtype) for name, values in embeddings.items()},
            generator=[torch.Generator().manual_seed(int(s)) for s in noise_seeds], num_inference_steps=self.steps,
            guidance_scale=self.guidance, height=self.size, width=self.size, output_type="np",
        )  # fmt: skip
        return quantised(made.images)


# ----------------------------------------------------------------------------------------------- loading
def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _located(model: str, parts: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    """The local folder that holds `parts` of a model (fetched if it is a hub id) and its checked model_index.json."""
    folder = Path(model)
    if not model or not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
            raise ValueError(f"model {model!r} is neither a folder nor a hub id such as "
                             f"stabilityai/stable-diffusion-3.5-large; {_INSTEAD}")  # fmt: skip
        folder = _fetched(model, parts)
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except FileNotFoundError:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"model {model!r} has no model_index.json (found: {found}); expected a folder as diffusers' "
                         f"save_pretrained writes it, not the one above or below; {_INSTEAD}") from None  # fmt: skip
    except ValueError as error:
        raise ValueError(f"model {model!r}: model_index.json is not JSON ({error}); fetch the model again") from error
    if index.get("_class_name") != PIPELINE:
        raise ValueError(f"model {model!r} is a {index.get('_class_name')}; expected a {PIPELINE}, such as "
                         f"stabilityai/stable-diffusion-3.5-large or -medium; {_INSTEAD}")  # fmt: skip
    return folder, index


def _fetched(model: str, parts: tuple[str, ...]) -> Path:
    """The cached snapshot of a hub model, of which only `parts` are downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["model_index.json", *(p if "/" in p else f"{p}/*" for p in parts)]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns, ignore_patterns=["*.fp16*", "*.bin"]))
    except (OSError, HFValidationError) as error:
        raise ValueError(f"model {model!r} could not be fetched from the hub ({type(error).__name__}). If it is gated, "
                         f"as Stable Diffusion 3.5 is: accept its licence at https://huggingface.co/{model} and set "
                         "HF_TOKEN. If this machine is offline (or HF_HUB_OFFLINE is set): fetch it elsewhere with "
                         f"`hf download {model}` and give the folder. Or {_INSTEAD}") from error  # fmt: skip


def _loaded(folder: Path, index: dict[str, Any], parts: tuple[str, ...], device: str) -> Any:
    """The pipeline with only `parts` in it."""
    import diffusers
    import transformers
    from safetensors import SafetensorError, safe_open

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    present = [name for name in parts if index.get(name, [None])[0]]
    for path in sorted(p for name in present for p in (folder / name).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is cut short or damaged ({error}); copy or download this file again") from error
    where = _device(device)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    left_out = {n: None for n, v in index.items() if isinstance(v, list) and n not in present}
    try:
        pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
            folder, dtype=dtype, local_files_only=True, **left_out
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"model {folder} cannot be loaded: {error}; expected {', '.join(present)} as diffusers' "
                         "save_pretrained writes them") from error  # fmt: skip
    return pipeline.to(where)
