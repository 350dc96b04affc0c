"""Parameters, bytes and FLOPs of Stable Diffusion 3 by formulas, and of every other image model through `sizes_pipelines`.

The formulas are tested against torch's counter; the published models are known here by name, without any file.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syn4seg.errors import UserError
from syn4seg.planning.sizes import WORD_BAG, ModelPart, counted, flops_of, part_in_folder, part_of, read_json

if TYPE_CHECKING:
    from syn4seg.planning.sizes_pipelines import PipelineSize

SD35_LARGE: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 38,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 2432,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
    "dual_attention_layers": (),
}
"""transformer/config.json of stabilityai/stable-diffusion-3.5-large; -large-turbo has the same."""
SD35_MEDIUM: dict[str, Any] = SD35_LARGE | {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
}
"""transformer/config.json of stabilityai/stable-diffusion-3.5-medium."""
SD3_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
}
"""vae/config.json of every Stable Diffusion 3."""
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
STABILITY = "stabilityai/stable-diffusion-3.5-"
TRANSFORMERS = {f"{STABILITY}large": SD35_LARGE, f"{STABILITY}large-turbo": SD35_LARGE, f"{STABILITY}medium": SD35_MEDIUM}
TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")
CLIP_TOKENS, T5_TOKENS = 77, 256
WEIGHT_BYTES = {"full": 2.0, "fp8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes per parameter of the transformer on a GPU; nf4 has one float32 scale per 64 numbers."""


