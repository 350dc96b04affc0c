"""SAM 3 asked by name: the mask of a class in an image for its name alone, by transformers' Sam3 (`evaluation.by_name`).

Prompt, forward pass and post-processing are the library's own. Each image goes through the network alone and in float32, so that
its mask depends on nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from syn4seg.errors import UserError
from syn4seg.models.device import resolve_device
from syn4seg.models.sam_folders import PROCESSOR_FILES
from syn4seg.models.transformers_folder import WantedFolder, check_folder, locate_folder

KINDS = ("sam3", "sam3_video")
"""`model_type` in config.json: the detector alone, and the whole SAM 3 as it is published, of which the detector is loaded."""
LONGEST = 32
"""Tokens of a prompt, as the library pads it."""
_WANTED = WantedFolder(
    "evaluation.by_name",
    "facebook/sam3",
    "a SAM 3 with safetensors weights and its tokenizer, as transformers' save_pretrained writes it",
    "leave evaluation.by_name empty",
)


def check_named_sam(model: str, names: Sequence[str]) -> Path:
    """Check that a SAM 3 may be asked for classes, as far as can be told without loading its weights; return its folder.

    Args:
        model: a folder, or a hub id, which is fetched.
        names: of the classes in English.

    Raises:
        UserError: neither a folder nor a hub id; not there; incomplete, damaged or of another kind; a name is too long.
    """
    check_folder(model, _WANTED)
    folder = locate_folder(model, _WANTED)
    check_folder(str(folder), _WANTED)
    _read_config(model, folder)
    _tokenizer(model, folder, names)
    return folder


def _read_config(model: str, folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = content["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"evaluation.by_name={model}: config.json has no model_type; expected {_WANTED.what}") from None
    if kind not in KINDS:
        raise UserError(
            f"evaluation.by_name={model}: its model_type is {str(kind)[:60]!r}, which takes no text; expected {_WANTED.what} "
            f"({' or '.join(KINDS)}), or {_WANTED.instead}"
        )
    return content


def _tokenizer(model: str, folder: Path, names: Sequence[str]) -> Any:
    """Return the tokenizer of a folder, which tells the names apart."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokens = {name: tuple(tokenizer(name)["input_ids"]) for name in names}
    except Exception as error:  # noqa: BLE001 - a tokenizer's files fail with any exception
        raise UserError(
            f"evaluation.by_name={model}: its tokenizer cannot be loaded ({_line(error)}); expected {_WANTED.what}"
        ) from None
    if len(set(tokens.values())) < len(tokens):  # as one without its files does
        raise UserError(f"evaluation.by_name={model}: its tokenizer does not tell the classes apart; download the model again")
    if long := [name for name, ids in tokens.items() if len(ids) > LONGEST]:
        raise UserError(
            f"evaluation.by_name={model}: the name {long[0]!r} has {len(tokens[long[0]])} tokens; expected at most {LONGEST}: give "
            "a shorter one in prompts.names"
        )
    return tokenizer


class NamedSam:
    """A SAM 3 in float32 that segments what a name means."""

    def __init__(self, model: str, names: Sequence[str], device: str = "auto"):
        """Load a folder or hub id.

        Args:
            names: that it will be asked for.
            device: "auto" (a GPU if there is one), "cpu" or "cuda".

        Raises:
            UserError: the model is not there, incomplete, of another kind, or cannot be loaded.
        """
        import torch
        import transformers

        from syn4seg.models.sam_transformers import quiet

        folder = check_named_sam(model, names)
        self.device = torch.device(resolve_device(device))
        common: dict[str, Any] = {"local_files_only": True}
        images: Any = transformers.Sam3ImageProcessor
        made: Any = transformers.Sam3Model
        try:
            with quiet():
                settled = any((folder / name).is_file() for name in PROCESSOR_FILES)
                images = images.from_pretrained(folder, **common) if settled else images()
                self.processor: Any = transformers.Sam3Processor(images, _tokenizer(model, folder, names))
                network, info = made.from_pretrained(
                    folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **common
                )
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - configurations and weights fail with any exception
            raise UserError(f"evaluation.by_name={model} cannot be loaded ({_line(error)}); expected {_WANTED.what}") from None
        lost = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind])
        if lost:
            raise UserError(
                f"evaluation.by_name={model}: {len(lost)} tensors are missing or have another shape, such as {lost[0]}; download "
                "the model again"
            )
        self.network: Any = network.float().to(self.device).eval().requires_grad_(False)

    def mask(self, image: np.ndarray, name: str) -> np.ndarray:
        """Return the pixels bool (H, W) of an RGB uint8 (H, W, 3) image that lie in any object of a name.

        Objects and pixels are those of the library's post-processing with its own thresholds: scores above 0.3, pixels above 0.5.

        Raises:
            FloatingPointError: the network's answer is nan or infinite.
        """
        import torch

        side = self.network.config.vision_config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        frame = {"size": {"height": height, "width": width}, "input_data_format": "channels_last"}
        given = self.processor(images=np.ascontiguousarray(image), text=name, return_tensors="pt", **frame).to(self.device)
        wanted = ("pixel_values", "input_ids", "attention_mask")
        with torch.no_grad():
            found = self.network(**{key: given[key] for key in wanted})
        if not all(bool(part.isfinite().all()) for part in (found.pred_logits, found.pred_masks, found.presence_logits)):
            raise FloatingPointError("the answer of evaluation.by_name to this image is not finite")
        (objects,) = self.processor.post_process_instance_segmentation(found, target_sizes=[image.shape[:2]])
        if not len(objects["masks"]):
            return np.zeros(image.shape[:2], bool)
        return objects["masks"].bool().any(0).cpu().numpy()


def empty_detector(model: str) -> Any:
    """Return the network on the meta device, from its configuration alone (of a hub id, fetched).

    Raises:
        UserError: there is no such network, or its configuration is not sound.
    """
    import torch
    import transformers

    from syn4seg.models.sam_folders import snapshot

    content = _read_config(model, snapshot(model, "config.json"))
    try:
        config = transformers.Sam3Config.from_dict(content.get("detector_config") or content)
        with torch.device("meta"):
            return transformers.Sam3Model(config).eval().requires_grad_(False)
    except Exception as error:  # transformers checks configurations by raising whatever comes
        raise UserError(
            f"evaluation.by_name={model}: config.json is no configuration of a SAM 3 ({_line(error)}); download it again"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
