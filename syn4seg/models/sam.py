"""SAM as a batched mask refiner: any `segment_anything` Sam, several images encoded in one pass, all boxes of an image decoded
from its one embedding.

`Sam.forward` decodes image by image and `MaskDecoder.predict_masks` repeats one image over its prompts; `decode` does
the same arithmetic with one image embedding per box, so boxes of different images share a batch (and can be trained).
Coordinates stay float32: on a GPU only the image encoder, nearly all of the work, runs in bfloat16, with fused attention.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.models import sam_edge, sam_mobile
from syn4seg.models.attention import fuse_attention
from syn4seg.models.refiners import HintedRefiner, Hints
from syn4seg.models.sam_files import EMBEDDED, EXPECTED, PUBLISHED, WEIGHTS, known_sam, published_file
from syn4seg.models.sam_modules import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
)
from syn4seg.store.files import map_threads

NUMBERS = (
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "out_chans",
    "mask_in_chans",
    "decoder_depth",
    "decoder_heads",
    "decoder_mlp_dim",
    "iou_head_dim",
)
LARGEST = 2**14  # of the numbers in a config.json
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of every Sam, in 0..255
ARCHITECTURES: dict[tuple[int, int], Callable[[], Sam]] = {
    (768, 12): build_sam_vit_b,
    (1024, 24): build_sam_vit_l,
    (1280, 32): build_sam_vit_h,
}
"""Constructors of ViT-B, ViT-L and ViT-H by the width and the number of blocks of their image encoders."""


class TimmSam(NamedTuple):
    """A SAM behind an image encoder of timm.

    Attributes:
        mark: a tensor that is in every file of it and of no other.
        translated: a function from such a file's tensors to those of the network, by name.
        build: its constructor.
    """

    mark: str
    translated: Callable[[dict[str, Any]], dict[str, Any]]
    build: Callable[[], Sam]


TIMM_SAMS = (
    TimmSam(sam_mobile.MARK, sam_mobile.translated, sam_mobile.build_mobile_sam),
    TimmSam(sam_edge.MARK, sam_edge.translated, sam_edge.build_edge_sam),
)


def build_sam(numbers: dict[str, Any]) -> Sam:
    """Return an untrained Sam with global attention everywhere, from the numbers of a `config.json` (all of `NUMBERS`).

    Raises:
        UserError: a number is missing, or no network has it.
    """
    _check_numbers(numbers)
    size, patch, width = numbers["img_size"], numbers["patch_size"], numbers["out_chans"]
    encoder = ImageEncoderViT(
        img_size=size,
        patch_size=patch,
        embed_dim=numbers["embed_dim"],
        depth=numbers["depth"],
        num_heads=numbers["num_heads"],
        mlp_ratio=numbers["mlp_ratio"],
        out_chans=width,
        use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
    )
    prompts = PromptEncoder(width, (size // patch, size // patch), (size, size), numbers["mask_in_chans"])
    transformer = TwoWayTransformer(numbers["decoder_depth"], width, numbers["decoder_heads"], numbers["decoder_mlp_dim"])
    decoder = MaskDecoder(transformer_dim=width, transformer=transformer, iou_head_hidden_dim=numbers["iou_head_dim"])
    return Sam(encoder, prompts, decoder, list(PIXEL_MEAN), list(PIXEL_STD))


def _check_numbers(numbers: dict[str, Any]) -> None:
    if missing := [key for key in NUMBERS if key not in numbers]:
        raise UserError(f"config.json of a SAM lacks {', '.join(missing)}; it needs {', '.join(NUMBERS)}")
    for key in NUMBERS:
        kinds = (int, float) if key == "mlp_ratio" else (int,)
        if type(numbers[key]) not in kinds or not 0 < numbers[key] <= LARGEST:
            kind = "number" if key == "mlp_ratio" else "whole number"
            raise UserError(f"config.json of a SAM: {key}={numbers[key]!r}; expected a {kind} above 0 and at most {LARGEST}")
    multiples = {"img_size": ("patch_size", 1), "embed_dim": ("num_heads", 1), "out_chans": ("decoder_heads", 2)}
    for key, (part, share) in multiples.items():
        if numbers[key] % (share * numbers[part]):
            parts = f"{share} x {part}" if share > 1 else part
            raise UserError(f"config.json of a SAM: {key}={numbers[key]} is no multiple of {parts} ({part}={numbers[part]})")


def load_sam(path_or_name: str | Path) -> Sam:
    """Return a Sam in float32 on the CPU, in eval mode.

    Args:
        path_or_name: "embedded-sam" (in the package), "vit-b", "vit-l" or "vit-h" (fetched once, into torch's hub cache), a
            folder with `config.json` and `model.safetensors`, or a ViT-B, ViT-L or ViT-H checkpoint of segment-anything
            (`.pth`, or the same state dict as `.safetensors`), or one of MobileSAM or EdgeSAM.

    Raises:
        UserError: nothing is there, it cannot be read, or its tensors are not those of the architecture.
    """
    known_sam(path_or_name)
    name = str(path_or_name)
    named = PUBLISHED.get(name)
    path, small = WEIGHTS if name == EMBEDDED else published_file(name) if named else Path(name), None
    if path.is_dir():
        state = _read_tensors(path / "model.safetensors")
        build = partial(build_sam, _read_numbers(path / "config.json"))
    elif (small := timm_sam(state := _read_tensors(path))) is not None:
        state, build = small.translated(state), small.build
    else:
        shape = encoder_shape(state, path)
        if named and shape != named.encoder:
            has, wants = ("width {} and {} blocks".format(*numbers) for numbers in (shape, named.encoder))
            raise UserError(
                f"SAM weights {path} have an image encoder of {has}, but {name} has {wants}: delete the file, "
                "and the right one is fetched"
            )
        build = ARCHITECTURES[shape]
    if name == EMBEDDED or small is not None:
        # small enough to be built for nothing: on "meta", torch loads its compiler for two seconds, and timm's tables stay there
        with torch.random.fork_rng(devices=[]):
            sam = build()
    else:
        with torch.device("meta"):
            sam = build()
    check_tensors(sam, state, path)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    sam.load_state_dict(state, assign=True)
    for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):  # not part of any checkpoint
        sam.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
    return sam.eval()


def timm_sam(state: dict[str, Any]) -> TimmSam | None:
    """Return the SAM behind an encoder of timm of which a file's tensors are; None where they are of another."""
    return next((one for one in TIMM_SAMS if one.mark in state), None)


def _read_numbers(path: Path) -> dict[str, Any]:
    try:
        numbers = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); it needs {', '.join(NUMBERS)}") from None
    if not isinstance(numbers, dict):
        raise UserError(f"{path} holds a {type(numbers).__name__}; expected the numbers {', '.join(NUMBERS)}")
    return numbers


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name; nothing in it is ever run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch.load has no error of its own: a damaged pickle ends in nearly any
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            code = re.search(r"GLOBAL (\S{1,99})", str(error))
            reason = f"it holds {code[1]}, which is not weights and was not run" if code else "no file of torch.save"
        raise UserError(f"SAM weights {path} cannot be read ({reason}); delete it and download it again, or {EXPECTED}") from None
    plain = isinstance(state, dict) and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items())
    if not plain:
        inside = ", ".join(str(name)[:60] for name in list(state)[:3]) if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{path} is no SAM checkpoint: it is not a plain table of tensors but holds {inside}; {EXPECTED}")
    return state


