"""A data set in a folder (VOC layout), checked before anything heavy loads; masks are read as indices, never as colours.

Layout (either name of each pair): `images/` or `JPEGImages/` with ID.jpg|jpeg|png, `masks/` or `SegmentationClass/` with
ID.png, `train.txt` and `val.txt` in the root or in `ImageSets/Segmentation/`, and `classes.json` or `classes.yaml`:
{"classes": [...], "folds_novel": {"fold0": [names], ...} or [[names], ...]}.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from syn4seg.data.datasets import class_areas
from syn4seg.errors import UserError
from syn4seg.schema import BACKGROUND, UNLABELED

MAX_PIXELS = 64_000_000
LISTED = "replace the file or take its id off the list"
_ID = re.compile(r"[^/\\\x00]+")


class FolderDataset:
    """Photos and index masks under `root`.

    Raises:
        UserError: a list, the class table or an id is missing or malformed; the message names the file and the remedy.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"data folder {str(root)!r} does not exist; expected images/, masks/, train.txt, val.txt, classes.json")
        self._images = _find(self.root, ("images", "JPEGImages"), "the folder of images")
        self._masks = _find(self.root, ("masks", "SegmentationClass"), "the folder of index masks (PNG)")
        self.classes, self.folds = _read_classes(_find(self.root, ("classes.json", "classes.yaml"), "the class table"))
        self.train, self.val = (self._read_list(name) for name in ("train", "val"))
        self._areas: dict[str, dict[int, float]] = {}

    def _read_list(self, name: str) -> list[str]:
        path = _find(self.root, (f"{name}.txt", f"ImageSets/Segmentation/{name}.txt"), f"the {name} list, one id per line")
        ids = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        if not ids:
            raise UserError(f"{path} lists no id; expected one id per line, e.g. '0001'")
        for sample_id in ids:
            if not _ID.fullmatch(sample_id) or ".." in sample_id or sample_id.startswith("."):
                raise UserError(f"{path}: id {sample_id!r} is not a plain file name; expected ids without '/', '..' or a suffix")
        if repeated := [s for s, count in Counter(ids).items() if count > 1]:
            raise UserError(f"{path}: id {repeated[0]!r} is listed twice; list every image once")
        return ids

    def _image_path(self, sample_id: str) -> Path:
        for suffix in (".jpg", ".jpeg", ".png", ".JPG"):
            path = self._images / (sample_id + suffix)
            if path.is_file():
                return path
        raise UserError(f"image {self._images / sample_id}.jpg (or .png) is missing; add it or take the id off its list")

    def check(self) -> None:
        """Look for every listed file and for ids on both lists; open none.

        Raises:
            UserError: a file is missing, or an id is on the train and on the val list.
        """
        both = sorted(set(self.train) & set(self.val))
        if both:
            raise UserError(
                f"id {both[0]!r} and {len(both) - 1} more are on the train and the val list of {self.root}; "
                "a val image must never be trained on"
            )
        for sample_id in (*self.train, *self.val):
            self._image_path(sample_id)
            if not (self._masks / f"{sample_id}.png").is_file():
                raise UserError(f"mask {self._masks / sample_id}.png is missing; add it or take the id off its list")

    def image(self, sample_id: str) -> np.ndarray:
        """Return the RGB image uint8 (H, W, 3); EXIF orientation is applied only where the mask fits the turned image alone.

        Raises:
            UserError: missing, unreadable or larger than `MAX_PIXELS`.
        """
        with open_image(self._masks / f"{sample_id}.png") as mask:
            size = mask.size
        return decode_photo(self._image_path(sample_id), size)

    def mask(self, sample_id: str) -> np.ndarray:
        """Return dataset ids uint8 (H, W), from a palette or an 8-bit grey PNG.

        Raises:
            UserError: missing, of another mode, or with a value that is no class.
        """
        return decode_mask(self._masks / f"{sample_id}.png", len(self.classes))

    def areas(self, sample_id: str) -> dict[int, float]:
        """Return the share of the image per dataset id; each mask is read once."""
        if sample_id not in self._areas:
            self._areas[sample_id] = class_areas(self.mask(sample_id))
        return self._areas[sample_id]


def decode_image(path: Path) -> np.ndarray:
    """Return the RGB image uint8 (H, W, 3) of any image file, upright by its EXIF orientation.

    Raises:
        UserError: missing, unreadable or larger than `MAX_PIXELS`.
    """
    with open_image(path, "replace the file or take it out of the folder") as stored:
        try:
            return np.array(ImageOps.exif_transpose(stored).convert("RGB"))
        except OSError as error:
            raise UserError(f"{path} cannot be decoded ({error}); replace the file or take it out of the folder") from error


