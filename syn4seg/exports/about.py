"""What every format is told about an export, and VOC's colours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from syn4seg.exports.choosing import Item

Parts = Iterator[tuple[str, list[Item]]]
"""Samples to write, at most `choosing.PART` at a time, each time with their split; those of one split follow each other."""


@dataclass(frozen=True)
class About:
    """Attributes:
    name: of the data set, safe as a file name.
    classes: names by label value, background first.
    shard_bytes: of images and labels in one shard, about.
    licences: by model.
    common: columns of `LINEAGE` that are the same for all samples.
    """

    name: str
    classes: tuple[str, ...]
    shard_bytes: int
    licences: dict[str, str]
    common: dict[str, str]


def palette(count: int) -> np.ndarray:
    """PASCAL VOC's colours, uint8 (count, 3) RGB: the bits of an index are dealt to the three channels, the low ones first."""
    index = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return colours
