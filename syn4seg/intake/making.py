"""`syn4seg init`: from a folder in somebody's format to a folder data set beside it, with a configuration that runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from syn4seg.data.class_table import LONGEST
from syn4seg.data.photos import open_image, upright_size
from syn4seg.errors import UserError, did_you_mean
from syn4seg.intake.formats import SOURCE_FORMATS, choose_format
from syn4seg.intake.publishing import Beside
from syn4seg.intake.settings import config_text
from syn4seg.intake.tree import UNKNOWN, Found, SourcePhoto, Tree, show
from syn4seg.schema import UNLABELED
from syn4seg.store.images import encode_image
from syn4seg.store.samples import escape_name

Progress = Callable[[int, int], None]
_BACKGROUND = ("background", "bg")
_NO_CLASS = ("ignore", "ignored", "unlabeled", "unlabelled", "void", "255")
MOST_IMAGES = 30
"""Photos of a novel class that are linked as images to label."""


@dataclass(frozen=True)
class Initialized:
    """What `init` made.

    Attributes:
        path: the folder.
        config: its configuration, which `syn4seg run` takes.
        format, why: what the source was taken for, and why.
        classes: by name, in the order of their ids: photos that show the class, and its pixels in all of them.
        train, val: how many photos are on each list.
        odd: how many odd things of each kind were met.
        novel: names of the novel classes.
        proposed: whether they are a proposal and nobody's choice.
    """

    path: str
    config: str
    format: str
    why: str
    classes: dict[str, tuple[int, int]]
    train: int
    val: int
    odd: dict[str, int]
    novel: tuple[str, ...]
    proposed: bool


def init(
    folder: str | os.PathLike[str],
    *,
    to: str | os.PathLike[str] | None = None,
    novel: Sequence[str] = (),
    format: str | None = None,
    progress: Progress | None = None,
) -> Initialized:
    """Read a folder of photos and annotations, and write a folder data set with a configuration beside it.

    Args:
        folder: in any of `SOURCE_FORMATS`; nothing in it is changed.
        to: where to write; None: FOLDER-syn4seg beside it.
        novel: names of the novel classes; empty: the rarest ones are proposed.
        format: a name of `SOURCE_FORMATS`; None: what fits.
        progress: called with (photos done, photos in all).

    Raises:
        UserError: nothing fits, a file is damaged, or something else lies at `to`.
    """
    source = Path(os.path.abspath(os.fspath(folder)))
    tree = Tree(source)
    name, why = choose_format(tree, format)
    found = SOURCE_FORMATS[name].read(tree)
    photos = _name_photos(tree, found)
    areas = {key: _count(tree, photo) for key, photo in photos.items()}
    values, names = _number_classes(source, found, areas)
    shown = {key: {int(values[k]): n for k, n in area.items() if 0 < values[k] < UNLABELED} for key, area in areas.items()}
    sizes = {key: sum(area.values()) for key, area in areas.items()}
    lists = _split(source, photos, shown, found.odd)
    chosen = _choose_novel(source, names, novel, lists, shown)
    root = Path(os.path.abspath(os.fspath(to))) if to is not None else source.parent / f"{source.name}-syn4seg"
    beside = Beside(root, source)
    for done, (key, photo) in enumerate(sorted(photos.items()), 1):
        mask = values[photo.draw(*_shape(tree, photo))].astype(np.uint8)
        beside.write(f"masks/{key}.png", encode_image(mask))
        beside.link(f"images/{key}{Path(photo.name).suffix}", tree.path(photo.name))
        if progress is not None:
            progress(done, len(photos))
    for split, keys in lists.items():
        beside.write(f"{split}.txt", "".join(f"{key}\n" for key in keys).encode())
    table = {"classes": names, "folds_novel": {"fold0": chosen}}
    beside.write("classes.json", (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode())
    least = [_link_images(beside, tree, names.index(n) + 1, n, photos, lists["train"], shown, sizes) for n in chosen]
    text = config_text(source.name, root, names, chosen, not novel, name, min(least))
    beside.write("config.yaml", text.encode())
    beside.end()
    counts = {n: (sum(k in s for s in shown.values()), sum(s.get(k, 0) for s in shown.values())) for k, n in enumerate(names, 1)}
    facts = counts, len(lists["train"]), len(lists["val"]), dict(sorted(found.odd.items()))
    return Initialized(str(root), str(root / "config.yaml"), name, why, *facts, tuple(chosen), not novel)


def _name_photos(tree: Tree, found: Found) -> dict[str, SourcePhoto]:
    """Return the photos by id: their paths below the folder that holds them all, without suffixes."""
    if not found.photos:
        raise UserError(
            f"{tree.root}: holds no photo with an annotation that could be read; expected at least two: check the folder"
        )
    parts = [photo.name.split("/")[:-1] for photo in found.photos]
    common = next((i for i, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), min(map(len, parts)))
    photos: dict[str, SourcePhoto] = {}
    for photo in sorted(found.photos, key=lambda photo: photo.name):
        key = "/".join(photo.name.split("/")[common:]).rpartition(".")[0]
        if not key or not key.isprintable() or "\\" in key or key != key.strip():
            raise UserError(
                f"{tree.root}: the photo {show(photo.name)} has a name that a list cannot hold; expected printable: rename it"
            )
        if key in photos:
            other = photos[key].name
            what = "is annotated twice" if other == photo.name else f"and {other} differ in their suffix alone"
            raise UserError(f"{tree.root / photo.name}: {what}; expected one photo and one annotation of a name: remove one")
        photos[key] = photo
    return photos


def _shape(tree: Tree, photo: SourcePhoto) -> tuple[int, int]:
    """Return rows and columns of a photo's mask."""
    path = tree.path(photo.name)
    with open_image(path, "replace the file, or take its annotation out") as stored:
        upright, size = upright_size(stored), stored.size
    columns, rows = photo.size or upright
    if (columns, rows) not in (upright, size):
        raise UserError(
            f"{path} is {size[0]}x{size[1]} pixels, but its annotation is for {columns}x{rows}; they must have one size: put the "
            "photo there that was annotated"
        )
    return rows, columns


