"""Whether a synthetic image shows its class, by a CLIP or SigLIP model of transformers (`synthesis.check`).

The image is compared with "a photo of a CLASS" for every class of the fold. Each image goes through the network alone, so that its
verdict does not depend on its batch-mates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from syn4seg.errors import UserError
from syn4seg.models.device import resolve_device
from syn4seg.models.transformers_folder import WantedFolder, check_folder, locate_folder

NOT_SHOWN = "class_not_shown"
"""Reason of an image that is rejected."""
KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""`model_type` in config.json -> class of transformers."""
SIGLIP_TOKENS = 64
"""Tokens to which SigLIP's texts are padded where the model does not say."""
_WANTED = WantedFolder(
    "synthesis.check",
    "openai/clip-vit-base-patch32",
    "a CLIP or SigLIP model with safetensors weights, as transformers' save_pretrained writes it",
    "leave synthesis.check empty",
)


def check_picture_model(model: str, *, fetch: bool = False) -> Path | None:
    """Check that a model may be loaded, as far as can be told without loading it; return its folder, None if that is not here yet.

    Args:
        fetch: fetch a hub model first.

    Raises:
        UserError: neither a folder nor a hub id; not there; incomplete, damaged or of another kind.
    """
    check_folder(model, _WANTED)
    if not Path(model).is_dir() and not fetch:
        return None
    folder = locate_folder(model, _WANTED)
    check_folder(str(folder), _WANTED)
    _kind(model, folder)
    return folder


def _kind(model: str, folder: Path) -> str:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"synthesis.check={model}: config.json has no model_type; expected {_WANTED.what}") from None
    if kind not in KINDS:
        raise UserError(f"synthesis.check={model}: its model_type is {str(kind)[:60]!r}; expected {_WANTED.what}")
    return kind


class PictureCheck:
    """Judges images by the likeness of an image and a text."""

    def __init__(self, model: str, names: Sequence[str], *, margin: float = 0.0, device: str = "auto"):
        """Load a folder or hub id, in float32, and encode the names.

        Args:
            names: of the classes in English, in any order.
            margin: by how much cosine a class must be ahead of all others.
            device: "auto" (a GPU if there is one), "cpu" or "cuda".

        Raises:
            UserError: the model is not there, incomplete, of another kind, or cannot be loaded.
        """
        import torch

        folder = check_picture_model(model, fetch=True)
        assert folder is not None
        self.names, self.margin, self.kind = list(names), margin, _kind(model, folder)
        self.device = torch.device(resolve_device(device))
        self.network, self.tokenizer, self.processor = _loaded(model, folder, self.kind, self.device)
        try:
            self.texts = self._encode_texts()
        except Exception as error:  # noqa: BLE001 - whatever a tokenizer and a network that do not fit lead to
            raise UserError(f"synthesis.check={model}: network, tokenizer and classes do not fit ({_line(error)})") from None

    def _encode_texts(self) -> Any:
        """Return unit rows float32 (C, D), one for each name."""
        import torch
        from torch.nn import functional

        how: dict[str, Any] = {"padding": True}
        if self.kind == "siglip":  # which has learned padded texts, and no mask
            how = {"padding": "max_length", "max_length": self._text_length()}
        texts = [f"a photo of a {name}" for name in self.names]
        tokens = self.tokenizer(texts, truncation=True, return_tensors="pt", **how)
        if len({tuple(row) for row in tokens["input_ids"].tolist()}) < len(texts):  # as one without its files does
            raise ValueError("the tokenizer does not tell the classes apart")
        wanted = ("input_ids",) if self.kind == "siglip" else ("input_ids", "attention_mask")
        with torch.no_grad():
            found = self.network.get_text_features(**{name: tokens[name].to(self.device) for name in wanted})
        rows = functional.normalize(found.pooler_output.float(), dim=-1)
        if not bool(rows.isfinite().all()):
            raise ValueError("its texts come out as nan")
        return rows

    def _text_length(self) -> int:
        return int(getattr(self.network.config.text_config, "max_position_embeddings", SIGLIP_TOKENS))

    def similarities(self, image: np.ndarray) -> np.ndarray:
        """Return the cosine float32 (C,) of an RGB uint8 (H, W, 3) image and each name.

        Raises:
            FloatingPointError: one is nan or infinite.
        """
        import torch
        from torch.nn import functional

        inputs = self.processor(images=np.ascontiguousarray(image), return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            found = self.network.get_image_features(pixel_values=inputs["pixel_values"].to(self.device))
            cosines = (functional.normalize(found.pooler_output.float(), dim=-1) @ self.texts.T)[0].cpu().numpy()
        if not np.isfinite(cosines).all():
            raise FloatingPointError("the picture check's answer to this image is not finite")
        return cosines

    def __call__(self, image: np.ndarray, name: str) -> tuple[str, dict[str, Any]]:
        """Return the reason why an RGB uint8 (H, W, 3) image made for a class is rejected ("" if it is not), and the figures.

        Args:
            name: one of `names`.

        Raises:
            FloatingPointError: as `similarities`.
        """
        cosines, own = self.similarities(image), self.names.index(name)
        if len(cosines) == 1:
            return "", {"similarity": round(float(cosines[0]), 5)}
        others = np.where(np.arange(len(cosines)) == own, -np.inf, cosines)
        best = int(others.argmax())
        ahead = float(cosines[own]) - float(others[best])
        figures = {"similarity": round(float(cosines[own]), 5), "ahead": round(ahead, 5), "other": self.names[best]}
        return "" if ahead >= self.margin else NOT_SHOWN, figures


def _loaded(model: str, folder: Path, kind: str, device: Any) -> tuple[Any, Any, Any]:
    """Return network (on `device`, in eval mode), tokenizer and image processor."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    network_class: Any = getattr(transformers, KINDS[kind])
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **common)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **common)
        network, info = network_class.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **common
        )
    except Exception as error:  # noqa: BLE001 - configurations, tokenizers and weights fail with any exception
        raise UserError(
            f"synthesis.check={model} cannot be loaded ({_line(error)}); expected {_WANTED.what}, with its tokenizer and its "
            "image processor"
        ) from None
    if missing := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        raise UserError(
            f"synthesis.check={model}: {len(missing)} tensors are missing or have another shape, such as {missing[0]}; "
            "download the model again"
        )
    return network.to(device).eval(), tokenizer, processor


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
