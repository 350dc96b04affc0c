"""Any text-to-image pipeline of diffusers, by its own class: prompts are encoded once, images come from the embeddings alone.

What differs between families is a line of `families.FAMILIES`. A pipeline without one is called whole, with its text encoders.
Noise is drawn on the CPU, one generator for each image, so an image's noise depends on nothing but its seed.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.models import speed as speeds
from syn4seg.models.device import generator_device, generator_dtype
from syn4seg.models.embeddings import Encoded, pad
from syn4seg.models.families import FAMILIES, LEFT_OUT, PipelineFamily, has_weights, part_names
from syn4seg.models.hub import locate_model, read_index, revision
from syn4seg.models.images import to_uint8
from syn4seg.models.protocols import PLAIN, GeneratedBatch, Speed

ENCODE_BATCH = 8
"""Rows of every batch of texts, so that a prompt's embedding does not depend on its neighbours."""
NO_LIMIT = 10_000
"""Tokens beyond which a tokenizer's limit is none: that of a language model, which bounds its texts otherwise."""


def cut_at(tokenizer: Any, prompts: list[str]) -> list[int]:
    """Return for each prompt 0, or the number of tokens after which a text encoder no longer reads it."""
    limit = int(tokenizer.model_max_length)
    if limit > NO_LIMIT:
        return [0] * len(prompts)
    lengths = (len(ids) for ids in tokenizer(prompts, truncation=True, max_length=limit + 1).input_ids)
    return [limit if length > limit else 0 for length in lengths]


def encode_texts(pipeline: Any, family: PipelineFamily, device: torch.device, prompts: list[str]) -> dict[str, np.ndarray]:
    """Return what one call of a pipeline's `encode_prompt` gives, by the names of `PipelineFamily.returns`, as float32.

    Without a pooled vector of the pipeline's own, it is the mean of the tokens that count.
    """
    accepted = inspect.signature(pipeline.encode_prompt).parameters
    of_call = inspect.signature(type(pipeline).__call__).parameters
    options = {n: of_call[n].default for n in accepted if n in of_call and of_call[n].default is not inspect.Parameter.empty}
    options |= {"prompt": prompts, "device": device, "num_images_per_prompt": 1}
    options["do_classifier_free_guidance"] = any(name.startswith("empty_") for name in family.returns)
    values = pipeline.encode_prompt(**{name: value for name, value in options.items() if name in accepted})
    found: dict[str, np.ndarray] = {}
    for name, value in zip(family.returns, values, strict=True):
        if not name:
            continue
        if family.listed:
            lengths = [len(tokens) for tokens in value]
            found[name.replace("sequence", "mask")] = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.float32)
            value = nn.utils.rnn.pad_sequence(list(value), batch_first=True)
        if value is not None:
            found[name] = value.float().cpu().numpy()
    for prefix in ("", "empty_"):
        if (sequence := found.get(f"{prefix}sequence")) is not None:
            if "mask" in family.returns:  # a pipeline may leave out a mask of ones
                found.setdefault(f"{prefix}mask", np.ones(sequence.shape[:2], np.float32))
            counted = found.get(f"{prefix}mask", np.ones(sequence.shape[:2], np.float32))[..., None]
            mean = (sequence * counted).sum(1) / counted.sum(1).clip(1)
            found.setdefault(f"{prefix}pooled", mean.astype(np.float32))
    return found


def call_options(pipeline: Any, family: PipelineFamily | None, *, steps: int, guidance: float, size: int) -> dict[str, Any]:
    """Return the arguments of a pipeline's call that say how images are made; those of them that it takes."""
    accepted = inspect.signature(type(pipeline).__call__).parameters
    options = {
        "num_inference_steps": steps,
        family.guidance if family else "guidance_scale": 0.0 if family and family.guided_above_zero and guidance <= 1 else guidance,
        "height": size,
        "width": size,
        "output_type": "np",
        "use_resolution_binning": False,  # sides as asked for, instead of the nearest that the model was trained on
    }
    return {name: value for name, value in options.items() if name in accepted}


