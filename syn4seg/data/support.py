"""Support draws: K annotated images per novel class, named by a seed; a support image is never a query.

The field draws supports in two ways (method.md 7.8): from the val list, images with one novel class only, base objects
relabelled background (DIaM, BCM, VP), or from the train list with several novel classes allowed and base labels kept
(POP, EKT). Both are choices here. `draw_support` is ours: each draw has a name and depends on no other; `pop_draw` is
POP's, which reproduces the published draws id by id.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal

import numpy as np

from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.schema import BACKGROUND
from syn4seg.seeds import seeded

POP_SEEDS = (123, 234, 345, 321, 456, 654, 999)
"""Seed of POP's k-th draw: POP's own (123, 234, and 345 on PASCAL), then those of CAPL, drawn in POP's way."""


def support_pools(
    dataset: Dataset,
    fold: Fold,
    source: Literal["train", "val"],
    min_pixels: int = 0,
    only_one_novel: bool = False,
    *,
    min_area: float = 0.0,
    reserve: float = 0.0,
) -> dict[int, list[str]]:
    """Return the images from which each novel class may be drawn.

    Args:
        source: the list to look at.
        min_pixels: least number of pixels that the class must cover (16384 in the field).
        only_one_novel: skip images in which a second novel class has any pixel (DIaM, CAPL).
        min_area: least share of the image that the class must cover, in [0, 1] [C].
        reserve: above 0, only the images that `is_reserved` names for this share, which base training leaves out.

    Returns:
        Novel dataset id -> image ids in the order of the list; an image may be in several pools.
    """
    pools: dict[int, list[str]] = {k: [] for k in fold.novel}
    for sample_id in getattr(dataset, source):
        if reserve > 0 and not is_reserved(sample_id, reserve):
            continue
        areas = dataset.areas(sample_id)
        present = [k for k in fold.novel if areas.get(k, 0.0) > 0 and areas[k] >= min_area]
        if not present or (only_one_novel and sum(k in areas for k in fold.novel) > 1):
            continue
        if min_pixels > 0:
            counts = pixel_counts(dataset, sample_id)
            present = [k for k in present if counts[k] >= min_pixels]
        for k in present:
            pools[k].append(sample_id)
    return pools


def pixel_counts(dataset: Dataset, sample_id: str) -> dict[int, int]:
    """Return the pixels per dataset id: from the data set's own `pixels` where it keeps an index, else from
    the areas and the size of the mask."""
    pixels = getattr(dataset, "pixels", None)
    if pixels is not None:
        return pixels(sample_id)
    size = dataset.mask(sample_id).size
    return {k: round(area * size) for k, area in dataset.areas(sample_id).items()}


def draw_support(
    dataset: Dataset,
    fold: Fold,
    shots: int,
    draw: int,
    *,
    seed: int,
    min_area: float = 0.05,
    source: Literal["train", "val"] = "val",
    only_one_novel: bool = True,
    min_pixels: int = 0,
    reserve: float = 0.0,
) -> dict[int, list[str]]:
    """Draw K support images per novel class.

    Args:
        shots: images per class.
        draw: number of this draw; with `seed` it names the choice, independently of all other draws.
        min_area, source, only_one_novel, min_pixels, reserve: as in `support_pools`.

    Returns:
        Novel dataset id -> sorted image ids; no image serves two classes. A choice that exists is found. A class with fewer than
        `shots` images in all repeats them in turn, as DIaM does.

    Raises:
        UserError: a class has no image, or only such as other classes need.
    """
    _check_shots(shots)
    pools = support_pools(dataset, fold, source, min_pixels, only_one_novel, min_area=min_area, reserve=reserve)
    order = sorted(fold.novel, key=lambda k: (len(pools[k]), k))  # the scarcest class chooses first
    chosen: dict[int, list[str]] = {}
    taken: set[str] = set()
    for k in order:
        pool = [s for s in sorted(pools[k]) if s not in taken]
        if len(pool) < shots:
            chosen = _matched(pools, order, shots, (seed, draw, source))
            break
        rng = seeded("support", seed, draw, k, shots, source)
        chosen[k] = sorted(pool[i] for i in rng.permutation(len(pool))[:shots])
        taken.update(chosen[k])
    for k in order:
        if len(chosen[k]) < min(shots, max(1, len(pools[k]))):
            pixels = f", at least {min_pixels} pixels" if min_pixels else ""
            found = f"has {len(pools[k])} support images" + (", which other classes need too," if pools[k] else "")
            raise UserError(
                f"class {fold.names[k - 1]!r} {found} in the {source} list, {shots} are needed (class area >= {min_area:g} of the "
                f"image{pixels}{', no second novel class' if only_one_novel else ''}); lower shots or min_area, or allow more than "
                "one novel class"
            )
    return {k: [chosen[k][i % len(chosen[k])] for i in range(shots)] for k in fold.novel}


