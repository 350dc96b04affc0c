"""The true labels of synthetic images where they are known: the renderer draws them again, imported photos may have masks.

Nothing of the method reads them. They serve the control row `oracle` and the figures of label quality.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.photos import decode_mask
from syn4seg.errors import UserError
from syn4seg.models.generators import generator_source
from syn4seg.stages.setup import load_dataset

Truth = Callable[[dict[str, Any], int], np.ndarray | None]
"""(record, rows of the image) -> its exact label by class index uint8 (H, W), or None if it is not known."""


def is_truth_known(config: Config) -> bool:
    """Return whether the true labels of the synthetic images of a configuration are known."""
    if config.synthesis.source == "folder":
        return config.evaluation.masks is not None
    return config.data.source == "embedded" and generator_source(config.synthesis.generator).truth is not None


def truth_source(config: Config) -> Truth | None:
    """Return what computes the exact label of a synthetic image; None where it is not known."""
    if not is_truth_known(config):
        return None
    fold = load_dataset(config)[1]
    table, classes = fold.to_index, len(fold.names)
    if config.synthesis.source == "folder":
        folder = Path(str(config.evaluation.masks))

        def read(record: dict[str, Any], rows: int) -> np.ndarray | None:
            path = folder / f"{Path(record['prompt']).stem}.png"
            return table[decode_mask(path, classes)] if path.is_file() else None

        return read
    truth = generator_source(config.synthesis.generator).truth
    assert truth is not None

    def redraw(record: dict[str, Any], rows: int) -> np.ndarray | None:
        try:
            return table[truth(record["prompt"], record["noise_seed"], rows)].astype(np.uint8)
        except UserError:  # not a prompt of the embedded world: somebody changed the record
            return None

    return redraw
