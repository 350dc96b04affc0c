"""Speed of the real models on the GPU that is here, at their true sizes; random weights, since speed does not depend on values.

    python benchmarks/gpu.py [--out DIR] [--minutes 10] [--only generation sam ...] [--work DIR] [--tiny]

Sections, each saved when it ends: `matmul` (the arithmetic limit), `generation` (Stable Diffusion 3.5 at 512 and 1024 pixels:
the plain diffusers pipeline, one image and one text per call and in batches, against ours), `sam` (ViT-B and ViT-H: a plain
float32 `SamPredictor` loop against ours), `segmenter` (PSPNet: training step and inference), `stream` (generator, labels and
SAM at once: how busy the generator is kept). Every comparison is a ratio within one run, and a share of the limit (FLOPs over
the measured bfloat16 matmul rate). DIR/DATE-gpu-rates.json is for `syn4seg plan --rates`.

The transformer and VAE are written once to a folder under --work (17 GB for -large) and loaded as a user's model is. `--tiny`
runs every section with tiny networks on the CPU, to test this file: its figures mean nothing, and the output says so.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import ROOT, machine

from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.models.embeddings import Encoded
from syn4seg.models.generators import load_generator
from syn4seg.models.protocols import Speed
from syn4seg.planning import sizes_generators as sizes
from syn4seg.planning.footprint import memory_of
from syn4seg.planning.rates import GPUS, Card, Rate, Rates, write_rates
from syn4seg.planning.sizes_vision import sam_size, segmenter_size
from syn4seg.planning.workload import COMPONENTS, WorkloadFacts, workload
from syn4seg.stages.setup import canvas_of

TARGETS = {"generation": 1.5, "sam": 5.0, "busy": 0.95}
FACTS = WorkloadFacts(novel=5, base=15, train_images=5953, queries=1449)
GUIDANCE, STEPS = 4.5, 8
PROMPTS = [
    "a photo of a dog on grass",
    "two cats on a sofa",
    "a red bus in a street",
    "a horse beside a fence",
    "a boat on a lake",
    "a bird on a branch",
    "a bottle on a table",
    "a train in snow",
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Scale:
    """Networks and amounts of a run of this benchmark.

    Attributes:
        models: hub id -> transformer config, the largest first.
        batches: pixels a side -> images of a batch.
        sams: names of `sam_size`.
        segmenters: (backbone, canvas, channels).
    """

    models: dict[str, dict[str, Any]]
    vae: dict[str, Any]
    clips: tuple[dict[str, Any], dict[str, Any]]
    t5: dict[str, Any]
    batches: dict[int, int]
    sams: tuple[str, ...]
    segmenters: tuple[tuple[str, int, int], ...]
    image: int = 512
    sam_images: int = 8
    boxes: tuple[int, ...] = (COMPONENTS, 12)
    images_per_pass: int = 4
    train_batch: int = 8
    stream_batches: int = 6
    matmul: int = 8192


TRUE = Scale(
    {name: sizes.TRANSFORMERS[name] for name in (f"{sizes.STABILITY}large", f"{sizes.STABILITY}medium")},
    sizes.SD3_VAE,
    (sizes.CLIP_L, sizes.CLIP_G),
    sizes.T5_XXL,
    {512: 8, 1024: 4},
    ("vit-b", "vit-h"),
    (("resnet50", 417, 512), ("resnet101", 473, 512)),
)
_SMALL_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}
TINY = Scale(
    {
        "tiny": sizes.SD35_LARGE
        | {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 64,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 64,
            "pos_embed_max_size": 16,
        }
    },
    sizes.SD3_VAE
    | {
        "latent_channels": 4,
        "block_out_channels": (16, 32, 32),
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    },
    (_SMALL_CLIP, _SMALL_CLIP),
    {"vocab_size": 256, "d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
    {32: 2, 64: 2},
    ("embedded-sam",),
    (("embedded", 64, 32),),
    image=64,
    sam_images=2,
    boxes=(2,),
    images_per_pass=2,
    train_batch=2,
    stream_batches=2,
    matmul=128,
)


@dataclass
class Bench:
    """State of one run: what was measured so far, and where it goes."""

    scale: Scale
    deadline: float
    out: Path
    work: Path
    result: dict[str, Any]
    rates: list[Rate] = field(default_factory=list)

    def left(self) -> float:
        """Seconds until the time is up."""
        return self.deadline - time.time()

    def limit(self, flops: float, seconds: float) -> float | None:
        """Share of the measured bfloat16 matmul rate (float32 on a CPU)."""
        rate = self.result.get("matmul", {}).get("flops_per_second")
        return round(flops / seconds / rate, 4) if rate else None

    def config(self, *overrides: str) -> Config:
        """A configuration placed on the device of this run."""
        return load(None, [f"placement.device={DEVICE.type}", f"placement.synthesis.gpus={int(DEVICE.type == 'cuda')}", *overrides])

    def rate(self, stage: str, config: Config, seconds: float, memory: int = 0) -> None:
        """Keeps the seconds of one unit of a stage of the plan."""
        unit = next(w for w in workload(config, FACTS) if w.stage == stage)
        self.rates.append(Rate(stage, unit.kind, unit.what, seconds, unit.flops, memory))

    def save(self) -> None:
        """Writes both files."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{self.result['date']}-gpu.json"
        path.write_text(json.dumps(self.result, indent=1) + "\n")
        flops = self.result.get("matmul", {}).get("flops_per_second") or GPUS["H100"].flops
        memory = torch.cuda.get_device_properties(0).total_memory if DEVICE.type == "cuda" else 0
        rates = Rates(
            self.result["device"], Card(flops, memory), tuple(self.rates), date=self.result["date"], about=self.result["weights"]
        )
        write_rates(self.out / f"{self.result['date']}-gpu-rates.json", rates)