def encoder_shape(state: dict[str, Tensor], path: Path) -> tuple[int, int]:
    """Return the width and number of blocks of the image encoder in a state dict of ViT-B, ViT-L or ViT-H.

    Raises:
        UserError: it is of none of them.
    """
    patch = state.get("image_encoder.patch_embed.proj.weight")
    if patch is None:
        inside = ", ".join(str(name)[:60] for name in list(state)[:3]) or "nothing"
        raise UserError(f"{path} is no SAM checkpoint: it has no image_encoder.patch_embed.proj.weight, but {inside}; {EXPECTED}")
    depth = len({name.split(".")[2] for name in state if name.startswith("image_encoder.blocks.")})
    width = patch.shape[0] if patch.ndim else 0
    if (width, depth) not in ARCHITECTURES:
        known = ", ".join(f"{wide} x {blocks}" for wide, blocks in ARCHITECTURES)
        raise UserError(
            f"{path} has an image encoder of width {width} and {depth} blocks; expected one of "
            f"{known} (ViT-B, ViT-L, ViT-H). Is the file complete? Else {EXPECTED}"
        )
    return width, depth


def check_tensors(sam: Sam, state: dict[str, Tensor], path: Path) -> None:
    """Raise a ValueError that names the first tensors in which a state dict and an architecture differ."""
    want = {name: tuple(tensor.shape) for name, tensor in sam.state_dict().items()}
    faults = [f"{name} is missing" for name in want if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in want]
    faults += [
        f"{name} is {tuple(state[name].shape)}, expected {shape}"
        for name, shape in want.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"SAM weights {path} do not fit their architecture: {'; '.join(faults[:3])}{more}; {EXPECTED}")


