"""SAM as a batched mask refiner: any `segment_anything` Sam, many images and all their box hints in one pass.

`Sam.forward` decodes image by image and `MaskDecoder.predict_masks` repeats one image over its prompts; `decode` does
the same arithmetic with one image embedding per box, so boxes of different images share a batch (and can be trained).
Coordinates stay float32: on a GPU only the image encoder, nearly all of the work, runs in bfloat16.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

EMBEDDED = "embedded-sam"
WEIGHTS = Path(__file__).parent.parent / "weights" / EMBEDDED
NUMBERS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "out_chans", "mask_in_chans",
           "decoder_depth", "decoder_heads", "decoder_mlp_dim", "iou_head_dim")  # fmt: skip
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of every Sam, in 0..255
PUBLISHED = {(768, 12): build_sam_vit_b, (1024, 24): build_sam_vit_l, (1280, 32): build_sam_vit_h}
_WHERE = (f'give "{EMBEDDED}", a folder with config.json and model.safetensors, or a ViT-B/L/H checkpoint of '
          "segment-anything (sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth)")  # fmt: skip


# --------------------------------------------------------------------------------------------------- loading
def build_sam(numbers: dict[str, Any]) -> Sam:
    """An untrained Sam with global attention everywhere, from the numbers of a `config.json` (all of `NUMBERS`).

    Raises:
        ValueError: a number is missing.
    """
    if missing := [key for key in NUMBERS if key not in numbers]:
        raise ValueError(f"config.json of a SAM lacks {', '.join(missing)}; it needs {', '.join(NUMBERS)}")
    size, patch, width = numbers["img_size"], numbers["patch_size"], numbers["out_chans"]
    encoder = ImageEncoderViT(
        img_size=size, patch_size=patch, embed_dim=numbers["embed_dim"], depth=numbers["depth"],
        num_heads=numbers["num_heads"], mlp_ratio=numbers["mlp_ratio"], out_chans=width, use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    prompts = PromptEncoder(width, (size // patch, size // patch), (size, size), numbers["mask_in_chans"])
    transformer = TwoWayTransformer(
        numbers["decoder_depth"], width, numbers["decoder_heads"], numbers["decoder_mlp_dim"]
    )
    decoder = MaskDecoder(transformer_dim=width, transformer=transformer, iou_head_hidden_dim=numbers["iou_head_dim"])
    return Sam(encoder, prompts, decoder, list(PIXEL_MEAN), list(PIXEL_STD))


def load_sam(path_or_name: str | Path) -> Sam:
    """A Sam in float32 on the CPU, in eval mode.

    Args:
        path_or_name: "embedded-sam" (in the package), a folder with `config.json` and `model.safetensors`, or a ViT-B,
            ViT-L or ViT-H checkpoint of segment-anything (`.pth`, or the same state dict as `.safetensors`).

    Raises:
        ValueError: nothing is there, it cannot be read, or its tensors are not those of the architecture.
    """
    path = WEIGHTS if path_or_name == EMBEDDED else Path(path_or_name)
    if path.is_dir():
        missing = [name for name in ("config.json", "model.safetensors") if not (path / name).is_file()]
        if missing:
            raise ValueError(f"SAM folder {path} has no {' and no '.join(missing)}; {_WHERE}")
        state = _read_tensors(path / "model.safetensors")
        build = partial(build_sam, json.loads((path / "config.json").read_text()))
    elif path.is_file():
        state = _read_tensors(path)
        build = published_architecture(state, path)
    else:
        raise ValueError(f"no SAM weights at {path}; {_WHERE}")
    with torch.device("meta"):
        sam = build()
    check_tensors(sam, state, path)
    sam.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):  # not part of any checkpoint
        sam.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
    return sam.eval()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"SAM weights {path} cannot be read ({reason}); download the file again, or {_WHERE}"
        ) from error


def published_architecture(state: dict[str, Tensor], path: Path) -> Callable[[], Sam]:
    """The constructor of ViT-B, ViT-L or ViT-H that fits a state dict, told by its encoder's width and depth."""
    patch = state.get("image_encoder.patch_embed.proj.weight") if isinstance(state, dict) else None
    if patch is None:
        raise ValueError(f"{path} is no SAM checkpoint: it has no image_encoder.patch_embed.proj.weight; {_WHERE}")
    depth = len({name.split(".")[2] for name in state if name.startswith("image_encoder.blocks.")})
    if (len(patch), depth) not in PUBLISHED:
        known = ", ".join(f"{width} x {blocks}" for width, blocks in PUBLISHED)
        raise ValueError(f"{path} has an image encoder of width {len(patch)} and {depth} blocks; expected one of "
                         f"{known} (ViT-B, ViT-L, ViT-H). Is the file complete? Else {_WHERE}")  # fmt: skip
    return PUBLISHED[len(patch), depth]