# --------------------------------------------------------------------------------------------------------- measuring
def finish() -> None:
    """Waits for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], Any], repeats: int = 2, warm: int = 1) -> float:
    """Mean seconds of a call; the first `warm` calls are not counted."""
    for _ in range(warm):
        call()
    finish()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    finish()
    return (time.perf_counter() - started) / repeats


@contextlib.contextmanager
def peak() -> Iterator[dict[str, float]]:
    """`gib`: the largest device memory inside the block (0 on a CPU)."""
    found: dict[str, float] = {"gib": 0.0}
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield found
    if DEVICE.type == "cuda":
        found["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)


def clear() -> None:
    """Gives memory back between sections."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


@torch.no_grad()
def random_network(build: Callable[[], Any], dtype: torch.dtype) -> Any:
    """A network with random weights made on the device: normal numbers over the square root of the fan-in, norms at 1."""
    with torch.device("meta"):
        net = build()
    net = net.to(dtype).to_empty(device=DEVICE).eval().requires_grad_(False)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if not tensor.is_floating_point():
            tensor.copy_(torch.arange(tensor.numel(), device=DEVICE).view(tensor.shape))  # positions
        elif tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
        else:
            tensor.fill_(float(name.endswith(("weight", "running_var"))))
    return net


# ------------------------------------------------------------------------------------------------------------ matmul
def matmul(bench: Bench) -> dict[str, Any]:
    """The arithmetic limit: FLOP/s of a large square product, bfloat16 on a GPU, float32 on a CPU; float32 beside it."""
    n, found = bench.scale.matmul, {}
    for dtype in (torch.bfloat16, torch.float32) if DEVICE.type == "cuda" else (torch.float32,):
        a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
        found[str(dtype).removeprefix("torch.")] = 2 * n**3 / seconds_of(lambda a=a, b=b: a @ b, repeats=20, warm=3)
    return {"n": n, "flops_per_second": next(iter(found.values())), "tflops": {k: round(v / 1e12, 3) for k, v in found.items()}}


# -------------------------------------------------------------------------------------------------------- generation
def model_that_fits(bench: Bench) -> str:
    """The largest model whose weights fit twice into memory and, once, on the disk of --work.

    Raises:
        RuntimeError: none fits.
    """
    free = torch.cuda.mem_get_info()[0] if DEVICE.type == "cuda" else 2**40
    disk = shutil.disk_usage(bench.work).free
    need = 0
    for name, config in bench.scale.models.items():
        with torch.device("meta"):
            parts = [sizes.part_of("x", sizes.build_transformer(config)), sizes.part_of("y", sizes.build_vae(bench.scale.vae))]
        need = sum(part.bytes(2) for part in parts)
        if 1.6 * need + 2**30 <= free and 1.1 * need <= disk:
            return name
    raise RuntimeError(
        f"no model fits: {free / 2**30:.1f} GiB free on the device, {disk / 2**30:.1f} GiB in {bench.work}; the "
        f"smallest needs {1.6 * need / 2**30:.1f} and {1.1 * need / 2**30:.1f}"
    )