def _count(tree: Tree, photo: SourcePhoto) -> dict[int, int]:
    """Return the pixels of each value of a photo's mask."""
    rows, columns = _shape(tree, photo)
    mask = photo.draw(rows, columns)
    path = tree.path(photo.name)
    with open_image(path) as stored:
        fits = mask.shape in {size[::-1] for size in (stored.size, upright_size(stored))}
    if not fits:
        raise UserError(
            f"{path} is {columns}x{rows} pixels, but its mask is {mask.shape[1]}x{mask.shape[0]}; they must be equal: replace one"
        )
    counts = np.bincount(mask.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _number_classes(source: Path, found: Found, areas: dict[str, dict[int, int]]) -> tuple[np.ndarray, list[str]]:
    """Return a table from values of the source to dataset ids, and the names of those classes that have a pixel."""
    used = {value for area in areas.values() for value in area}
    values, names, known = np.zeros(UNKNOWN + 1, np.int64), [], {}
    values[UNKNOWN] = UNLABELED
    for value, name in enumerate(found.names, 1):
        plain = name.strip().strip("_").casefold()
        if plain in _NO_CLASS:
            values[value] = UNLABELED
        elif plain not in _BACKGROUND and value in used:
            if not 0 < len(name) <= LONGEST or not name.isprintable() or name != name.strip():
                raise UserError(
                    f"{source}: the class name {show(name)} is not usable; expected 1 to {LONGEST} printable characters: rename it"
                )
            if (other := known.get(name.casefold())) is not None:
                raise UserError(f"{source}: the class names {show(other)} and {show(name)} differ in case at most: rename one")
            known[name.casefold()] = name
            names.append(name)
            values[value] = len(names)
        elif plain not in _BACKGROUND:
            found.odd["classes without a pixel, left out"] += 1
    if not 2 <= len(names) < UNLABELED:
        raise UserError(
            f"{source}: {len(names)} classes have pixels; expected 2 to 254, base and novel ones (one class: `syn4seg extend` "
            "adds it to a trained model): annotate more, or leave classes out"
        )
    return values, names


def _split(
    source: Path, photos: dict[str, SourcePhoto], shown: dict[str, dict[int, int]], odd: Counter[str]
) -> dict[str, list[str]]:
    """Return the lists; where the source has none, a fifth is val, class by class from the rarest one, in the order of a hash."""
    said = {split: sorted(key for key, photo in photos.items() if photo.split == split) for split in ("train", "val", "test", "")}
    if said["train"] and (said["val"] or said["test"]) and not said[""]:
        if said["val"] and said["test"]:
            odd["photos of a test split, on no list"] += len(said["test"])
        return {"train": said["train"], "val": said["val"] or said["test"]}
    odd["photos without a list, split by a hash of their names: a fifth is val"] += len(photos)
    left = sorted(photos, key=lambda key: hashlib.blake2b(key.encode(), digest_size=16).digest())
    counts = Counter(value for area in shown.values() for value in area)
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for value in [*sorted(counts, key=lambda value: (counts[value], value)), None]:
        some = [key for key in left if value is None or value in shown[key]]
        there = any(value in shown[key] for key in lists["val"])
        queries = max(0 if there or len(some) < 2 else 1, len(some) // 5)
        lists["val"] += some[:queries]
        lists["train"] += some[queries:]
        left = [key for key in left if key not in set(some)]
    if not lists["val"] or not lists["train"]:
        raise UserError(
            f"{source}: {len(photos)} annotated photos are too few to train and to score; expected two or more: add some"
        )
    return {split: sorted(keys) for split, keys in lists.items()}


def _choose_novel(
    source: Path, names: list[str], asked: Sequence[str], lists: dict[str, list[str]], shown: dict[str, dict[int, int]]
) -> list[str]:
    """Return the novel classes: those asked for, or a quarter of all, the rarest that both lists show."""
    seen = {split: Counter(value for key in keys for value in shown[key]) for split, keys in lists.items()}
    if asked:
        unknown = [name for name in asked if name not in names]
        if unknown or len(set(asked)) == len(names):
            why = f"{unknown[0]!r} is none of the classes{did_you_mean(unknown[0], names)}" if unknown else "no base class is left"
            raise UserError(f"--novel {','.join(asked)}: {why}; expected some of {', '.join(names[:30])}, not all: correct it")
        if absent := [name for name in asked if not seen["train"][names.index(name) + 1]]:
            raise UserError(
                f"--novel {absent[0]}: no photo of the train list of {source} shows it: annotate one, or choose another class"
            )
        return [name for name in names if name in set(asked)]
    able = [k for k in range(1, len(names) + 1) if seen["train"][k] and seen["val"][k]] or sorted(seen["train"])
    able = sorted(able, key=lambda k: (seen["train"][k] + seen["val"][k], k))[: max(1, len(names) // 4)]
    return [names[k - 1] for k in sorted(able)]


def _link_images(
    beside: Beside,
    tree: Tree,
    value: int,
    name: str,
    photos: dict[str, SourcePhoto],
    train: list[str],
    shown: dict[str, dict[int, int]],
    sizes: dict[str, int],
) -> float:
    """Link train photos of a novel class as images to label, largest share first; return the largest share."""
    shares = sorted((-shown[key][value] / sizes[key], key) for key in train if value in shown[key])
    for _, key in shares[:MOST_IMAGES]:
        flat = escape_name(key) if "/" in key else key
        beside.link(f"to-label/{escape_name(name)}/{flat}{Path(photos[key].name).suffix}", tree.path(photos[key].name))
    return -shares[0][0]