def _matched(pools: dict[int, list[str]], order: list[int], shots: int, names: tuple[int, int, str]) -> dict[int, list[str]]:
    """Return images for every class, none for two classes: as many of the `shots` as any choice could give.

    Each class prefers its images in an order named by `names` (seed, draw, source); a class that finds nothing free has another
    one take its next image instead (augmenting paths, so the choice is a maximum matching).
    """
    seed, draw, source = names
    wishes = {}
    for k in order:
        pool = sorted(pools[k])
        wishes[k] = [pool[i] for i in seeded("support", seed, draw, k, shots, source).permutation(len(pool))]
    owner: dict[str, int] = {}

    def give(k: int, seen: set[str]) -> bool:
        for image in wishes[k]:
            if image in seen or owner.get(image) == k:
                continue
            seen.add(image)
            if image not in owner or give(owner[image], seen):
                owner[image] = k
                return True
        return False

    for _ in range(shots):
        for k in order:
            give(k, set())
    return {k: sorted(image for image, other in owner.items() if other == k) for k in order}


def pop_draw(pools: dict[int, list[str]], shots: int, seed: int) -> dict[int, list[str]]:
    """Draw as POP does (gen_fs_list): one stream of random picks, classes by ascending id; an image drawn before is skipped.

    With the pools of `support_pools(dataset, fold, "train", 16384)` on trainaug it gives POP's and EKT's published lists.

    Args:
        pools: novel dataset id -> image ids; their order matters.
        shots: images per class.
        seed: one of `POP_SEEDS`.

    Returns:
        Novel dataset id -> image ids in the order in which they were drawn; no image serves two classes.

    Raises:
        UserError: a pool has fewer than `shots` images that no class before it took.
    """
    _check_shots(shots)
    stream = random.Random(seed)
    drawn: dict[int, list[str]] = {}
    taken: set[str] = set()
    for k in sorted(pools):
        remaining = len(set(pools[k]) - taken)
        if remaining < shots:
            raise UserError(f"class id {k} has {remaining} support images left, {shots} are needed; lower shots or min_pixels")
        drawn[k] = []
        while len(drawn[k]) < shots:
            pick = stream.choice(pools[k])
            if pick not in taken:
                taken.add(pick)
                drawn[k].append(pick)
    return drawn


def _check_shots(shots: int) -> None:
    if shots < 1:
        raise UserError(f"shots = {shots}; expected at least 1 support image per novel class")


def is_reserved(sample_id: str, share: float) -> bool:
    """Return whether an image belongs to the share of the train list that is kept for support draws, by a hash of its id."""
    digest = hashlib.blake2b(f"support-reserve\x1f{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def base_ids(dataset: Dataset, fold: Fold, rule: Literal["all", "with_base", "without_novel"]) -> list[str]:
    """Return the base training images, in the order of the train list (method.md 5.2).

    "all": every image (BAM, DIaM). "with_base": those with any pixel of a base class (POP). "without_novel": of these, the
    ones without any pixel of a novel class (CAPL).
    """
    if rule == "all":
        return list(dataset.train)
    novel = set(fold.novel)
    shown = {sample_id: dataset.areas(sample_id).keys() for sample_id in dataset.train}
    with_base = [sample_id for sample_id, classes in shown.items() if classes - novel]
    return with_base if rule == "with_base" else [s for s in with_base if not shown[s] & novel]


def query_ids(dataset: Dataset, support: dict[int, list[str]]) -> list[str]:
    """Return the val list without the support images, in its own order."""
    used = {sample_id for ids in support.values() for sample_id in ids}
    return [sample_id for sample_id in dataset.val if sample_id not in used]


def support_label(
    mask: np.ndarray,
    fold: Fold,
    target: int,
    *,
    base_in_support: Literal["background", "kept"] = "background",
    other_novel: Literal["background", "kept"] = "kept",
) -> np.ndarray:
    """Return class indices uint8 (H, W) of a support image's annotation.

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