def decode(
    sam: Sam, embeddings: Tensor, boxes: Tensor | None, points: Tensor | None = None, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return SAM's mask decoder with an image embedding of its own for every hint; differentiable.

    Args:
        embeddings: float32 (R, C, h, w), the image encoder's output for each hint's image.
        boxes: float32 (R, 4) XYXY in pixels of the encoder's input.
        points: float32 (R, 2) XY there, each inside what is meant.
        masks: float32 (R, 1, 4h, 4w), logits.

    Returns:
        Logits (R, 1 + M, 4h, 4w) and predicted IoU (R, 1 + M): the single mask first, then the M of `multimask_output`.
    """
    decoder = sam.mask_decoder
    inside = None if points is None else (points[:, None], torch.ones(len(points), 1, device=points.device))
    sparse, dense = sam.prompt_encoder(points=inside, boxes=boxes, masks=masks)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(embeddings), -1, -1), sparse], 1)
    position = sam.prompt_encoder.get_dense_pe().expand(len(embeddings), -1, -1, -1)
    answers, keys = decoder.transformer(embeddings + dense, position, tokens)
    fine = decoder.output_upscaling(keys.transpose(1, 2).reshape(embeddings.shape))
    heads = zip(decoder.output_hypernetworks_mlps, answers[:, 1 : len(own)].unbind(1), strict=True)
    filters = torch.stack([head(answer) for head, answer in heads], 1)
    return torch.einsum("rmc,rchw->rmhw", filters, fine), decoder.iou_prediction_head(answers[:, 0])


def resized_shape(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return the height and width after scaling the longer side to `longest`, rounded half up as SAM does."""
    scale = longest / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def _resized(image: np.ndarray, longest: int) -> np.ndarray:
    height, width = resized_shape(image.shape[0], image.shape[1], longest)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


class SamRefiner(HintedRefiner):
    """Masks for hints from one Sam; the same masks as `SamPredictor` image by image, up to rounding.

    Each hint gets SAM's single mask (`multimask_output=False`): SAM's own advice for hints that are not ambiguous, and
    on the embedded world better than the best of three by predicted IoU (mean IoU 0.956 against 0.951).
    """

    def __init__(self, sam: Sam, device: str | torch.device = "cpu", images_per_pass: int = 1):
        """Move `sam` to `device`, for this refiner alone; its parameters stay float32 there."""
        self.sam, self.device, self.images_per_pass = sam.eval().to(device), torch.device(device), images_per_pass
        if self.device.type == "cuda" and isinstance(sam.image_encoder, ImageEncoderViT):
            fuse_attention(self.sam.image_encoder)
        self.grid = sam.prompt_encoder.image_embedding_size[0]
        self.boxes_per_pass = max(1, 2**17 // self.grid**2)

    @torch.no_grad()
    def embed(self, images: list[np.ndarray]) -> Tensor:
        """Return embeddings float32 (images_per_pass, C, h, w): of the images, each padded to the encoder's square, and of the
        padding."""
        longest = self.sam.image_encoder.img_size
        resized = map_threads(partial(_resized, longest=longest), images)
        squares = [self.sam.preprocess(torch.from_numpy(one).to(self.device).permute(2, 0, 1)) for one in resized]
        squares += squares[-1:] * (self.images_per_pass - len(squares))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.sam.image_encoder(torch.stack(squares).contiguous(memory_format=torch.channels_last)).float()

    @torch.no_grad()
    def decode(self, embedding: Tensor, size: tuple[int, int], hints: np.ndarray | Hints) -> tuple[np.ndarray, np.ndarray]:
        """Return masks bool (R, H, W) and predicted IoU float32 (R,) of the hints of one image, from its embedding (C, h, w)."""
        hints = hints if isinstance(hints, Hints) else Hints(hints)
        shape, side = resized_shape(*size, self.sam.image_encoder.img_size), 4 * self.grid
        masks, iou = np.zeros((len(hints), *size), bool), np.zeros(len(hints), np.float32)
        for start in range(0, len(hints), self.boxes_per_pass):
            part = slice(start, min(start + self.boxes_per_pass, len(hints)))
            prompts = hints.prompts(part, size, shape, (side, *resized_shape(*size, side)), self.device)
            logits, quality = decode(self.sam, embedding.expand(part.stop - start, -1, -1, -1), *prompts)
            full = self.sam.postprocess_masks(logits[:, :1], shape, size)[:, 0]
            masks[part] = (full > self.sam.mask_threshold).cpu().numpy()
            iou[part] = quality[:, 0].cpu().numpy()
        return masks, iou