def saved_model(bench: Bench, name: str) -> str:
    """A folder in diffusers' format with a random transformer and VAE of the true sizes, without text encoders."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    dtype, folder = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32, bench.work / name.replace("/", "-")
    if not (folder / "model_index.json").is_file():
        empty: Any = dict.fromkeys(f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))
        pipeline = StableDiffusion3Pipeline(
            transformer=random_network(lambda: sizes.build_transformer(bench.scale.models[name]), dtype),
            vae=random_network(lambda: sizes.build_vae(bench.scale.vae), dtype),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            **empty,
        )
        pipeline.save_pretrained(folder)
    return str(folder)


def text_parts(bench: Bench) -> dict[str, Any]:
    """Random text encoders with word-list tokenizers; T5 is left out where memory is short."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

    sys.path.insert(0, str(Path(__file__).parents[1]))  # `tools` is in no wheel
    from tools.generator import clip_tokenizer

    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    words = sorted({word for prompt in PROMPTS for word in prompt.split()})
    parts: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
    for suffix, numbers in zip(("", "_2"), bench.scale.clips, strict=True):
        tokenizer = clip_tokenizer(words)
        tokenizer.model_max_length = sizes.CLIP_TOKENS
        special = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
        config = CLIPTextConfig(**numbers, **special)
        parts[f"text_encoder{suffix}"] = random_network(lambda c=config: CLIPTextModelWithProjection(c), dtype)
        parts[f"tokenizer{suffix}"] = tokenizer
    free = torch.cuda.mem_get_info()[0] if DEVICE.type == "cuda" else 2**40
    if free > 16 * 2**30:
        config = T5Config(**bench.scale.t5)
        parts["text_encoder_3"] = random_network(lambda: T5EncoderModel(config), dtype)
        letters = [(c, -6.0) for c in "abcdefghijklmnopqrstuvwxyz"]
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0), *(("\u2581" + w, -1.0) for w in words)]
        parts["tokenizer_3"] = T5Tokenizer(vocab=[*vocabulary, *letters], extra_ids=0)
    return parts


class Generation:
    """The plain pipeline and our generator over the same transformer and VAE."""

    def __init__(self, bench: Bench, name: str):
        from diffusers import StableDiffusion3Pipeline

        started, folder = time.time(), saved_model(bench, name)
        self.written = time.time() - started
        clear()
        started = time.time()
        side = min(bench.scale.batches)
        self.ours: Any = load_generator(folder, steps=STEPS, guidance=GUIDANCE, size=side, device=DEVICE.type)
        self.loaded = time.time() - started
        inner, text = self.ours.pipeline, text_parts(bench)
        self.plain: Any = StableDiffusion3Pipeline(transformer=inner.transformer, vae=inner.vae, scheduler=inner.scheduler, **text)
        self.plain.set_progress_bar_config(disable=True)
        self.t5 = text["text_encoder_3"] is not None
        self.folder = folder

    def call_plain(self, prompts: list[str], size: int, **embedded: Any) -> np.ndarray:
        """As a user calls it; texts are encoded in the call unless embeddings are given."""
        text = {} if embedded else {"prompt": prompts, "negative_prompt": [""] * len(prompts)}
        images = self.plain(
            **text,
            **embedded,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=size,
            width=size,
            output_type="np",
            generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
        ).images
        return np.rint(images * 255).astype(np.uint8)

    @torch.no_grad()
    def embeddings(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """What the plain pipeline makes of the prompts, under the names of its arguments."""
        made = self.plain.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            negative_prompt=[""] * len(prompts),
            do_classifier_free_guidance=True,
            device=DEVICE,
        )
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return dict(zip(names, made, strict=True))

    def call_ours(self, prompts: list[str], encoded: Encoded, size: int) -> np.ndarray:
        """Our generator on stored embeddings."""
        self.ours.size = size
        images, faults = self.ours.generate(prompts, encoded, list(range(len(prompts))))
        if any(faults):
            raise RuntimeError(f"random weights gave faulty images {faults}: their repair would be timed too")
        return images


