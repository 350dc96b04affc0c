"""Text embeddings of prompts, and the file in which a run keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.errors import DamagedError, UserError
from syn4seg.store.files import as_path
from syn4seg.store.seals import sealed_file
from syn4seg.store.tensors import TensorFile

if TYPE_CHECKING:
    import torch

    from syn4seg.store.files import AnyPath


@dataclass(frozen=True)
class Encoded:
    """Text embeddings of P prompts, and of the empty prompt, which classifier-free guidance steers away from.

    Attributes:
        pooled: float32 (P, E), the vector that a prompt is compared and conditioned by.
        sequence: float32 (P, T, C), one vector per token.
        empty_pooled: float32 (1, E).
        empty_sequence: float32 (1, T', C).
        mask: float32 (P, T), 1 for tokens that count, 0 for padding; None where all of them count.
        empty_mask: float32 (1, T').
    """

    pooled: np.ndarray
    sequence: np.ndarray
    empty_pooled: np.ndarray
    empty_sequence: np.ndarray
    mask: np.ndarray | None = None
    empty_mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def rows(self, indices: Sequence[int]) -> Encoded:
        """Return the prompts `indices`, in that order; repeats are allowed."""
        rows = np.asarray(indices, np.int64)
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, pooled=self.pooled[rows], sequence=self.sequence[rows], mask=mask)


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """Return the prompts of one or more parts, made by the same text encoder, one after another."""
    mask = None if parts[0].mask is None else pad([p.mask for p in parts if p.mask is not None])
    return replace(parts[0], pooled=np.concatenate([p.pooled for p in parts]), sequence=pad([p.sequence for p in parts]), mask=mask)


def pad(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays (P, T, ...) one after another, zeros behind those that are shorter along T than the longest."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(p, [(0, 0), (0, longest - p.shape[1]), *[(0, 0)] * (p.ndim - 2)]) if p.shape[1] < longest else p for p in parts]
    )


def save_embeddings(path: AnyPath, encoded: Encoded) -> None:
    """Write one safetensors file, complete or not at all; bfloat16 where that loses no bit, else float32."""
    from safetensors.torch import save_file

    with sealed_file(path) as partial:
        save_file({name: _compact(values) for name, values in vars(encoded).items() if values is not None}, partial)


def _compact(values: np.ndarray) -> torch.Tensor:
    import torch

    tensor = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))
    half = tensor.to(torch.bfloat16)
    return half if torch.equal(half.float(), tensor) else tensor


class EmbeddingStore:
    """A file of `save_embeddings`, of which only the rows asked for are read. It keeps no file open: it can be pickled.

    Raises:
        UserError: the file is not there, is cut short, or is something else; or a row does not exist.
    """

    def __init__(self, path: str | AnyPath):
        self.path = as_path(path)
        try:
            self.file = TensorFile(self.path)
        except (FileNotFoundError, IsADirectoryError, KeyError, TypeError, DamagedError) as error:
            raise UserError(
                f"embeddings {self.path} cannot be read ({error}); delete the file and, beside it, prompts.parquet "
                "and plan.parquet (not proposals/), and run the same command again: the same prompts, plan and "
                "embeddings are made anew"
            ) from error
        if missing := {name for name, f in Encoded.__dataclass_fields__.items() if f.default is MISSING} - set(self.file.tensors):
            raise UserError(
                f"embeddings {self.path}: no {', '.join(sorted(missing))} in it; expected a file written by `save_embeddings`"
            )
        self.count = self.file.tensors["pooled"][1][0]

    def __len__(self) -> int:
        return self.count

    def pooled(self, indices: Sequence[int]) -> np.ndarray:
        """Return only the vectors float32 (P, E) of the prompts `indices` in that order; the tokens are not read."""
        distinct = self._checked(indices)
        position = {row: i for i, row in enumerate(distinct)}
        return self.file.rows("pooled", distinct)[[position[row] for row in indices]]

    def rows(self, indices: Sequence[int]) -> Encoded:
        """Return the prompts `indices` in that order, with the empty prompt; repeats are allowed and read once."""
        distinct = self._checked(indices)
        position = {row: i for i, row in enumerate(distinct)}
        parts = {
            name: self.file.rows(name, [0] if name.startswith("empty") else distinct)
            for name in Encoded.__dataclass_fields__
            if name in self.file.tensors
        }
        return Encoded(**parts).rows([position[row] for row in indices])

    def _checked(self, indices: Sequence[int]) -> list[int]:
        distinct = sorted(set(indices))
        if distinct and not 0 <= distinct[0] <= distinct[-1] < self.count:
            raise UserError(
                f"embeddings {self.path}: asked for rows {distinct[0]} to {distinct[-1]}, but they are 0 to "
                f"{self.count - 1}; the plan and this file are of different runs"
            )
        return distinct