class PipelineTextEncoder:
    """The text encoders of a pipeline whose family is known."""

    def __init__(self, model: str, *, device: str = "auto"):
        """Load from a folder or hub id: bfloat16 on a GPU, float32 on the CPU.

        Raises:
            UserError: the model is not there, not of this kind, or cannot be read.
        """
        self.device = generator_device(device)
        index = read_index(model)
        self.family = FAMILIES[index["_class_name"]]
        text, _ = part_names(index)
        folder, index = locate_model(model, (*text, *self._configs(index)))
        self.pipeline = _loaded(folder, index, text, self.device, PLAIN)

    def _configs(self, index: dict[str, Any]) -> tuple[str, ...]:
        return tuple(f"{name}/config.json" for name in ("transformer", "unet") if has_weights(index, name))

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Encoded:
        """Return the embeddings of `prompts`; each distinct one is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        parts = []
        for start in range(0, len(distinct), ENCODE_BATCH):
            part = distinct[start : start + ENCODE_BATCH]
            found = self._encoded(part + part[-1:] * (ENCODE_BATCH - len(part)))
            parts.append({name: values[: len(part)] for name, values in found.items() if not name.startswith("empty_")})
        empty = self._encoded([""] * ENCODE_BATCH)
        named = {name.removeprefix("empty_"): v[:1] for name, v in empty.items() if name.startswith("empty_")} or {
            name: values[:1] for name, values in empty.items()
        }
        every = {name: pad([part[name] for part in parts]) for name in parts[0] if name != "pooled"}
        pooled = np.concatenate([part["pooled"] for part in parts])
        encoded = Encoded(pooled, every["sequence"], named["pooled"], named["sequence"], every.get("mask"), named.get("mask"))
        at = {text: i for i, text in enumerate(distinct)}
        return encoded.rows([at[text] for text in prompts])

    def _encoded(self, prompts: list[str]) -> dict[str, np.ndarray]:
        return encode_texts(self.pipeline, self.family, self.device, prompts)

    def cut_at(self, prompts: list[str]) -> list[int]:
        """Return `cut_at` of the first text encoder."""
        return cut_at(self.pipeline.tokenizer, prompts)


class PipelineGenerator:
    """What makes images in a pipeline; of a family that is not known, the whole pipeline."""

    def __init__(self, model: str, *, steps: int, guidance: float, size: int, device: str = "auto", speed: Speed = PLAIN):
        """Load from a folder or hub id: bfloat16 on a GPU, float32 on the CPU.

        Args:
            steps: denoising steps, at least 1.
            guidance: guidance scale; at 1 or less the empty prompt is left out where the family knows one.
            size: side of an image in pixels.
            speed: see `Speed`; the step cache and other attention are Stable Diffusion 3's alone.

        Raises:
            UserError: the model is not there, cannot be read, or cannot make images of that size or in that way.
        """
        if steps < 1:
            raise UserError(f"synthesis.steps is {steps}; expected at least 1 denoising step")
        self.steps, self.guidance, self.size, self.speed = steps, guidance, size, speed
        self.device = generator_device(device)
        speeds.check(speed, self.device)
        _check_speed(speed)
        index = read_index(model)
        self.family: PipelineFamily | None = FAMILIES.get(index["_class_name"])
        text, image = part_names(index)
        parts = image if self.family else (*text, *image)
        folder, index = locate_model(model, parts)
        self.source = {
            "model": folder.name if Path(model).is_dir() else model,
            "revision": revision(folder),
            "pipeline": index["_class_name"],
        }
        self.pipeline = _loaded(folder, index, parts, self.device, speed)
        self.pipeline.set_progress_bar_config(disable=True)
        self.source["scheduler"] = type(self.pipeline.scheduler).__name__
        self.dtype = generator_dtype(self.device)
        self.accepted = inspect.signature(type(self.pipeline).__call__).parameters
        step = getattr(self.pipeline, "vae_scale_factor", 8) * (2 if self.family and self.family.packed else 1)
        if size % step:
            raise UserError(f"synthesis.size is {size}; model {model!r} makes images whose sides are multiples of {step} pixels")

    def facts(self) -> dict[str, Any]:
        """Return what makes the images: model, revision, class, scheduler, precision, device and every option."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        numbers = {"steps": self.steps, "guidance": self.guidance, "size": self.size}
        return self.source | {"dtype": str(self.dtype).removeprefix("torch."), "device": name} | numbers | vars(self.speed)

    def generate(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> tuple[np.ndarray, list[str]]:
        """Return images uint8 (N, size, size, 3) and the fault of each; see `make`."""
        batch = self.make(prompts, encoded, noise_seeds)
        return batch.images, batch.faults

    def make(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> GeneratedBatch:
        """Return images; a faulty one is made once more, alone and in float32.

        The same batch gives the same bytes on the same machine; in another batch an image may differ by rounding.

        Raises:
            UserError: the lengths differ, or the pipeline makes images of another size.
        """
        if not len(prompts) == len(encoded) == len(noise_seeds):
            raise UserError(
                f"{len(prompts)} prompts, {len(encoded)} embeddings and {len(noise_seeds)} noise seeds; expected as many of each"
            )
        audit: list[dict[str, Any]] = [{} for _ in prompts]
        images, faults = to_uint8(self._images(prompts, encoded, noise_seeds, self.dtype))
        for i, fault in enumerate(faults):
            if fault:
                audit[i] = {"first_fault": fault, "retried": "float32"}
                again = self._again(prompts[i], encoded.rows([i]), noise_seeds[i])
                if again is not None:
                    images[i], faults[i], audit[i]["precision"] = again, "", "float32"
        return GeneratedBatch(images, faults, audit)

    def _images(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int], dtype: torch.dtype) -> np.ndarray:
        """Return float32 (N, size, size, 3) in [0, 1]."""
        options = call_options(self.pipeline, self.family, steps=self.steps, guidance=self.guidance, size=self.size)
        what = self.inputs(prompts, encoded, dtype)
        noise = [torch.Generator().manual_seed(int(seed)) for seed in noise_seeds]
        images = self.pipeline(**self._accepted(what), generator=noise, **options).images
        if images.shape[1:] != (self.size, self.size, 3):
            raise UserError(
                f"synthesis.size is {self.size}, but {self.source['model']} made images of {images.shape[2]} x {images.shape[1]} "
                "pixels; set synthesis.size to a side that it makes"
            )
        return images

    def inputs(self, prompts: list[str], encoded: Encoded, dtype: torch.dtype) -> dict[str, Any]:
        """Return the arguments of a pipeline's call that hold the prompts: their embeddings, or of an unknown family the texts."""
        if not self.family:
            return {"prompt": prompts}
        return {"negative_prompt": None} | self._embeddings(encoded, dtype)

    def _accepted(self, options: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name in self.accepted}

    def _embeddings(self, encoded: Encoded, dtype: torch.dtype) -> dict[str, Any]:
        """Return the arguments of the call that hold the prompts and, with guidance, the empty prompt."""
        family, count = self.family, len(encoded)
        assert family is not None
        found = self._named("", encoded.sequence, encoded.pooled, encoded.mask, dtype)
        if self.guidance > 1:
            sequence, pooled = (np.repeat(values, count, 0) for values in (encoded.empty_sequence, encoded.empty_pooled))
            mask = None if encoded.empty_mask is None else np.repeat(encoded.empty_mask, count, 0)
            found |= self._named("negative_", sequence, pooled, mask, dtype)
        return found

    def _named(
        self, prefix: str, sequence: np.ndarray, pooled: np.ndarray, mask: np.ndarray | None, dtype: torch.dtype
    ) -> dict[str, Any]:
        family = self.family
        assert family is not None
        if family.trimmed and mask is not None:
            longest = int(mask.sum(1).max())
            sequence, mask = sequence[:, :longest], mask[:, :longest]
        tokens = torch.from_numpy(np.ascontiguousarray(sequence)).to(self.device, dtype)
        found: dict[str, Any] = {f"{prefix}prompt_embeds": tokens}
        if family.listed and mask is not None:
            found[f"{prefix}prompt_embeds"] = [t[: int(n)] for t, n in zip(tokens, mask.sum(1), strict=True)]
        if "pooled" in family.returns:
            found[f"{prefix}pooled_prompt_embeds"] = torch.from_numpy(pooled).to(self.device, dtype)
        if family.mask and mask is not None:
            kept: Tensor = torch.from_numpy(np.ascontiguousarray(mask)).to(self.device, torch.int64)
            if not family.trimmed or not bool(kept.all()):  # such a pipeline takes no mask of ones
                found[f"{prefix}{family.mask}"] = kept
        return found

    def _again(self, prompt: str, encoded: Encoded, noise_seed: int) -> np.ndarray | None:
        """Return a faulty image once more, alone and in float32; None if it is faulty still or that does not fit in memory."""
        if self.speed.weights != "full":
            return None
        modules = [m for m in self.pipeline.components.values() if isinstance(m, nn.Module)]
        try:
            with speeds.in_float32(modules):
                images, faults = to_uint8(self._images([prompt], encoded, [noise_seed], torch.float32))
        except RuntimeError:  # most likely float32 does not fit in memory: the image stays faulty
            return None
        return None if faults[0] else images[0]


def _check_speed(speed: Speed) -> None:
    for name, value, plain in (("step_cache", speed.step_cache, 0.0), ("attention", speed.attention, "default")):
        if value != plain:
            raise UserError(f"synthesis.{name}={value}: is for Stable Diffusion 3 alone; set it to {plain}")


def pipeline_class(kind: str, model: str) -> Any:
    """Return a text-to-image pipeline's class of diffusers.

    Raises:
        UserError: there is none of that name, or it makes no image of a text.
    """
    import diffusers

    found = getattr(diffusers, kind, None)
    if found is None or "prompt" not in inspect.signature(found.__call__).parameters:
        raise UserError(
            f"model {model} is a {kind}, which diffusers {diffusers.__version__} does not make from a text; expected a "
            "text-to-image pipeline"
        )
    return found


def _loaded(folder: Path, index: dict[str, Any], parts: tuple[str, ...], device: torch.device, speed: Speed) -> Any:
    """Return the pipeline with only `parts` in it; every weight comes from its files."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    kind, name = pipeline_class(index["_class_name"], folder.name), ""
    left_out = {n: None for n, v in index.items() if isinstance(v, list) and (n not in parts or n in LEFT_OUT)}
    try:
        networks = {}
        for name in (n for n in parts if has_weights(index, n)):
            options = speeds.quantisation(speed) if name in ("transformer", "unet") else {}
            networks[name] = read_network(folder / name, index[name], generator_dtype(device), options)
        pipeline = kind.from_pretrained(folder, local_files_only=True, **networks, **left_out)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"model {folder} cannot be loaded{f' ({name})' if name else ''}: {' '.join(str(error).split())}; expected "
            f"{', '.join(parts)} as diffusers' save_pretrained writes them"
        ) from error
    network: Any = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    if network is not None:
        speeds.apply(speed, network, device, generator_dtype(device))
    if speed.vae_slicing:
        pipeline.vae.enable_slicing()
    return pipeline.to(device)


def network_class(folder: Path, entry: list[str]) -> Any:
    """Return the class that `entry`, library and class of a model_index.json, names for the part in `folder`.

    Raises:
        UserError: it is of neither library.
    """
    import diffusers
    import transformers

    library, kind = entry
    source = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), kind, None)
    if source is None:
        raise UserError(f"{folder.name} is a {library}.{kind}; expected a class of diffusers or transformers (code is never run)")
    return source


def read_network(folder: Path, entry: list[str], dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """Return one part with weights, of the library and class that `entry` names.

    Every weight must come from its files, since the libraries would invent those that lack.

    Raises:
        UserError: a weight lacks, or the class is of neither library.
    """
    network, info = network_class(folder, entry).from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
    )
    if lacking := sorted(info["missing_keys"]):
        raise UserError(
            f"{folder.name} lacks {len(lacking)} of its weights, such as {lacking[0]}; its config.json or its "
            "weights are of another model"
        )
    return network