def stored(made: dict[str, torch.Tensor]) -> Encoded:
    """Embeddings as the run directory keeps them."""
    values = {name: tensor.float().cpu().numpy() for name, tensor in made.items()}
    return Encoded(
        values["pooled_prompt_embeds"],
        values["prompt_embeds"],
        values["negative_pooled_prompt_embeds"][:1],
        values["negative_prompt_embeds"][:1],
    )


def generation(bench: Bench) -> dict[str, Any]:
    """Images per second at each size: plain one by one, plain in batches, ours, ours compiled; and whether pixels agree."""
    name = model_that_fits(bench)
    both = Generation(bench, name)
    found: dict[str, Any] = {
        "model": name,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "t5": "in the plain pipeline" if both.t5 else "left out: memory",
        "seconds_to_write": round(both.written, 1),
        "seconds_to_load": round(both.loaded, 1),
        "target": TARGETS["generation"],
        "sizes": {},
    }
    bench.result["generation"] = found
    made = both.embeddings(PROMPTS)
    each = seconds_of(lambda: both.embeddings(PROMPTS)) / 2 / len(PROMPTS)  # prompts and as many empty ones
    found["encoding_seconds_per_prompt"] = each
    if both.t5 and name in sizes.TRANSFORMERS:
        bench.rate("encoding", bench.config(f"synthesis.model={name}"), each)
    for size, batch in bench.scale.batches.items():
        found["sizes"][str(size)] = one_size(bench, both, made, size, batch)
        bench.save()
    if DEVICE.type == "cuda":
        compiled(bench, both, made, found)
    for size, at in found["sizes"].items():
        summed_up(bench, name if name in sizes.TRANSFORMERS else both.folder, int(size), at)
    return found


def summed_up(bench: Bench, model: str, size: int, at: dict[str, Any]) -> None:
    """Ratios of our best at one size to the plain pipeline; its rate; its memory beside what the plan says."""
    best = max(
        (way for way in ("ours", "ours_compiled") if "images_per_second" in at.get(way, {})),
        key=lambda way: at[way]["images_per_second"],
    )
    fast = at[best]["images_per_second"]
    at["ratio"] = {way: round(fast / at[way]["images_per_second"], 3) for way in ("plain", "plain_batched")}
    keys = {"model": model, "size": size, "steps": STEPS, "guidance": GUIDANCE, "batch": at["batch"], "compile": best != "ours"}
    config = bench.config(*(f"synthesis.{key}={value}" for key, value in keys.items()))
    at["planned_gib"] = round(sum(memory_of(config, FACTS)["synthesis"]) / 2**30, 2)
    bench.rate("synthesis", config, 1 / fast, round(at[best]["peak_gib"] * 2**30))


def _speed(bench: Bench, size: int, images: int, seconds: float, memory: dict[str, float]) -> dict[str, Any]:
    config = bench.scale.models[bench.result["generation"]["model"]]
    network = sizes.GeneratorSize((), (), config, bench.scale.vae, (sizes.CLIP_TOKENS, sizes.CLIP_TOKENS, sizes.T5_TOKENS))
    flops = network.image_flops(size, STEPS, GUIDANCE) * images
    return {"images_per_second": images / seconds, "share_of_limit": bench.limit(flops, seconds), "peak_gib": memory["gib"]}


def one_size(bench: Bench, both: Generation, made: dict[str, torch.Tensor], size: int, batch: int) -> dict[str, Any]:
    """Everything that is not compiled. The memory of ours does not contain the text encoders, which are on the device too."""
    prompts, some = PROMPTS[:batch], {name: tensor[:batch] for name, tensor in made.items()}
    found: dict[str, Any] = {"batch": batch}
    texts = [both.plain.text_encoder, both.plain.text_encoder_2, both.plain.text_encoder_3]
    text_gib = sum(t.numel() * t.element_size() for m in texts if m is not None for t in m.parameters()) / 2**30
    with peak() as memory:
        seconds = seconds_of(lambda: both.call_plain(prompts[:1], size))
    found["plain"] = _speed(bench, size, 1, seconds, memory)
    with peak() as memory:
        seconds = seconds_of(lambda: both.call_plain(prompts, size))
    found["plain_batched"] = _speed(bench, size, batch, seconds, memory)
    encoded = stored(some)
    with peak() as memory:
        seconds = seconds_of(lambda: both.call_ours(prompts, encoded, size))
    memory["gib"] = max(0.0, round(memory["gib"] - text_gib, 2))
    found["ours"] = _speed(bench, size, batch, seconds, memory)
    same, alone = (
        both.call_plain(prompts, size, **some),
        both.call_plain(prompts[:1], size, **{k: v[:1] for k, v in some.items()}),
    )
    ours = both.call_ours(prompts, encoded, size)
    found["pixels"] = {
        "differ_from_the_plain_batch": int((same != ours).sum()),
        "largest_difference_from_batch_of_1": int(np.abs(alone[0].astype(int) - ours[0]).max()),
    }
    return found