def decode_photo(path: Path, size: tuple[int, int], remedy: str = LISTED) -> np.ndarray:
    """Return the RGB image uint8 (H, W, 3) of a photo (grey and CMYK included) in the orientation of its mask.

    Pixels stay as they are stored where they fit; EXIF orientation is applied only where the turned image alone fits.

    Args:
        size: columns and rows of the mask.
        remedy: what to do about a file that cannot be decoded.

    Raises:
        UserError: missing, unreadable, larger than `MAX_PIXELS`, or of another size than the mask.
    """
    with open_image(path, remedy) as stored:
        try:
            fitting = stored if stored.size == size else ImageOps.exif_transpose(stored)
            if fitting.size != size:
                raise UserError(
                    f"{path} is {stored.size[0]}x{stored.size[1]} pixels but its mask {path.stem}.png is "
                    f"{size[0]}x{size[1]}; they must have one size"
                )
            return np.array(fitting.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise UserError(f"{path} cannot be decoded ({error}); {remedy}") from error


def decode_mask(path: Path, classes: int, remedy: str = LISTED) -> np.ndarray:
    """Return dataset ids uint8 (H, W) of an index PNG: palette entries or grey values as stored, never colours.

    Args:
        classes: the largest id; 255 is allowed besides.
        remedy: what to do about a file that cannot be decoded.

    Raises:
        UserError: missing, unreadable, of another mode, or with a value that is no class.
    """
    with open_image(path, remedy) as stored:
        if stored.mode not in ("L", "P"):
            raise UserError(f"{path} has mode {stored.mode}; expected an index PNG (mode P or L) whose pixel values are class ids")
        try:
            mask = np.array(stored)
        except (OSError, SyntaxError) as error:
            raise UserError(f"{path} cannot be decoded ({error}); {remedy}") from error
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    wrong = [int(v) for v in values if v > classes and v != UNLABELED]
    if wrong:
        raise UserError(
            f"{path} has the value {wrong[0]}; expected {BACKGROUND} (background), 1..{classes} (the classes in order) "
            f"or {UNLABELED} (unlabeled): renumber the mask or extend the class table"
        )
    return mask


def open_image(path: Path, remedy: str = LISTED) -> Image.Image:
    """Open an image file and read its header; decode nothing yet.

    Raises:
        UserError: missing, not an image, or larger than `MAX_PIXELS`.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {remedy}")
    try:
        image = Image.open(path)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image ({error}); {remedy}") from error
    if image.size[0] * image.size[1] > MAX_PIXELS:
        image.close()
        raise UserError(f"{path} has {image.size[0] * image.size[1]} pixels; expected at most {MAX_PIXELS}: shrink image and mask")
    return image


def _find(root: Path, names: tuple[str, ...], what: str) -> Path:
    path = next((root / name for name in names if (root / name).exists()), None)
    if path is None:
        raise UserError(f"{root} has no {' or '.join(names)} ({what}); add it")
    return path


def _read_classes(path: Path) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Return the class names and, per fold, the novel dataset ids."""
    try:
        if path.suffix == ".json":
            table = json.loads(path.read_text())
        else:
            import yaml

            table = yaml.safe_load(path.read_text())
        names, folds = [str(n) for n in table["classes"]], table["folds_novel"]
        folds = [list(map(str, f)) for f in (folds.values() if isinstance(folds, dict) else folds)]
    except Exception as error:
        raise UserError(
            f'{path} is not a class table ({type(error).__name__}: {error}); expected {{"classes": [names], '
            '"folds_novel": {"fold0": [names], ...}}'
        ) from error
    if not 0 < len(names) < UNLABELED or len(set(names)) != len(names):
        raise UserError(f"{path}: 'classes' has {len(names)} entries; expected 1..254 different names")
    if not folds:
        raise UserError(f"{path}: 'folds_novel' is empty; expected at least one list of novel class names")
    for number, fold in enumerate(folds):
        unknown = [n for n in fold if n not in names]
        if unknown or not fold or len(set(fold)) != len(fold) or len(fold) == len(names):
            raise UserError(
                f"{path}: fold {number} of 'folds_novel' is {fold}; expected different names out of 'classes', "
                f"neither none nor all of them{f' ({unknown[0]!r} is unknown)' if unknown else ''}"
            )
    return tuple(names), tuple(tuple(sorted(names.index(n) + 1 for n in fold)) for fold in folds)
