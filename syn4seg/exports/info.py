"""What every format knows of an export, and the colours of VOC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from syn4seg.exports.samples import ExportSample

Parts = Iterator[tuple[str, list[ExportSample]]]
"""Samples to write, at most `choosing.PART` at a time, each time with their split; those of one split follow each other."""


@dataclass(frozen=True)
class ExportInfo:
    """What every format knows of an export.

    Attributes:
        name: of the data set, safe as a file name.
        classes: names by label value, background first.
        shard_bytes: of images and labels in one shard, about.
        licences: by model.
        common: columns of `LINEAGE` that are the same for all samples.
        note: called with a line that the user should read.
    """

    name: str
    classes: tuple[str, ...]
    shard_bytes: int
    licences: dict[str, str]
    common: dict[str, str]
    note: Callable[[str], None] = lambda line: None


def palette(count: int) -> np.ndarray:
    """Return the colours of PASCAL VOC, uint8 (count, 3) RGB: bits of an index go to the channels in turn, low ones first."""
    index = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return colours