@dataclass(frozen=True)
class GeneratorSize:
    """A Stable Diffusion 3 pipeline in its two halves; the renderer has no parts. For other pipelines see `PipelineSize`.

    Attributes:
        text: CLIP-L, CLIP-G and, where there is one, T5.
        image: transformer and VAE.
        transformer: its config.json, {} for the renderer.
        vae: its config.json.
        tokens: text tokens of each encoder.
    """

    text: tuple[ModelPart, ...]
    image: tuple[ModelPart, ...]
    transformer: dict[str, Any]
    vae: dict[str, Any]
    tokens: tuple[int, ...]

    @property
    def is_network(self) -> bool:
        """Whether images come from a network."""
        return bool(self.transformer)

    @property
    def text_tokens(self) -> int:
        """Rows of a prompt's sequence: both CLIPs share theirs, T5's follow."""
        return (self.tokens[0] if self.tokens else 0) + sum(self.tokens[2:])

    @property
    def embedding_numbers(self) -> int:
        """Stored numbers of a prompt: its sequence and its pooled vector."""
        if not self.is_network:
            return WORD_BAG
        return self.text_tokens * self.transformer["joint_attention_dim"] + self.transformer["pooled_projection_dim"]

    def text_flops(self) -> float:
        """Return FLOPs to encode one prompt: 2 x parameters x tokens (word tables included, attention left out: within 3 %)."""
        return sum(2.0 * part.parameters * tokens for part, tokens in zip(self.text, self.tokens, strict=True))

    def image_flops(self, size: int, steps: int, guidance: float) -> float:
        """Return the FLOPs of one image: the transformer at every step, twice with guidance, and one VAE decoding."""
        if not self.is_network:
            return 0.0
        passes = steps * (2 if guidance > 1 else 1)
        forward = mmdit_flops(self.transformer, (size // self.latent_cell) ** 2, self.text_tokens)
        return passes * forward + decode_flops(self.vae, size)

    @property
    def latent_cell(self) -> int:
        """Pixels along a side of one transformer token."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1) * self.transformer["patch_size"]

    def activations(self, size: int, batch: int, guidance: float, *, sliced: bool) -> int:
        """Return numbers that are held beside the weights while `batch` images of `size` pixels a side are made.

        Args:
            sliced: one image is decoded at a time.
        """
        inner = self.transformer["attention_head_dim"] * self.transformer["num_attention_heads"]
        rows = batch * (2 if guidance > 1 else 1)
        tokens = (size // self.latent_cell) ** 2 + self.text_tokens
        decoded = 8 * self.vae["block_out_channels"][0] * size**2 * (1 if sliced else batch)
        return max(16 * rows * tokens * inner, decoded)

    def image_bytes(self, width: float, transformer_width: float | None = None) -> int:
        """Return the bytes of a generator actor's weights; `transformer_width` where the transformer is quantised."""
        widths = {"transformer": transformer_width or width}
        return sum(part.bytes(widths.get(part.name, width)) for part in self.image)

    def text_bytes(self, width: float) -> int:
        """Return the bytes of the encoding actor's weights."""
        return sum(part.bytes(width) for part in self.text)


def mmdit_flops(config: dict[str, Any], image_tokens: int, text_tokens: int) -> float:
    """Return the FLOPs of one forward pass of `SD3Transformer2DModel` for one image (without guidance).

    Every linear layer is 2 x weights x tokens. A block has 12 d^2 weights per stream (query, key, value, output 4, the
    feed-forward 8) and 6 d^2 for its modulation, once per image; dual attention adds 4 and 3. The last block needs only
    query, key and value of the text. Attention is 4 n^2 d: n is image and text together, in dual attention the image.
    """
    d, layers = config["attention_head_dim"] * config["num_attention_heads"], config["num_layers"]
    dual, patch = len(config.get("dual_attention_layers") or ()), config["patch_size"] ** 2
    per_image_token = layers * 12 * d * d + dual * 4 * d * d + patch * d * (config["in_channels"] + config["out_channels"])
    per_text_token = (layers - 1) * 12 * d * d + 3 * d * d + config["joint_attention_dim"] * d
    modulation = layers * 6 * d * d + dual * 3 * d * d + (layers - 1) * 6 * d * d + 2 * d * d
    once = modulation + 2 * d * d + (256 + config["pooled_projection_dim"] + 2 * d) * d
    attention = 4 * d * (layers * (image_tokens + text_tokens) ** 2 + dual * image_tokens**2)
    return 2.0 * (per_image_token * image_tokens + per_text_token * text_tokens + once) + attention


def decode_flops(vae: dict[str, Any], size: int) -> int:
    """Return the FLOPs of decoding one image of `size` pixels a side with the autoencoder of a vae/config.json."""
    return _decode_flops(json.dumps(vae), size)


@counted
def _decode_flops(vae: str, size: int) -> int:
    import torch

    config = json.loads(vae)
    cell = 2 ** (len(config["block_out_channels"]) - 1)
    with torch.device("meta"):
        net = build_vae(config).requires_grad_(False)
        return flops_of(net.decode, torch.empty(1, config["latent_channels"], size // cell, size // cell))


def build_vae(config: dict[str, Any]) -> Any:
    """Return the autoencoder of a vae/config.json, on the current default device."""
    import diffusers

    kind = config.get("_class_name", "AutoencoderKL")
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise UserError(f"vae/config.json names {kind!r}; expected AutoencoderKL or AutoencoderTiny")
    return getattr(diffusers, kind).from_config(config)


def build_transformer(config: dict[str, Any]) -> Any:
    """Return the SD3 transformer of a transformer/config.json, on the current default device."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel.from_config(config)


@functools.cache
def generator_size(model: str) -> GeneratorSize | PipelineSize:
    """Count the parts of `renderer`, `embedded-sd3`, or a folder or hub id of a text-to-image pipeline of diffusers.

    Raises:
        UserError: it is none of them, the folder lacks a part, or the configuration files of a hub id cannot be fetched.
    """
    from syn4seg.models.families import SD3
    from syn4seg.models.generators import generator_source
    from syn4seg.models.hub import read_index

    if generator_source(model).path is None:
        return GeneratorSize((), (), {}, {}, ())
    if (named := model.partition("@")[0]) in TRANSFORMERS:
        return _published(named)
    path = str(generator_source(model).path)
    if read_index(path)["_class_name"] != SD3:
        from syn4seg.planning.sizes_pipelines import PipelineSize

        return PipelineSize(path)
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"synthesis.model={model!r}: the size of this Stable Diffusion 3 is not known here; expected "
            f"{', '.join(TRANSFORMERS)}, or a folder with model_index.json"
        )
    present = [name for name in TEXT if list((folder / name).glob("*.safetensors"))]
    words = folder / "tokenizer" / "tokenizer_config.json"
    length = read_json(words).get("model_max_length", CLIP_TOKENS) if present else CLIP_TOKENS
    return GeneratorSize(
        tuple(part_in_folder(folder / name) for name in present),
        (part_in_folder(folder / "transformer"), part_in_folder(folder / "vae")),
        read_json(folder / "transformer" / "config.json"),
        read_json(folder / "vae" / "config.json"),
        tuple(T5_TOKENS if name == "text_encoder_3" else length for name in present),
    )


@counted
def _published(name: str) -> GeneratorSize:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    transformer = TRANSFORMERS[name]
    with torch.device("meta"):
        clips = [CLIPTextModelWithProjection(CLIPTextConfig(**numbers)) for numbers in (CLIP_L, CLIP_G)]  # pyright: ignore[reportArgumentType]
        encoders = [*clips, T5EncoderModel(T5Config(**T5_XXL))]  # pyright: ignore[reportArgumentType]
        image = part_of("transformer", build_transformer(transformer)), part_of("vae", build_vae(SD3_VAE))
    text = tuple(part_of(name, net) for name, net in zip(TEXT, encoders, strict=True))
    return GeneratorSize(text, image, transformer, SD3_VAE, (CLIP_TOKENS, CLIP_TOKENS, T5_TOKENS))
