"""Tensors of a run: safetensors from any file system, read by bytes and never mapped; single rows without the rest of the file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.errors import DamagedError, StoreError
from syn4seg.store.files import MAX_TABLE, explain_errors, open_regular, read_bytes, retry_stale
from syn4seg.store.seals import check_seal

if TYPE_CHECKING:
    import torch

    from syn4seg.store.files import AnyPath

MAX_HEADER = 100 * 2**20
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def read_tensors(path: AnyPath) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return every tensor of a file, on the CPU, and its metadata.

    Raises:
        FileNotFoundError: it is not there.
        DamagedError: it is not a safetensors file, damaged, or not the one that was written (`seals`).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    check_seal(path)
    data = read_bytes(path, MAX_TABLE)
    facts = _header(data[:8], lambda size: data[8 : 8 + size], f"{path}").get("__metadata__", {})
    try:
        return from_bytes(data), facts
    except SafetensorError as error:
        raise DamagedError(f"{path}: not a safetensors file ({error})") from None


def tensor_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file; unlike the library's, the metadata are sorted, so equal contents give equal bytes."""
    from safetensors.torch import save

    data = save(dict(tensors))
    size = int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + size])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _header(start: bytes, rest: Any, what: str) -> dict[str, Any]:
    """Return the header of a safetensors file; `rest` gives as many bytes as it is asked for."""
    size = int.from_bytes(start, "little") if len(start) == 8 else MAX_HEADER + 1
    try:
        header = json.loads(rest(size)) if size <= MAX_HEADER else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise DamagedError(f"{what}: not a safetensors file")
    return header


class TensorFile:
    """A safetensors file of which single rows are read. It keeps no file open: it can be pickled.

    Raises:
        FileNotFoundError: it is not there.
        DamagedError: it is not a safetensors file, or cut short.
    """

    def __init__(self, path: AnyPath):
        self.path = path
        size, start, header = retry_stale(path, self._open)
        self.start = 8 + int.from_bytes(start, "little")
        self.tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
        for name, facts in header.items():
            if name == "__metadata__":
                continue
            try:
                kind, shape, (begin, end) = facts["dtype"], tuple(facts["shape"]), facts["data_offsets"]
                sound = end - begin == math.prod(shape) * _BYTES[kind] and self.start + end <= size
            except (KeyError, TypeError, ValueError):
                sound = False
            if not sound:
                raise DamagedError(f"{path}: cut short, or not floats")
            self.tensors[name] = (kind, shape, begin)

    def _open(self) -> tuple[int, bytes, dict[str, Any]]:
        with explain_errors(self.path, "read"):
            size = self.path.stat().st_size
            with open_regular(self.path) as file:
                start = file.read(8)
                return size, start, _header(start, file.read, f"{self.path}")

    def rows(self, name: str, indices: Sequence[int]) -> np.ndarray:
        """Return rows float32 (len(indices), ...) of a tensor.

        Raises:
            StoreError: the file cannot be read, or has been removed since.
        """
        kind, shape, begin = self.tensors[name]
        size = math.prod(shape[1:]) * _BYTES[kind]
        out = np.empty((len(indices), *shape[1:]), np.float32)
        try:
            with explain_errors(self.path, "read"), self.path.open("rb") as file:
                for i, row in enumerate(indices):
                    file.seek(self.start + begin + row * size)
                    out[i] = _floats(file.read(size), kind).reshape(shape[1:])
        except FileNotFoundError:
            raise StoreError(
                f"{self.path}: the file was removed or unmounted while it was used; put it back, and run the same "
                "command again, which goes on from what is there"
            ) from None
        return out


def _floats(data: bytes, kind: str) -> np.ndarray:
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if kind == "F32" else "<f2").astype(np.float32)
