"""SAM, HQ-SAM, SAM 2 and SAM 3 as transformers has them: a folder of `save_pretrained`, or a hub id, through the library's classes.

Images go through the library's own processor and image encoder, several in one pass, and hints through its own prompt encoder and
mask decoder. Of the several maps of an image's embedding each SAM gets what it decodes with, flat in one row.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from syn4seg.errors import UserError
from syn4seg.models.refiners import HintedRefiner, Hints, Prompts
from syn4seg.models.sam_folders import FAMILIES, PROCESSOR_FILES, read_kind, snapshot
from syn4seg.models.transformers_folder import weight_files
from syn4seg.store.files import map_threads

THRESHOLD = 0.0
"""Logit above which a pixel is in a mask: the library's default."""


@dataclass(frozen=True, eq=False)
class TransformersSam:
    """A network of transformers with what stands before it.

    Attributes:
        kind: of `FAMILIES`.
        network: float32, in eval mode.
        processor: the library's image processor.
    """

    kind: str
    network: Any
    processor: Any

    @property
    def keeps_aspect(self) -> bool:
        """Whether images are scaled to their longer side and padded (SAM, HQ-SAM), or stretched to the square (SAM 2, SAM 3)."""
        return FAMILIES[self.kind].processor == "SamImageProcessor"

    @property
    def side(self) -> int:
        """Side of the encoder's input in pixels."""
        return int(self.network.prompt_encoder.input_image_size)

    @property
    def cells(self) -> int:
        """Side of the embedding that hints attend to."""
        return int(self.network.prompt_encoder.image_embedding_size[0])

    @property
    def heads(self) -> int:
        """Attention heads of the image encoder where all cells attend to one another."""
        vision = self.network.config.vision_config
        backbone = getattr(vision, "backbone_config", vision)
        stages = getattr(backbone, "num_attention_heads_per_stage", None)
        return int(stages[len(stages) // 2] if stages else backbone.num_attention_heads)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the maps that make up an image's embedding, in the order of `maps`."""
        config = self.network.config
        if self.keeps_aspect:
            grid = (self.cells, self.cells)
            shapes = [(config.vision_config.output_channels, *grid)]
            return shapes + [(*grid, config.vision_config.hidden_size)] * (self.kind == "sam_hq")
        width = config.mask_decoder_config.hidden_size
        return [(c, *size) for c, size in zip((width // 8, width // 4, width), self.network.backbone_feature_sizes, strict=True)]

    def pixels(self, image: np.ndarray) -> Tensor:
        """Return an image uint8 (H, W, 3) as the encoder takes it, float32 (3, side, side)."""
        square = {"height": self.side, "width": self.side}
        frame = {"size": {"longest_edge": self.side}, "pad_size": square} if self.keeps_aspect else {"size": square}
        return self.processor(images=image, input_data_format="channels_last", return_tensors="pt", **frame)["pixel_values"][0]

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps, each (N, ...), of which `shapes` says the rest, of N images (N, 3, side, side)."""
        found = self.network.get_image_embeddings(pixels)
        if self.kind == "sam_hq":  # its decoder reads only the first of the inner ones
            return [found[0], found[1][0]]
        return [found] if self.keeps_aspect else list(found)

    def decode(self, maps: list[Tensor], prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return logits (R, 4 cells, 4 cells) and predicted IoU (R,), of R hints each with an embedding of its own.

        Args:
            maps: each (R, ...).
            prompts: of the hints.
        """
        boxes, points, masks = prompts
        inner = {"intermediate_embeddings": maps[1:]} if self.kind == "sam_hq" else {}
        found = self.network(
            image_embeddings=maps[0] if self.keeps_aspect else maps,
            input_boxes=None if boxes is None else boxes[:, None],
            input_points=None if points is None else points[:, None, None],
            input_labels=None if points is None else torch.ones(len(points), 1, 1, dtype=torch.int64, device=points.device),
            input_masks=masks,
            multimask_output=False,
            **inner,
        )
        return found.pred_masks[:, 0, 0], found.iou_scores[:, 0, 0]


def empty_network(model: str) -> TransformersSam:
    """Return a network on the meta device, from its configuration alone (of a hub id, fetched); without a processor.

    Raises:
        UserError: there is no such network, or its configuration is not sound.
    """
    folder = snapshot(model, "config.json")
    content = read_kind(folder)
    kind = content["model_type"]
    made = _class(kind)
    try:
        config = made.config_class.from_dict(content)
        with quiet(), torch.device("meta"):
            return TransformersSam(kind, _mended(kind, made(config).eval().requires_grad_(False)), None)
    except Exception as error:  # transformers checks configurations by raising whatever comes
        raise UserError(
            f"{folder / 'config.json'} is no configuration of {made.__name__} ({_reason(error)}); fetch it again"
        ) from error


def load_transformers_sam(model: str) -> TransformersSam:
    """Return a network in float32 on the CPU; safetensors alone are read, and nothing in the folder is run.

    Args:
        model: a folder of `save_pretrained`, or a hub id, which is fetched.

    Raises:
        UserError: it is not there, of another kind, incomplete or damaged.
    """
    folder = snapshot(model, "config.json", *PROCESSOR_FILES, "model*.safetensors", "model.safetensors.index.json")
    kind = read_kind(folder)["model_type"]
    weight_files(folder)
    made, options = _class(kind), {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    try:
        with quiet():
            network, report = made.from_pretrained(folder, trust_remote_code=False, output_loading_info=True, **options)
            processor = _processor(kind, folder)
    except Exception as error:  # transformers raises whatever comes
        raise UserError(f"{folder} cannot be loaded as {made.__name__} ({_reason(error)}); is it whole? Fetch it again") from error
    lost = sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in report[key])
    if lost:
        raise UserError(
            f"{folder} lacks {len(lost)} tensors of {made.__name__}, e.g. {lost[0]}; is its config.json of another network?"
        )
    return TransformersSam(kind, _mended(kind, network.float().eval().requires_grad_(False)), processor)


def _mended(kind: str, network: Any) -> Any:
    """Return a network whose HQ-SAM decoder upscales what its transformer made of the image, as the authors' own does.

    transformers 5.24 drops that and upscales the image's embedding from before, rows and columns exchanged. Where a later version
    is right, the two are the same, and a test says that this may go.
    """
    if kind == "sam_hq":
        kept: dict[str, Tensor] = {}
        decoder = network.mask_decoder
        decoder.transformer.register_forward_hook(lambda _module, _given, found: kept.update(cells=found[1]))
        decoder.upscale_conv1.register_forward_pre_hook(
            lambda _module, given: (kept.pop("cells").transpose(2, 3).reshape(given[0].shape),)
        )
    return network


def _class(kind: str) -> Any:
    import transformers

    return getattr(transformers, FAMILIES[kind].network)


def _processor(kind: str, folder: Path) -> Any:
    """Return the library's image processor as the folder sets it, else with its defaults."""
    import transformers

    made = getattr(transformers, FAMILIES[kind].processor)
    return made.from_pretrained(folder, local_files_only=True) if any((folder / n).is_file() for n in PROCESSOR_FILES) else made()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing: of a video model's folder it warns of the tensors that a single image does not need."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


class TransformersRefiner(HintedRefiner):
    """Masks for hints from a SAM of transformers; those of the library's own processor and forward pass, up to rounding.

    Each hint gets the single mask, as in `SamRefiner`; SAM 2 and SAM 3 put the best of three in its place where it is not stable.
    """

    def __init__(self, sam: TransformersSam, device: str | torch.device = "cpu", images_per_pass: int = 1):
        """Move the network to `device`, for this refiner alone; its parameters stay float32 there."""
        self.sam, self.device, self.images_per_pass = sam, torch.device(device), images_per_pass
        sam.network.to(self.device)
        self.hints_per_pass = max(1, 2**17 // sam.cells**2)

    @torch.no_grad()
    def embed(self, images: list[np.ndarray]) -> Tensor:
        """Return embeddings float32 (images_per_pass, L), of the images and the padding: the maps of each, one after the other."""
        pixels = map_threads(self.sam.pixels, images)
        pixels += pixels[-1:] * (self.images_per_pass - len(pixels))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            maps = self.sam.maps(torch.stack(pixels).to(self.device))
        return torch.cat([one.flatten(1).float() for one in maps], 1)

    @torch.no_grad()
    def decode(self, embedding: Tensor, size: tuple[int, int], hints: np.ndarray | Hints) -> tuple[np.ndarray, np.ndarray]:
        """Return masks bool (R, H, W) and predicted IoU float32 (R,) of the hints of one image, from its embedding (L,)."""
        hints, side = hints if isinstance(hints, Hints) else Hints(hints), 4 * self.sam.cells
        shape, inside = self._frame(size, self.sam.side), self._frame(size, side)
        parts = embedding.split([math.prod(shape) for shape in self.sam.shapes])
        maps = [part.reshape(1, *shape) for part, shape in zip(parts, self.sam.shapes, strict=True)]
        masks, iou = np.zeros((len(hints), *size), bool), np.zeros(len(hints), np.float32)
        for start in range(0, len(hints), self.hints_per_pass):
            part = slice(start, min(start + self.hints_per_pass, len(hints)))
            prompts = hints.prompts(part, size, shape, (side, *inside), self.device)
            own = [one.expand(part.stop - start, *one.shape[1:]) for one in maps]
            logits, quality = self.sam.decode(own, prompts)
            masks[part] = (self._full(logits, shape, size) > THRESHOLD).cpu().numpy()
            iou[part] = quality.cpu().numpy()
        return masks, iou

    def _frame(self, size: tuple[int, int], side: int) -> tuple[int, int]:
        """Return height and width of an image of `size` on a square of `side`."""
        if not self.sam.keeps_aspect:
            return side, side
        scale = side / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

    def _full(self, logits: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Return logits (R, S, S) at an image's own size, (R, H, W)."""
        if self.sam.keeps_aspect:
            logits = interpolate(logits[:, None], (self.sam.side, self.sam.side), mode="bilinear")[:, 0, : shape[0], : shape[1]]
        return interpolate(logits[:, None], size, mode="bilinear")[:, 0]
