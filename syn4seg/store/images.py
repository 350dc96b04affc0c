"""Images and labels of a run: PNGs written in one step, and digests that are of pixels, not of bytes."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import TYPE_CHECKING

import cv2
import numpy as np

from syn4seg.errors import DamagedError
from syn4seg.store.files import read_bytes, write_atomically

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

MAX_PIXELS = 64_000_000
"""Pixels of the largest image or label that is read from a run."""
LARGE = 16_000_000
"""Pixels above which images are decoded one at a time, whatever the number of threads, so that memory stays bounded."""
_ONE_LARGE = threading.Lock()


def encode_image(pixels: np.ndarray) -> bytes:
    """Encode as PNG: uint8 (H, W, 3) RGB or uint8 (H, W)."""
    ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else np.ascontiguousarray(pixels)
    done, data = cv2.imencode(".png", ordered)
    assert done and pixels.dtype == np.uint8, (pixels.dtype, pixels.shape)
    return data.tobytes()


def decode_image(data: bytes, what: str = "image") -> np.ndarray:
    """Decode a PNG of `encode_image` to uint8 (H, W, 3) RGB or (H, W); its size is checked before anything is decoded.

    Raises:
        DamagedError: it is damaged, of another kind, or has more than `MAX_PIXELS`.
    """
    broken = f"{what}: missing or damaged; delete it and run the same command again to make it anew"
    if len(data) < 33 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[24:26] not in (b"\x08\x00", b"\x08\x02"):
        raise DamagedError(broken)
    columns, rows = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    if rows * columns > MAX_PIXELS:
        raise DamagedError(f"{what}: claims {columns} x {rows} pixels; at most {MAX_PIXELS:,} were expected")
    with _ONE_LARGE if rows * columns > LARGE else contextlib.nullcontext():
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise DamagedError(broken)
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels


def write_image(path: AnyPath, pixels: np.ndarray) -> None:
    """Write uint8 (H, W, 3) RGB or uint8 (H, W) as PNG, atomically."""
    write_atomically(path, encode_image(pixels))


def read_image(path: AnyPath) -> np.ndarray:
    """Read uint8 (H, W, 3) RGB or (H, W) from a PNG that `write_image` wrote.

    Raises:
        DamagedError: the file is missing or damaged.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        data = b""
    return decode_image(data, str(path))


def pixel_digest(pixels: np.ndarray) -> str:
    """Return a hash (32 hex digits) of shape and pixels; independent of how the file is compressed."""
    text = f"{pixels.dtype}{pixels.shape}".encode()
    return hashlib.blake2b(text + np.ascontiguousarray(pixels).tobytes(), digest_size=16).hexdigest()
