"""Images as people have them (paths, PIL images, arrays, tensors, batches of them) as RGB uint8, and results in the same form."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from syn4seg.data.photos import MAX_FILE, decode_bytes, upright_pixels
from syn4seg.errors import UserError
from syn4seg.store.files import as_path, read_bytes

EXPECTED = (
    "expected a path or URL, a PIL image, uint8 or float in [0, 1] as NumPy (H, W, 3) or (N, H, W, 3), as a tensor (3, H, W) or "
    "(N, 3, H, W), or a list of these"
)


def images_of(value: Any) -> tuple[list[np.ndarray], bool]:
    """Return the RGB images uint8 (H, W, 3) of a value, and whether it is a batch.

    Args:
        value: see `EXPECTED`; photos are turned upright by their EXIF orientation, a grey array (H, W) is taken for grey RGB.

    Raises:
        UserError: a file is missing or no photo.
        ValueError: it is none of these.
    """
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError(f"the batch is empty; {EXPECTED}")
        return [_single(part) for part in value], True
    if getattr(value, "ndim", 0) == 4:
        return [_single(part) for part in value], True
    return [_single(value)], False


def read_photo(place: str | Path) -> np.ndarray:
    """Return the RGB image uint8 (H, W, 3) at a path or URL, upright by its EXIF orientation.

    Raises:
        UserError: it is missing or no photo.
    """
    path = as_path(place)
    try:
        return decode_bytes(read_bytes(path, MAX_FILE), str(place))
    except FileNotFoundError:
        raise UserError(f"{place}: there is no such image; correct the path") from None


def _single(value: Any) -> np.ndarray:
    if isinstance(value, (str, Path)) or hasattr(value, "read_bytes"):
        return read_photo(value)
    if hasattr(value, "getexif"):
        return upright_pixels(value, "the image")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.ndim != 3 or value.shape[0] != 3:
            raise ValueError(f"the tensor has shape {tuple(value.shape)}; {EXPECTED}")
        value = value.detach().cpu().permute(1, 2, 0).numpy()
    if not isinstance(value, np.ndarray):
        raise ValueError(f"the image is a {type(value).__name__}; {EXPECTED}")
    if value.ndim == 2:
        value = np.repeat(value[..., None], 3, axis=2)
    if value.ndim != 3 or value.shape[2] != 3 or value.size == 0:
        raise ValueError(f"the image has shape {value.shape}; {EXPECTED}")
    if value.dtype.kind == "f":
        if not (np.isfinite(value).all() and value.min() >= 0 and value.max() <= 1):
            raise ValueError(f"the image has numbers outside of [0, 1]; {EXPECTED}")
        value = np.rint(value.astype(np.float64) * 255).astype(np.uint8)
    if value.dtype != np.uint8:
        raise ValueError(f"the image has dtype {value.dtype}; {EXPECTED}")
    return np.ascontiguousarray(value)


def results_like(results: Sequence[np.ndarray], value: Any, batch: bool) -> Any:
    """Return results in the form of their images: one or a list of them; of a batch in one array one array; tensors of tensors."""
    torch = sys.modules.get("torch")
    tensors = torch is not None and isinstance(value[0] if isinstance(value, (list, tuple)) else value, torch.Tensor)
    if tensors:
        assert torch is not None
        device = (value[0] if isinstance(value, (list, tuple)) else value).device
        found: list[Any] = [torch.from_numpy(np.ascontiguousarray(result)).to(device) for result in results]
        if batch and not isinstance(value, (list, tuple)):
            return torch.stack(found)
    else:
        found = list(results)
        if batch and not isinstance(value, (list, tuple)):
            return np.stack(found)
    return found if batch else found[0]