def compiled(bench: Bench, both: Generation, made: dict[str, torch.Tensor], found: dict[str, Any]) -> None:
    """Ours with compiled blocks; the plain pipeline is not called again."""
    from syn4seg.models import speed

    before = {
        size: both.call_ours(PROMPTS[:b], stored({k: v[:b] for k, v in made.items()}), size)
        for size, b in bench.scale.batches.items()
    }
    speed.apply(Speed(compile=True), both.ours.pipeline.transformer, DEVICE, torch.bfloat16)
    both.plain = None
    clear()
    for size, batch in bench.scale.batches.items():
        if bench.left() < 90:
            found["sizes"][str(size)]["ours_compiled"] = {"skipped": "out of time"}
            continue
        torch._dynamo.reset()
        encoded, started = stored({k: v[:batch] for k, v in made.items()}), time.time()
        images = both.call_ours(PROMPTS[:batch], encoded, size)
        waited = time.time() - started
        with peak() as memory:
            seconds = seconds_of(lambda e=encoded, b=batch, s=size: both.call_ours(PROMPTS[:b], e, s), repeats=3, warm=2)
        found["sizes"][str(size)]["ours_compiled"] = _speed(bench, size, batch, seconds, memory) | {
            "first_call_seconds": round(waited, 1),
            "mean_difference_from_uncompiled": float(np.abs(images.astype(int) - before[size]).mean()),
        }
        bench.save()


# ---------------------------------------------------------------------------------------------------------------- SAM
def random_sam(name: str) -> Any:
    """A Sam of a published size with random weights, float32; the packaged one as it is."""
    import segment_anything

    from syn4seg.models.sam import PIXEL_MEAN, PIXEL_STD, load_sam

    if name == "embedded-sam":
        return load_sam(name)
    sam = random_network(getattr(segment_anything, f"build_sam_{name.replace('-', '_')}"), torch.float32)
    for buffer, values in ((sam.pixel_mean, PIXEL_MEAN), (sam.pixel_std, PIXEL_STD)):
        buffer.copy_(torch.tensor(values, device=DEVICE).view(-1, 1, 1))
    return sam


