"""Stable Diffusion 3 through diffusers, in two halves: text encoders only, and transformer + VAE + scheduler only.

Both halves read the same folder or hub id, and each fetches only its own files. Embeddings made by the first and images
made by the second are bit for bit those of the whole pipeline called with the same batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syn4seg.errors import UserError
from syn4seg.models import speed as speeds
from syn4seg.models.device import generator_device, generator_dtype
from syn4seg.models.embeddings import Encoded
from syn4seg.models.hub import CLASSES, IMAGE, TEXT, locate_model, present_components, revision
from syn4seg.models.images import to_uint8
from syn4seg.models.pipelines import ENCODE_BATCH, cut_at, read_network
from syn4seg.models.protocols import PLAIN, GeneratedBatch, Speed
from syn4seg.models.step_cache import StepCache

T5_TOKENS = 256  # as diffusers' default; a pipeline saved without T5 was trained without these tokens: 0


class DiffusionTextEncoder:
    """The text encoders of a Stable Diffusion 3 pipeline (CLIP-L, CLIP-G and, where the folder has it, T5)."""

    def __init__(self, model: str, *, device: str = "auto"):
        """Load from a folder or hub id: bfloat16 on a GPU, float32 on the CPU.

        Raises:
            UserError: the model is not there, not of this kind, or cannot be read.
        """
        self.device = generator_device(device)
        folder, index = locate_model(model, (*TEXT, "transformer/config.json"))
        self.pipeline = _loaded(folder, index, TEXT, self.device, PLAIN)
        self.t5_tokens = T5_TOKENS if "text_encoder_3" in present_components(index, TEXT) else 0
        if not self.t5_tokens:  # then the pipeline asks the transformer for the width of the missing tokens
            width = json.loads((folder / "transformer" / "config.json").read_text())["joint_attention_dim"]
            self.pipeline.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=width))

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Encoded:
        """Return pooled float32 (P, E), sequence float32 (P, T, C) of `prompts`; each distinct one is encoded once."""
        distinct = list(dict.fromkeys(["", *prompts]))
        pooled, sequence = [], []
        for start in range(0, len(distinct), ENCODE_BATCH):
            part = distinct[start : start + ENCODE_BATCH]
            tokens, _, vector, _ = self.pipeline.encode_prompt(
                prompt=part + part[-1:] * (ENCODE_BATCH - len(part)),
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.t5_tokens,
            )
            sequence.append(tokens[: len(part)].float().cpu().numpy())
            pooled.append(vector[: len(part)].float().cpu().numpy())
        at = {text: i for i, text in enumerate(distinct)}
        every = Encoded(np.concatenate(pooled), np.concatenate(sequence), pooled[0][:1], sequence[0][:1])
        return every.rows([at[text] for text in prompts])

    def cut_at(self, prompts: list[str]) -> list[int]:
        """Return `pipelines.cut_at` of CLIP-L, whose pooled embedding no longer reads what stands behind."""
        return cut_at(self.pipeline.tokenizer, prompts)


class DiffusionGenerator:
    """Transformer, VAE and scheduler of a Stable Diffusion 3 pipeline: embeddings to images."""

    def __init__(self, model: str, *, steps: int, guidance: float, size: int, device: str = "auto", speed: Speed = PLAIN):
        """Load from a folder or hub id: bfloat16 on a GPU, float32 on the CPU.

        Args:
            steps: denoising steps, at least 1.
            guidance: classifier-free guidance scale; 1 or less switches it off and halves the work.
            size: side of an image in pixels.
            speed: see `Speed`; with a step cache an image depends on its batch in no bit, otherwise by rounding.

        Raises:
            UserError: the model is not there, not of this kind, cannot be read, or cannot make images of that size.
        """
        if steps < 1:
            raise UserError(f"synthesis.steps is {steps}; expected at least 1 denoising step")
        self.steps, self.guidance, self.size, self.device, self.speed = steps, guidance, size, generator_device(device), speed
        speeds.check(speed, self.device)
        folder, index = locate_model(model, IMAGE)
        self.source = {"model": folder.name if Path(model).is_dir() else model, "revision": revision(folder)}
        self.pipeline = _loaded(folder, index, IMAGE, self.device, speed)
        self.pipeline.set_progress_bar_config(disable=True)
        self.dtype = generator_dtype(self.device)
        self._check_size(model)
        self.cache = StepCache(self.pipeline.transformer) if speed.step_cache > 0 else None

    def _check_size(self, model: str) -> None:
        step = self.pipeline.vae_scale_factor * self.pipeline.patch_size
        largest = step * self.pipeline.transformer.config.pos_embed_max_size
        if self.size % step or not 0 < self.size <= largest:
            raise UserError(
                f"synthesis.size is {self.size}; model {model!r} makes images with sides of {step}, "
                f"{2 * step}, {3 * step}... to {largest} pixels"
            )

    def facts(self) -> dict[str, Any]:
        """Return what makes the images: model, revision, precision, device and every option, as plain JSON values."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return (
            self.source
            | {
                "dtype": str(self.dtype).removeprefix("torch."),
                "device": name,
                "steps": self.steps,
                "guidance": self.guidance,
                "size": self.size,
            }
            | vars(self.speed)
        )

    def generate(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> tuple[np.ndarray, list[str]]:
        """Return images uint8 (N, size, size, 3) and the fault of each; see `make`."""
        batch = self.make(prompts, encoded, noise_seeds)
        return batch.images, batch.faults

    def make(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> GeneratedBatch:
        """Return images from `encoded` alone; noise is drawn on the CPU. A faulty one is made once more, alone and in float32.

        The same batch gives the same bytes on the same machine. In another batch an image may differ by rounding, unless
        there is a step cache. The audit of an image may say `blocks_run` and `blocks_skipped` (with a step cache), and,
        after a fault, `first_fault`, `retried` and, if that helped, `precision`.

        Raises:
            UserError: the lengths differ.
        """
        if not len(prompts) == len(encoded) == len(noise_seeds):
            raise UserError(
                f"{len(prompts)} prompts, {len(encoded)} embeddings and {len(noise_seeds)} noise seeds; expected as many of each"
            )
        latents = self._denoised(encoded, self._noise(noise_seeds), self.speed.step_cache)
        audit: list[dict[str, Any]] = [{} for _ in prompts]
        if self.cache:
            audit = [{"blocks_run": m.ran, "blocks_skipped": m.skipped} for m in self.cache.memories]
        images, faults = to_uint8(self._decoded(latents))
        for i, fault in enumerate(faults):
            if fault:
                image, retries = self._again(latents[i : i + 1], encoded.rows([i]), noise_seeds[i])
                audit[i] |= {"first_fault": fault} | retries
                if image is not None:
                    images[i], faults[i] = image, ""
        return GeneratedBatch(images, faults, audit)

    def _noise(self, noise_seeds: list[int]) -> Tensor:
        from diffusers.utils.torch_utils import randn_tensor

        side = self.size // self.pipeline.vae_scale_factor
        shape = len(noise_seeds), self.pipeline.transformer.config.in_channels, side, side
        random = [torch.Generator().manual_seed(int(s)) for s in noise_seeds]
        return randn_tensor(shape, random, self.device, self.dtype)

    def _denoised(self, encoded: Encoded, noise: Tensor, threshold: float) -> Tensor:
        """Return latents (N, C, h, w) in the precision of `noise`; `threshold` is that of the step cache, if there is one."""
        if self.cache:
            self.cache.start(len(noise), threshold)
        return self.pipeline(
            **self.inputs([], encoded, noise.dtype),
            latents=noise,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            height=self.size,
            width=self.size,
            output_type="latent",
        ).images

    def inputs(self, prompts: list[str], encoded: Encoded, dtype: torch.dtype) -> dict[str, Any]:
        """Return the arguments of a pipeline's call that hold the prompts: their embeddings and, with guidance, the empty one's."""
        embeddings = {"prompt_embeds": encoded.sequence, "pooled_prompt_embeds": encoded.pooled}
        if self.guidance > 1:
            embeddings["negative_prompt_embeds"] = np.repeat(encoded.empty_sequence, len(encoded), axis=0)
            embeddings["negative_pooled_prompt_embeds"] = np.repeat(encoded.empty_pooled, len(encoded), axis=0)
        return {name: torch.from_numpy(values).to(self.device, dtype) for name, values in embeddings.items()}

    @torch.no_grad()
    def _decoded(self, latents: Tensor) -> np.ndarray:
        """Return float32 (N, size, size, 3) in [0, 1]; one by one if an image must not depend on its batch, or to save memory."""
        vae, show = self.pipeline.vae, self.pipeline.image_processor.postprocess
        alone = self.speed.vae_slicing or self.cache is not None
        images = []
        for part in [latents[i : i + 1].clone() for i in range(len(latents))] if alone else [latents]:
            scaled = (part / vae.config.scaling_factor) + vae.config.shift_factor
            images.append(show(vae.decode(scaled, return_dict=False)[0], output_type="np"))
        return np.concatenate(images)

    def _again(self, latents: Tensor, encoded: Encoded, noise_seed: int) -> tuple[np.ndarray | None, dict[str, Any]]:
        """Return a faulty image once more, alone, without cache and compilation; None if it is faulty still.

        First its latents are decoded in float32, if that differs from before; then all of it is made in float32, from the
        same noise, unless the transformer's weights are small ones, which have no other precision.
        """
        tried, vae, transformer = [], self.pipeline.vae, self.pipeline.transformer
        attempts: list[tuple[str, list[Any]]] = [("float32 decoder", [vae])] if self.dtype != torch.float32 else []
        attempts += [("float32", [vae, transformer])] if self.speed.weights == "full" else []
        for name, modules in attempts:
            tried.append(name)
            try:
                with speeds.in_float32(modules):
                    whole = transformer in modules
                    again = self._denoised(encoded, self._noise([noise_seed]).float(), 0) if whole else latents.float()
                    images, faults = to_uint8(self._decoded(again))
            except RuntimeError as error:  # most likely float32 does not fit in memory: the image stays faulty
                return None, {"retried": f"{', '.join(tried)}: {' '.join(str(error).split())}"}
            if not faults[0]:
                return images[0], {"retried": ", ".join(tried), "precision": name}
        return None, {"retried": ", ".join(tried)}


def _loaded(folder: Path, index: dict[str, Any], parts: tuple[str, ...], device: torch.device, speed: Speed) -> Any:
    """Return the pipeline with only `parts` in it."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    have = present_components(index, parts)
    left_out = {n: None for n, v in index.items() if isinstance(v, list) and n not in have}
    options = {"transformer": speeds.quantisation(speed)}
    try:
        networks = {
            name: read_network(folder / name, index[name], generator_dtype(device), options.get(name, {}))
            for name in have
            if name in CLASSES
        }
        pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **networks, **left_out)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"model {folder} cannot be loaded: {' '.join(str(error).split())}; expected {', '.join(have)} as "
            "diffusers' save_pretrained writes them"
        ) from error
    if "transformer" in have:
        speeds.apply(speed, pipeline.transformer, device, generator_dtype(device))
    return pipeline.to(device)
