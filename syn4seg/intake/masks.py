"""Formats with one mask picture per photo: VOC's layout (colours too), Cityscapes and ADE20K, by their published tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from syn4seg.data.photos import MASK_SUFFIXES, open_image
from syn4seg.errors import UserError
from syn4seg.intake.tree import UNKNOWN, Found, SourcePhoto, Tree, show, split_of

VOC_PHOTOS, VOC_MASKS = ("JPEGImages", "images"), ("SegmentationClass", "masks")
_TABLES = ("classes.json", "classes.yaml", "classes.yml", "labelmap.txt", "class_names.txt", "classes.txt", "labels.txt")
_AGAIN = "replace the file, or move the photo and its mask away"
CITYSCAPES = (
    *((7, "road"), (8, "sidewalk"), (11, "building"), (12, "wall"), (13, "fence"), (17, "pole"), (19, "traffic light")),
    *((20, "traffic sign"), (21, "vegetation"), (22, "terrain"), (23, "sky"), (24, "person"), (25, "rider"), (26, "car")),
    *((27, "truck"), (28, "bus"), (31, "train"), (32, "motorcycle"), (33, "bicycle")),
)
"""Id and name of the 19 classes that Cityscapes evaluates, in the order of their train ids (cityscapesScripts, labels.py)."""


def _folder(tree: Tree, choices: tuple[str, ...]) -> str:
    return next((name for name in choices if tree.below(name)), "")


def detect_voc(tree: Tree) -> str:
    """Return why the folder is in VOC's layout, or ""."""
    photos, masks = _folder(tree, VOC_PHOTOS), _folder(tree, VOC_MASKS)
    return f"{photos}/ and {masks}/" if photos and masks else ""


def read_voc(tree: Tree) -> Found:
    """Read photos and index or colour masks of one name, and the lists of ImageSets/Segmentation or of the top.

    Raises:
        UserError: no class table, or one that is malformed.
    """
    photos, masks = _folder(tree, VOC_PHOTOS), _folder(tree, VOC_MASKS)
    if not photos or not masks:
        raise UserError(f"{tree.root}: expected photos in JPEGImages/ or images/, masks in SegmentationClass/ or masks/; add them")
    names, colours = _voc_classes(tree)
    splits = {}
    for split in ("test", "val", "train"):
        for place in (f"ImageSets/Segmentation/{split}.txt", f"{split}.txt"):
            if tree.has(place):
                splits |= {line.strip(): split for line in tree.text(place).splitlines() if line.strip()}
    read = partial(_read_index if colours is None else partial(_read_colours, colours=colours), tree, limit=len(names))
    return _pair(tree, names, photos, {_stem(name, masks): name for name in tree.below(masks, MASK_SUFFIXES)}, read, splits.get)


def _stem(name: str, folder: str, ending: str = "") -> str:
    return name[len(folder) + 1 :].rpartition(".")[0].removesuffix(ending)


def _pair(
    tree: Tree,
    names: list[str],
    folder: str,
    masks: dict[str, str],
    read: Callable[..., np.ndarray],
    split: Callable[[str], str | None],
    ending: str = "",
) -> Found:
    """Return the photos below a folder that have a mask of the same name."""
    found, left = Found(names, []), dict(masks)
    for name in tree.below(folder):
        stem = _stem(name, folder, ending)
        if (mask := masks.get(stem)) is None:
            found.odd["photos without a mask, left out"] += 1
            continue
        left.pop(stem, None)
        found.photos.append(SourcePhoto(name, split(stem) or "", partial(_ignoring_size, read, mask)))
    if left:
        found.odd["masks without a photo, left out"] += len(left)
    return found


def _ignoring_size(read: Callable[[str], np.ndarray], mask: str, rows: int, columns: int) -> np.ndarray:
    """Read a mask, whose size is its own."""
    return read(mask)


def _voc_classes(tree: Tree) -> tuple[list[str], dict[int, int] | None]:
    """Return the class names, and for masks of colours the value of each colour (as 0xRRGGBB)."""
    table = next((name for name in _TABLES if tree.has(name)), None)
    if table is None:
        if tree.has("ImageSets/Segmentation/train.txt") and tree.below("Annotations", (".xml",)):
            from syn4seg.data.pascal import CLASSES

            return list(CLASSES), None
        raise UserError(
            f"{tree.root}: has masks but no table that names their classes; expected classes.txt with one name per line, the class "
            "of value 1 first, or labelmap.txt with colours: add it"
        )
    if table == "labelmap.txt":
        return _read_labelmap(tree, table)
    if table.startswith("classes.") and not table.endswith(".txt"):
        names = _table_names(tree, table)
    else:
        names = [line.strip() for line in tree.text(table).splitlines() if line.strip()]
    while names and names[0].strip("_").casefold() in ("ignore", "background"):
        names = names[1:]  # labelme writes __ignore__ and _background_ before the classes
    return names, None


def _table_names(tree: Tree, table: str) -> list[str]:
    from syn4seg.data.class_table import read_class_table

    return list(read_class_table(tree.path(table), all_new=True).names)