def boxes_in(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (count, 4) XYXY."""
    corner, side = rng.uniform(0, size * 0.6, (count, 2)), rng.uniform(size * 0.1, size * 0.4, (count, 2))
    return np.concatenate([corner, corner + side], 1).astype(np.float32)


def predictor_loop(net: Any, images: np.ndarray, hints: list[np.ndarray]) -> list[np.ndarray]:
    """What a user of segment-anything writes: image by image, box by box; masks bool (R, H, W) per image."""
    from segment_anything import SamPredictor

    predictor, found = SamPredictor(net), []
    for image, boxes in zip(images, hints, strict=True):
        predictor.set_image(image)
        found.append(np.stack([predictor.predict(box=box, multimask_output=False)[0][0] for box in boxes]))
    return found


def sam(bench: Bench) -> dict[str, Any]:
    """Masks per second of a float32 `SamPredictor` loop, image by image and box by box, and of ours."""
    found = {}
    for name in bench.scale.sams:
        net = random_sam(name).to(DEVICE)
        for count in bench.scale.boxes:
            found[f"{name}, {count} boxes"] = sam_at(bench, net, name, count)
        del net
        clear()
    return found


def sam_at(bench: Bench, net: Any, name: str, count: int) -> dict[str, Any]:
    """One SAM with `count` boxes in each image."""
    from syn4seg.models.sam import SamRefiner

    rng, scale = np.random.default_rng(count), bench.scale
    images = rng.integers(0, 256, (scale.sam_images, scale.image, scale.image, 3), np.uint8)
    hints = [boxes_in(scale.image, count, rng) for _ in images]
    size = sam_size(name)
    net.to(DEVICE)
    predictor_loop(net, images[:1], hints[:1])
    with peak() as plain_memory:
        finish()
        started = time.perf_counter()
        expected = predictor_loop(net, images, hints)
        plain = time.perf_counter() - started
    ours = SamRefiner(copy.deepcopy(net.cpu()), DEVICE, scale.images_per_pass)  # which changes the network that it is given
    clear()
    with peak() as memory:
        seconds = seconds_of(lambda: ours.masks(images, hints))
    differ = [np.mean(a != b[0]) for a, b in zip(expected, ours.masks(images, hints), strict=True)]
    if count == scale.boxes[0]:
        config = bench.config(
            f"refinement.model={name}", f"refinement.images_per_pass={scale.images_per_pass}", f"synthesis.size={scale.image}"
        )
        bench.rate("refinement", config, seconds / len(images), round(memory["gib"] * 2**30))
    masks, flops = len(images) * count, len(images) * (size.encode_flops + count * size.box_flops)
    return {
        "images": len(images),
        "images_per_pass": scale.images_per_pass,
        "masks_per_second_plain_float32": masks / plain,
        "masks_per_second_ours": masks / seconds,
        "ratio": round(plain / seconds, 3),
        "target": TARGETS["sam"],
        "share_of_limit": bench.limit(flops, seconds),
        "peak_gib_plain": plain_memory["gib"],
        "peak_gib_ours": memory["gib"],
        "share_of_pixels_that_differ": round(float(np.mean(differ)), 6),
    }


# ---------------------------------------------------------------------------------------------------------- segmenter
def network(backbone: str, channels: int) -> Any:
    """A segmenter with random weights on the device."""
    from syn4seg.segmenter.backbones import load_backbone
    from syn4seg.segmenter.network import Segmenter

    torch.manual_seed(0)
    return Segmenter(load_backbone(backbone, "none"), 1 + FACTS.base, channels).to(DEVICE)


def segmenter(bench: Bench) -> dict[str, Any]:
    """Images per second of a training step (float32 and bfloat16 autocast) and of inference, one by one and in batches."""
    found = {}
    for backbone, side, channels in bench.scale.segmenters:
        found[f"{backbone} at {side}"] = segmenter_at(bench, backbone, side, channels)
        clear()
    return found


def segmenter_at(bench: Bench, backbone: str, side: int, channels: int) -> dict[str, Any]:
    """One segmenter."""
    net, batch = network(backbone, channels), bench.scale.train_batch
    flops = segmenter_size(backbone, 1 + FACTS.base, channels, (1, 2, 3, 6), side).flops
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    calls = {
        "training_float32": (batch, 3 * flops, training_step(net, images, False)),
        "training_bfloat16": (batch, 3 * flops, training_step(net, images, True)),
        "inference_one_by_one": (1, flops, lambda: inference(net, images[:1])),
        "inference_in_batches": (batch, flops, lambda: inference(net, images)),
    }
    at: dict[str, Any] = {"batch": batch}
    for name, (some, each, call) in calls.items():
        with peak() as memory:
            seconds = seconds_of(call, repeats=5, warm=2)
        at[name] = {
            "images_per_second": some / seconds,
            "share_of_limit": bench.limit(each * some, seconds),
            "peak_gib": memory["gib"],
        }
    config = bench.config(
        f"segmenter.backbone={backbone}",
        f"segmenter.size={side}",
        f"segmenter.channels={channels}",
        "base.checkpoint=train",
        f"base.batch={batch}",
    )
    fast = {name: at[name]["images_per_second"] for name in calls}
    bench.rate("base", config, 1 / fast["training_float32"], round(at["training_float32"]["peak_gib"] * 2**30))
    bench.rate("features", config, 1 / fast["inference_one_by_one"])
    at["ratio"] = {
        "training_bfloat16": round(fast["training_bfloat16"] / fast["training_float32"], 3),
        "inference_in_batches": round(fast["inference_in_batches"] / fast["inference_one_by_one"], 3),
    }
    return at


def training_step(net: Any, images: np.ndarray, low: bool) -> Callable[[], None]:
    """One step of base training on images that are there already: forward, loss on the canvas, backward, SGD."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    label = torch.randint(0, 1 + FACTS.base, images.shape[:3], device=DEVICE)

    def step() -> None:
        net.train()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=low):
            logits = net.predict(net.prepare(images))
        loss = torch.nn.functional.cross_entropy(logits.float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def inference(net: Any, images: np.ndarray) -> torch.Tensor:
    """Features as every stage of a run computes them."""
    from syn4seg.segmenter.network import frozen_features

    return frozen_features(net, images)


# ------------------------------------------------------------------------------------------------------------- stream
class Consumer(threading.Thread):
    """Labels and refines images as they come, on its own CUDA stream, as the actors behind the generator do."""

    def __init__(self, bench: Bench, batch: int):
        super().__init__(daemon=True)
        from syn4seg.models.sam import SamRefiner
        from syn4seg.stages.labels import BoundaryRefiner, Enhancer

        scale, (backbone, side, channels) = bench.scale, bench.scale.segmenters[0]
        net, rng = network(backbone, channels).eval(), np.random.default_rng(0)
        classes = 1 + FACTS.base + FACTS.novel
        self.config = bench.config(f"segmenter.backbone={backbone}", f"segmenter.size={side}", f"segmenter.channels={channels}")
        rows = rng.standard_normal((classes, channels)).astype(np.float32)
        prototypes = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        classifier = net.classifier.replaced(torch.from_numpy(rows).to(DEVICE), torch.zeros(classes, device=DEVICE))
        thresholds = dict.fromkeys(range(1 + FACTS.base, classes), 0.5)
        self.enhance = Enhancer(net, classifier, prototypes, thresholds, self.config.labeling, canvas_of(self.config))
        self.refine = BoundaryRefiner(SamRefiner(random_sam(scale.sams[-1]), DEVICE, scale.images_per_pass), self.config.refinement)
        self.label, self.waiting = blobs(scale.image), queue.Queue(maxsize=2 * batch)
        self.done, self.seconds, self.error = 0, {"labeling": 0.0, "refinement": 0.0}, ""

    def run(self) -> None:
        with torch.cuda.stream(torch.cuda.Stream()) if DEVICE.type == "cuda" else contextlib.nullcontext():
            while (image := self.waiting.get()) is not None:
                try:
                    self.one(image)
                except Exception as error:  # noqa: BLE001 - the generator must not wait for ever; it is reported
                    self.error = self.error or f"{type(error).__name__}: {error}"

    def one(self, image: np.ndarray) -> None:
        """The draft of a random network decides the work of APF and APR; SAM gets `COMPONENTS` boxes."""
        started = time.perf_counter()
        self.enhance(image, 1 + FACTS.base)
        between = time.perf_counter()
        self.refine([image], [self.label])
        self.seconds["labeling"] += between - started
        self.seconds["refinement"] += time.perf_counter() - between
        self.done += 1


def blobs(size: int) -> np.ndarray:
    """A label uint8 (size, size) with `COMPONENTS` discs."""
    y, x = np.mgrid[:size, :size] / size
    label = np.zeros((size, size), np.uint8)
    for k in range(COMPONENTS):
        label[(x - 0.2 - 0.3 * k) ** 2 + (y - 0.5) ** 2 < 0.015] = 1 + FACTS.base + k
    return label


@contextlib.contextmanager
def sampled() -> Iterator[list[float]]:
    """GPU utilisation in percent by nvidia-smi, five times a second; empty where there is none."""
    values: list[float] = []
    program = shutil.which("nvidia-smi")
    if DEVICE.type != "cuda" or program is None:
        yield values
        return
    command = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield values
        process.terminate()
        lines = process.communicate()[0].split()
    values += [float(line) for line in lines if line.replace(".", "").isdigit()]


def random_embeddings(config: dict[str, Any], batch: int) -> Encoded:
    """Embeddings of the true shape; their values do not matter."""
    rng, tokens = np.random.default_rng(0), sizes.CLIP_TOKENS + sizes.T5_TOKENS
    pooled = rng.standard_normal((batch, config["pooled_projection_dim"])).astype(np.float32)
    sequence = rng.standard_normal((batch, tokens, config["joint_attention_dim"])).astype(np.float32)
    return Encoded(pooled, sequence, pooled[:1], sequence[:1])


def stream(bench: Bench) -> dict[str, Any]:
    """Generator, labels and refinement at once; busy share = time inside generate() over first call to last return."""
    name, size = model_that_fits(bench), bench.scale.image
    batch = bench.scale.batches.get(size, 2)
    generator = load_generator(
        saved_model(bench, name),
        steps=STEPS,
        guidance=GUIDANCE,
        size=size,
        device=DEVICE.type,
        speed=Speed(compile=DEVICE.type == "cuda"),
    )
    call = (PROMPTS * batch)[:batch], random_embeddings(bench.scale.models[name], batch)
    alone = seconds_of(lambda: generator.generate(*call, list(range(batch))))
    consumer, calls = Consumer(bench, batch), []
    consumer.one(generator.generate(*call, list(range(batch)))[0][0])
    consumer.seconds, consumer.done = dict.fromkeys(consumer.seconds, 0.0), 0
    consumer.start()
    with peak() as memory, sampled() as utilisation:
        for number in range(bench.scale.stream_batches):
            started = time.perf_counter()
            images, _ = generator.generate(*call, [number * batch + i for i in range(batch)])
            calls.append((started, time.perf_counter()))
            for image in images:
                consumer.waiting.put(image)
    consumer.waiting.put(None)
    consumer.join()
    if consumer.error:
        raise RuntimeError(f"labels: {consumer.error}")
    inside, wall = sum(end - start for start, end in calls), calls[-1][1] - calls[0][0]
    each = {stage: seconds / consumer.done for stage, seconds in consumer.seconds.items()}
    bench.rate("labeling", consumer.config, each["labeling"])  # refinement has its own section
    return {
        "model": name,
        "size": size,
        "images": batch * len(calls),
        "labelled": consumer.done,
        "generator_busy_share": round(inside / wall, 4),
        "target": TARGETS["busy"],
        "generator_speed_beside_alone": round(alone * len(calls) / inside, 4),
        "gpu_utilisation_percent": round(float(np.mean(utilisation)), 1) if utilisation else "not measured: no nvidia-smi",
        "seconds_per_image": each,
        "peak_gib": memory["gib"],
        "how": "threads of one process; in a run the actors are processes",
    }


SECTIONS: dict[str, tuple[Callable[[Bench], dict[str, Any]], float]] = {
    "matmul": (matmul, 5),
    "sam": (sam, 45),
    "segmenter": (segmenter, 40),
    "generation": (generation, 150),
    "stream": (stream, 90),
}
"""Name -> (section, seconds that must be left to begin it)."""


def run(bench: Bench, names: list[str], tiny: bool) -> None:
    """Every section, one after the other; one that cannot run says why, and the others go on."""
    for name, (section, needed) in SECTIONS.items():
        if name not in ("matmul", *names):
            continue
        started = time.time()
        if bench.left() < needed and not tiny:
            bench.result[name] = {"skipped": f"{bench.left():.0f} s left, it needs about {needed:.0f}"}
        else:
            try:
                bench.result[name] = section(bench)
            except torch.OutOfMemoryError as error:
                bench.result[name] = bench.result.get(name, {}) | {"stopped": f"out of memory: {str(error).splitlines()[0]}"}
            except (RuntimeError, ValueError, OSError, ImportError) as error:
                bench.result[name] = bench.result.get(name, {}) | {"stopped": f"{type(error).__name__}: {error}"}
        bench.result[name]["seconds"] = round(time.time() - started, 1)
        clear()
        bench.save()
        print(f"{name}: {json.dumps(bench.result[name])}", flush=True)


def main() -> None:
    """Parses the arguments, runs the sections, and says where the results are."""
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, help="folder for the random model; a temporary one by default")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--tiny", action="store_true", help="tiny networks on the CPU: a test of this file")
    args = parser.parse_args()
    if args.tiny:
        DEVICE = torch.device("cpu")
        torch.set_num_threads(1)
    elif DEVICE.type != "cuda":
        print("error: no usable GPU here (torch.cuda.is_available() is false); --tiny tests this file on the CPU", file=sys.stderr)
        sys.exit(2)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    about = (
        "tiny networks on a CPU: these figures are a test of the benchmark and mean nothing"
        if args.tiny
        else ("random weights at the true sizes; speed does not depend on their values")
    )
    result = machine() | {"device": device, "torch": torch.__version__, "tiny": args.tiny, "weights": about}
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="syn4seg-gpu-") as folder:
        bench = Bench(TINY if args.tiny else TRUE, time.time() + 60 * args.minutes, args.out, args.work or Path(folder), result)
        run(bench, args.only, args.tiny)
    print(f"wrote {args.out}/{result['date']}-gpu.json and its rates")


if __name__ == "__main__":
    main()