def check_tensors(sam: Sam, state: dict[str, Tensor], path: Path) -> None:
    """Raises a ValueError that names the first tensors in which a state dict and an architecture differ."""
    want = {name: tuple(tensor.shape) for name, tensor in sam.state_dict().items()}
    faults = [f"{name} is missing" for name in want if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in want]
    faults += [f"{name} is {tuple(state[name].shape)}, expected {shape}"
               for name, shape in want.items() if name in state and tuple(state[name].shape) != shape]  # fmt: skip
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"SAM weights {path} do not fit their architecture: {'; '.join(faults[:3])}{more}; {_WHERE}")


# -------------------------------------------------------------------------------------------------- decoding
def decode(sam: Sam, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's mask decoder with an image embedding of its own for every box; differentiable.

    Args:
        embeddings: float32 (R, C, h, w), the image encoder's output for each box's image.
        boxes: float32 (R, 4) XYXY in pixels of the encoder's input.

    Returns:
        Logits (R, 1 + M, 4h, 4w) and predicted IoU (R, 1 + M): the single mask first, then the M of `multimask_output`.
    """
    decoder = sam.mask_decoder
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(boxes), -1, -1), sparse], 1)
    position = sam.prompt_encoder.get_dense_pe().expand(len(boxes), -1, -1, -1)
    answers, keys = decoder.transformer(embeddings + dense, position, tokens)
    fine = decoder.output_upscaling(keys.transpose(1, 2).reshape(embeddings.shape))
    heads = zip(decoder.output_hypernetworks_mlps, answers[:, 1 : len(own)].unbind(1), strict=True)
    filters = torch.stack([head(answer) for head, answer in heads], 1)
    return torch.einsum("rmc,rchw->rmhw", filters, fine), decoder.iou_prediction_head(answers[:, 0])


def resized_shape(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width after scaling the longer side to `longest`, rounded half up as SAM does."""
    scale = longest / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


class SamRefiner:
    """Masks for box hints from one Sam; the same masks as `SamPredictor` image by image, up to rounding.

    Each box gets SAM's single mask (`multimask_output=False`): SAM's own advice for hints that are not ambiguous, and
    on the embedded world better than the best of three by predicted IoU (mean IoU 0.956 against 0.951).
    """

    def __init__(self, sam: Sam, device: str | torch.device = "cpu"):
        """Moves `sam` to `device`; its parameters stay float32 there."""
        self.sam, self.device = sam.eval().to(device), torch.device(device)
        tokens = (sam.prompt_encoder.image_embedding_size[0]) ** 2
        self.images_per_pass, self.boxes_per_pass = max(1, 2**14 // tokens), max(1, 2**17 // tokens)

    @torch.no_grad()
    def masks(self, images: np.ndarray, boxes: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Segments what each box holds.

        Args:
            images: uint8 (N, H, W, 3) RGB, any size.
            boxes: per image float32 (R_i, 4) XYXY, pixel indices of the first and last column and row (a tight box of
                one pixel has x0 = x1); R_i may be 0.

        Returns:
            Per image the masks bool (R_i, H, W) and their IoU as SAM predicts it, float32 (R_i,).
        """
        counts, size = np.array([len(b) for b in boxes], int), (images.shape[1], images.shape[2])
        masks, iou = np.zeros((counts.sum(), *size), bool), np.zeros(counts.sum(), np.float32)
        hinted, done = np.flatnonzero(counts), 0
        for start in range(0, len(hinted), self.images_per_pass):
            some = hinted[start : start + self.images_per_pass]
            embeddings, shape = self._embed(images[some])
            scale = np.tile([shape[1] / size[1], shape[0] / size[0]], 2)
            hints = torch.from_numpy((np.concatenate([boxes[i] for i in some]) * scale).astype(np.float32))
            owner = torch.from_numpy(np.repeat(np.arange(len(some)), counts[some]))
            for which, hint in zip(owner.split(self.boxes_per_pass), hints.split(self.boxes_per_pass), strict=True):
                logits, quality = decode(self.sam, embeddings[which.to(self.device)], hint.to(self.device))
                full = self.sam.postprocess_masks(logits[:, :1], shape, size)[:, 0]
                masks[done : done + len(hint)] = (full > self.sam.mask_threshold).cpu().numpy()
                iou[done : done + len(hint)] = quality[:, 0].cpu().numpy()
                done += len(hint)
        return [(masks[end - n : end], iou[end - n : end]) for n, end in zip(counts, counts.cumsum(), strict=True)]

    def _embed(self, images: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """Embeddings float32 (n, C, h, w), and the height and width of the images inside the encoder's padded input."""
        longest = self.sam.image_encoder.img_size
        height, width = resized_shape(images.shape[1], images.shape[2], longest)
        resized = [np.array(Image.fromarray(i).resize((width, height), Image.Resampling.BILINEAR)) for i in images]
        pixels = torch.from_numpy(np.stack(resized)).to(self.device).permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.sam.image_encoder(self.sam.preprocess(pixels)).float(), (height, width)
