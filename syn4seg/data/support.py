"""Support draws: K annotated images per novel class, named by a seed; a support image is never a query.

The field draws supports in two ways (protocols 2.3): from the val list, images with one novel class only, base objects
relabelled background (DIaM, BCM, VP), or from the train list with several novel classes allowed and base labels kept
(POP, EKT). Both are choices here; the area threshold is a share of the image [ours], where the field uses 16384 pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from syn4seg.data.datasets import Dataset, Fold
from syn4seg.data.embedded import seeded
from syn4seg.schema import BACKGROUND


def draw_support(dataset: Dataset, fold: Fold, shots: int, draw: int, *, seed: int, min_area: float = 0.05,
                 source: Literal["train", "val"] = "val", only_one_novel: bool = True) -> dict[int, list[str]]:  # fmt: skip
    """K support images per novel class.

    Args:
        shots: images per class.
        draw: number of this draw; with `seed` it names the choice, independently of all other draws.
        min_area: least share of the image that the class must cover, in [0, 1].
        source: the list to draw from.
        only_one_novel: skip images in which a second novel class is present.

    Returns:
        Novel dataset id -> sorted image ids; no image serves two classes.

    Raises:
        ValueError: a class has fewer than `shots` images.
    """
    if shots < 1:
        raise ValueError(f"shots = {shots}; expected at least 1 support image per novel class")
    pools: dict[int, list[str]] = {k: [] for k in fold.novel}
    for sample_id in sorted(getattr(dataset, source)):
        areas = dataset.areas(sample_id)
        present = [k for k in fold.novel if k in areas]
        if only_one_novel and len(present) > 1:
            continue
        for k in present:
            if areas[k] >= min_area:
                pools[k].append(sample_id)
    chosen: dict[int, list[str]] = {}
    taken: set[str] = set()
    for k in sorted(fold.novel, key=lambda k: (len(pools[k]), k)):  # the scarcest class chooses first
        pool = [s for s in pools[k] if s not in taken]
        if len(pool) < shots:
            raise ValueError(
                f"class {fold.names[k - 1]!r} has {len(pool)} support images in the {source} list, {shots} are needed "
                f"(class area >= {min_area:g} of the image{', no second novel class' if only_one_novel else ''}); "
                "lower shots or min_area, or allow more than one novel class"
            )
        rng = seeded("support", seed, draw, k, shots, source)
        chosen[k] = sorted(pool[i] for i in rng.permutation(len(pool))[:shots])
        taken.update(chosen[k])
    return {k: chosen[k] for k in fold.novel}


def query_ids(dataset: Dataset, support: dict[int, list[str]]) -> list[str]:
    """The val list without the support images, in its own order."""
    used = {sample_id for ids in support.values() for sample_id in ids}
    return [sample_id for sample_id in dataset.val if sample_id not in used]


def support_label(mask: np.ndarray, fold: Fold, target: int, *, base_in_support: Literal["background", "kept"] = "background",
                  other_novel: Literal["background", "kept"] = "kept") -> np.ndarray:  # fmt: skip
    """Class indices uint8 (H, W) of a support image's annotation.

    Args:
        mask: dataset ids uint8 (H, W).
        target: dataset id of the novel class that the image supports.
        base_in_support: "background" hides base objects (DIaM), "kept" uses their labels (CAPL, POP).
        other_novel: the same choice for novel classes besides the target.
    """
    table = fold.to_index
    if base_in_support == "background":
        table[list(fold.base)] = BACKGROUND
    if other_novel == "background":
        table[[k for k in fold.novel if k != target]] = BACKGROUND
    return table[mask]