def _read_labelmap(tree: Tree, table: str) -> tuple[list[str], dict[int, int]]:
    """Read CVAT's labelmap.txt: `name:R,G,B:parts:actions` per line; background and void have colours too."""
    names, colours = [], {}
    for number, line in enumerate(tree.text(table).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, colour, *_ = line.split(":")
            red, green, blue = (int(part) for part in colour.split(","))
        except ValueError:
            raise UserError(f"{tree.root / table}: line {number} is {show(line)}; expected NAME:R,G,B:: - correct it") from None
        if name.strip("_").casefold() == "background":
            value = 0
        else:
            names.append(name)
            value = len(names)
        colours[(red << 16) + (green << 8) + blue] = value
    return names, colours


def _read_index(tree: Tree, name: str, *, limit: int, values: np.ndarray | None = None) -> np.ndarray:
    """Read an index mask; `values` maps what is stored to values here, else 255 is unlabeled and the rest as stored."""
    path = tree.path(name)
    with open_image(path, _AGAIN, ("PNG", "TIFF", "BMP")) as stored:
        if stored.mode not in ("L", "P", "1", "I;16", "I"):
            raise UserError(
                f"{path} has mode {stored.mode}; expected an index picture, or labelmap.txt that names its colours: add it"
            )
        mask = _pixels(stored, path).astype(np.int64)
    if values is None:
        mask[mask == 255] = UNKNOWN
        worst = int(mask[mask != UNKNOWN].max(initial=0))
    else:
        worst = int(mask.max(initial=0)) if mask.max(initial=0) >= len(values) or mask.min(initial=0) < 0 else 0
        limit = len(values) - 1
    if worst > limit or mask.min(initial=0) < 0:
        raise UserError(
            f"{path} has the value {worst}; expected 0..{limit} or 255 (unlabeled): correct the mask or the class table"
        )
    return mask.astype(np.uint16) if values is None else values[mask]


def _read_colours(tree: Tree, name: str, *, limit: int, colours: dict[int, int]) -> np.ndarray:
    path = tree.path(name)
    with open_image(path, _AGAIN, ("PNG", "TIFF", "BMP")) as stored:
        if stored.width * stored.height > 64_000_000:
            raise UserError(f"{path} has too many pixels; {_AGAIN}")
        rgb = _pixels(stored.convert("RGB"), path).astype(np.int64)
    codes, places = np.unique((rgb[..., 0] << 16) + (rgb[..., 1] << 8) + rgb[..., 2], return_inverse=True)
    unknown = [int(code) for code in codes if int(code) not in colours]
    if unknown:
        red, green, blue = unknown[0].to_bytes(3, "big")
        raise UserError(f"{path} has the colour {red},{green},{blue}; expected those of labelmap.txt: add it there with its name")
    return np.array([colours[int(code)] for code in codes], np.uint16)[places].reshape(rgb.shape[:2])


def _pixels(stored: Image.Image, path: object) -> np.ndarray:
    try:
        return np.array(stored)
    except (OSError, SyntaxError, ValueError, MemoryError) as error:
        raise UserError(f"{path} cannot be decoded ({str(error)[:100]}); {_AGAIN}") from None


def detect_cityscapes(tree: Tree) -> str:
    """Return why the folder is Cityscapes', or ""."""
    fine = any("_gtFine_label" in name for name in tree.below("gtFine"))
    return "leftImg8bit/ and gtFine/ with label pictures" if fine and tree.below("leftImg8bit") else ""


def read_cityscapes(tree: Tree) -> Found:
    """Read Cityscapes' fine annotations (labelIds, else labelTrainIds); classes that it does not evaluate are unlabeled."""
    suffixes = {"_gtFine_labelTrainIds.png": True, "_gtFine_labelIds.png": False}
    masks = {}
    for ending in suffixes:  # the ids themselves win
        masks |= {name[7 : -len(ending)]: name for name in tree.below("gtFine") if name.endswith(ending)}
    values = {True: np.full(256, UNKNOWN, np.uint16), False: np.full(256, UNKNOWN, np.uint16)}
    for number, (label, _) in enumerate(CITYSCAPES, 1):
        values[True][number - 1] = values[False][label] = number

    def read(name: str) -> np.ndarray:
        return _read_index(tree, name, limit=255, values=values[name.endswith("TrainIds.png")])

    return _pair(tree, [name for _, name in CITYSCAPES], "leftImg8bit", masks, read, split_of, "_leftImg8bit")


def detect_ade20k(tree: Tree) -> str:
    """Return why the folder is ADE20K's scene parsing benchmark, or ""."""
    if tree.below("images/training") and tree.below("annotations/training", MASK_SUFFIXES):
        return "images/training/ and annotations/training/"
    return ""


def read_ade20k(tree: Tree) -> Found:
    """Read ADEChallengeData2016: value k is line k of objectInfo150.txt; 0 (other objects) is unlabeled.

    Raises:
        UserError: objectInfo150.txt is missing or malformed.
    """
    table = "objectInfo150.txt"
    if not tree.has(table):
        raise UserError(f"{tree.root / table} is missing, which names ADE20K's classes; unpack it from the archive again")
    names = []
    for number, line in enumerate(tree.text(table).splitlines()[1:], 1):
        cells = line.rstrip().split("\t")
        if not line.strip():
            continue
        if len(cells) < 2 or cells[0].strip() != str(number):
            raise UserError(
                f"{tree.root / table}: line {number + 1} is {show(line)}; expected class {number} with its name, as published"
            )
        names.append(cells[-1].split(",")[0].strip())
    values = np.arange(len(names) + 1).astype(np.uint16)
    values[0] = UNKNOWN
    masks = {_stem(name, "annotations"): name for name in tree.below("annotations", MASK_SUFFIXES)}
    return _pair(tree, names, "images", masks, partial(_read_index, tree, limit=len(names), values=values), split_of)
