"""What is written of an export at a time: samples, and parts of some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ExportSample:
    """A sample to write: its row of `LINEAGE`, image uint8 (H, W, 3) RGB, label uint8 (H, W) with 255 for unlabeled."""

    row: dict[str, Any]
    image: np.ndarray
    label: np.ndarray

    @property
    def sample_id(self) -> str:
        """The id of the sample, which is safe as a file name."""
        return self.row["sample_id"]


@dataclass(frozen=True)
class ExportPart:
    """Some samples of one split: the rows of all of them, those that have pixels, and a line per damaged one."""

    split: str
    rows: list[dict[str, Any]]
    items: list[ExportSample]
    damage: list[str]
