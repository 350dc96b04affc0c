"""Arrays at the edge of the library: NumPy or torch in, what is wrong with them in one sentence, the same kind out.

torch is never imported here: who has a tensor has imported it.
"""

from __future__ import annotations

import operator
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Array = np.ndarray | Tensor

CLASSES = range(1, 255)
"""Class indices that a label map can hold: 0 is background, 255 unlabeled."""


def is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_numpy(value: Any, what: str) -> np.ndarray:
    """Return an array of what may be a tensor on any device (gradients are left behind), an array, or nested lists.

    Raises:
        ValueError: it is none of these.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError:  # nested lists of uneven lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{what} is a {type(value).__name__} of {array.dtype}; expected numbers in a NumPy array or a torch tensor"
        )
    return array


def like_input(array: np.ndarray, value: Any) -> Any:
    """Return `array` as a tensor on the device of `value` if that is a tensor, else as it is."""
    if not is_tensor(value):
        return array
    return sys.modules["torch"].from_numpy(np.ascontiguousarray(array)).to(value.device)


def check_label_map(value: Any, what: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return class indices uint8 (H, W), contiguous.

    Args:
        shape: that it must have; None: any of two sides.

    Raises:
        ValueError: another shape, no whole numbers, or one that uint8 does not hold.
    """
    array = as_numpy(value, what)
    _check_shape(array, what, "(H, W)", 2)
    if shape is not None and array.shape != shape:
        raise ValueError(f"{what} has shape {array.shape}; expected {shape}, as large as the label map beside it")
    if array.dtype.kind == "f":
        raise ValueError(
            f"{what} has dtype {array.dtype}; expected class indices as whole numbers (uint8, or any integer type): "
            "take the argmax of scores, or convert with .astype('uint8') or .to(torch.uint8)"
        )
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{what} holds {wrong}; expected 0 (background), class indices 1 to 254, or 255 (unlabeled)")
    return np.ascontiguousarray(array, np.uint8)


def check_floats(value: Any, what: str, shape: tuple[int | str, ...]) -> np.ndarray:
    """Return finite floating-point numbers; whole ones become float32.

    Args:
        shape: a number for a side that must be so long, a letter for any other.

    Raises:
        ValueError: another shape, or a number that is not finite in float32.
    """
    array = as_numpy(value, what)
    expected = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
    _check_shape(array, what, expected, len(shape))
    if any(isinstance(side, int) and side != n for side, n in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{what} has shape {array.shape}; expected {expected}")
    if array.dtype.kind != "f":
        array = array.astype(np.float32)
    with np.errstate(over="ignore"):
        bad = np.count_nonzero(~np.isfinite(array.astype(np.float32)))
    if bad:
        raise ValueError(
            f"{what}: {bad} of {array.size} numbers are nan or infinite; expected finite ones: look at what made them "
            "(half precision overflows above 65504)"
        )
    return array


def check_masks(value: Any, what: str, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return masks bool (count, H, W).

    Raises:
        ValueError: another shape, or neither bool nor whole numbers 0 and 1.
    """
    array = as_numpy(value, what)
    if array.shape != (count, *shape):
        raise ValueError(
            f"{what} has shape {array.shape}; expected {(count, *shape)}: one mask per component of the label, as large as it"
        )
    if array.dtype.kind == "f" or (array.dtype != bool and array.size and (array.min() < 0 or array.max() > 1)):
        raise ValueError(
            f"{what} has dtype {array.dtype} and other values than 0 and 1; expected bool: compare SAM's logits with > 0"
        )
    return np.ascontiguousarray(array, bool)


def check_number(value: Any, what: str, low: float, high: float = np.inf, *, above: bool = False) -> float:
    """Return a number between two bounds; `above`: `low` itself is outside.

    Raises:
        ValueError: it is none, or outside.
    """
    try:
        result = float(value)
    except (TypeError, ValueError, RuntimeError):
        result = np.nan
    if not (low < result if above else low <= result) or not result <= high:
        bound = f"a number {'above' if above else 'from'} {low:g}" + (f" to {high:g}" if high < np.inf else "" if above else " on")
        raise ValueError(f"{what} is {value!r}; expected {bound}")
    return result


def check_class_index(value: Any, what: str) -> int:
    """Return a class index.

    Raises:
        ValueError: it is no whole number from 1 to 254.
    """
    try:
        index = operator.index(value)
    except TypeError:
        index = 0
    if index not in CLASSES:
        raise ValueError(f"{what} is {value!r}; expected a class index from 1 to 254 (0 is background, 255 unlabeled)")
    return index


def _check_shape(array: np.ndarray, what: str, expected: str, sides: int) -> None:
    if array.ndim != sides or array.size == 0:
        one = ": one image at a time, without a batch axis" if array.ndim == sides + 1 else ""
        raise ValueError(f"{what} has shape {array.shape}; expected {expected}{one}")
