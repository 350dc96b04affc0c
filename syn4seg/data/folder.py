"""A data set in a folder (VOC layout), checked before anything heavy loads; masks are read as indices, never as colours.

Layout (either name of each pair): `images/` or `JPEGImages/` with photos (`photos.PHOTO_SUFFIXES`), `masks/` or
`SegmentationClass/` with index masks (`photos.MASK_SUFFIXES`), `train.txt` and `val.txt` in the root or in
`ImageSets/Segmentation/`, and `classes.json` or `classes.yaml` (`class_table`). An id is a file name without its suffix, with
the folders below `images/` in front of it, if there are any.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np

from syn4seg.data.class_table import read_class_table, read_text
from syn4seg.data.datasets import class_areas
from syn4seg.data.photos import (
    LISTED,
    MASK_SUFFIXES,
    PHOTO_SUFFIXES,
    Exif,
    check_orientations,
    decode_mask,
    decode_photo,
    list_pictures,
    open_image,
    orientation_evidence,
)
from syn4seg.errors import UserError


class FolderDataset:
    """Photos and index masks under `root`.

    Args:
        exif: as in `photos.decode_photo`.
        all_new: an extension: every class of the table is new, which needs no folds then, and the lists may be absent: without
            val.txt nothing is scored, without train.txt every other image with a mask is an annotated one.

    Raises:
        UserError: a list, the class table or an id is missing or malformed; the message names the file and the remedy.
    """

    def __init__(self, root: str | Path, exif: Exif = "auto", all_new: bool = False):
        self.root = Path(root)
        self.exif: Exif = exif
        if not self.root.is_dir():
            raise UserError(f"data folder {str(root)!r} does not exist; expected images/, masks/, train.txt, val.txt, classes.json")
        self._images = _find(self.root, ("images", "JPEGImages"), "the folder of images")
        self._masks = _find(self.root, ("masks", "SegmentationClass"), "the folder of index masks (PNG)")
        place = _find(self.root, ("classes.json", "classes.yaml", "classes.yml"), "the class table")
        table = read_class_table(place, all_new=all_new)
        self.classes, self.folds, self.fold_names = table.names, table.folds, table.fold_names
        self.val = [] if all_new and not _places(self.root, _lists("val")) else self._read_list("val")
        if all_new and not _places(self.root, _lists("train")):
            self.train = sorted(set(self._mask_files) - set(self.val))
        else:
            self.train = self._read_list("train")
        self._areas: dict[str, dict[int, float]] = {}

    def _read_list(self, name: str) -> list[str]:
        path = _find(self.root, _lists(name), f"the {name} list, one id per line")
        ids = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if not ids:
            raise UserError(f"{path} lists no id; expected one id per line, e.g. '0001'")
        for sample_id in ids:
            if "\\" in sample_id or not sample_id.isprintable() or any(p.startswith(".") or not p for p in sample_id.split("/")):
                raise UserError(
                    f"{path}: id {sample_id[:80]!r} is not a plain file name; expected names without a suffix, such as '0001' or "
                    "'city/0001', and no part that is empty or starts with '.'"
                )
        if repeated := [s for s, count in Counter(ids).items() if count > 1]:
            raise UserError(f"{path}: id {repeated[0]!r} is listed twice; list every image once")
        return ids

    @cached_property
    def _photo_files(self) -> dict[str, list[Path]]:
        return list_pictures(self._images, PHOTO_SUFFIXES)

    @cached_property
    def _mask_files(self) -> dict[str, list[Path]]:
        return list_pictures(self._masks, MASK_SUFFIXES)

    def _photo(self, sample_id: str) -> Path:
        return _single(self._photo_files, sample_id, "image", self._images, PHOTO_SUFFIXES)

    def _mask(self, sample_id: str) -> Path:
        return _single(self._mask_files, sample_id, "mask", self._masks, MASK_SUFFIXES)

    def check(self) -> None:
        """Look for every listed file and for ids on both lists; open none.

        Raises:
            UserError: a file is missing or there twice, or an id is on the train and on the val list.
        """
        both = sorted(set(self.train) & set(self.val))
        if both:
            raise UserError(
                f"id {both[0]!r} and {len(both) - 1} more are on the train and the val list of {self.root}; "
                "a val image must never be trained on"
            )
        for sample_id in (*self.train, *self.val):
            self._photo(sample_id)
            self._mask(sample_id)

    @property
    def files_digest(self) -> str:
        """A hash of what `check_files` depends on: names, sizes and times of every listed file, class table and `exif`."""
        total = hashlib.blake2b(f"{self.exif}\x1f{self.classes}".encode(), digest_size=16)
        for sample_id in (*self.train, *self.val):
            for path in (self._photo(sample_id), self._mask(sample_id)):
                facts = path.stat()
                total.update(f"{path.relative_to(self.root)}\x1f{facts.st_size}\x1f{facts.st_mtime_ns}\x1e".encode())
        return total.hexdigest()

    def file_sizes(self, sample_id: str) -> tuple[int, int]:
        """Return the bytes of the photo and of the mask of a listed id."""
        return self._photo(sample_id).stat().st_size, self._mask(sample_id).stat().st_size

    def check_files(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Decode every listed photo and mask, several at a time.

        Args:
            progress: called with how many of how many have been read.

        Returns:
            A warning for every class that no mask of a list holds.

        Raises:
            UserError: the first file that is damaged, of another size than its mask, or with a value that is no class; or photos
                whose EXIF orientation no rule can decide (`photos.check_orientations`).
        """
        ids, evidence = [*self.train, *self.val], []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            try:
                for count, found in enumerate(pool.map(self._read_pair, ids), 1):
                    evidence.append(found)
                    if progress is not None:
                        progress(count, len(ids))
            except UserError:
                pool.shutdown(cancel_futures=True)
                raise
        if self.exif == "auto":
            check_orientations(evidence)
        warnings = []
        for name, listed in (("train", self.train), ("val", self.val)):
            shown = {k for sample_id in listed for k in self._areas[sample_id]}
            if listed and (absent := [c for k, c in enumerate(self.classes, 1) if k not in shown]):
                warnings.append(f"no mask of the {name} list of {self.root} holds {', '.join(map(repr, absent))}")
        return warnings

    def _read_pair(self, sample_id: str) -> str:
        """Read one mask and its photo; return the photo's `orientation_evidence`."""
        mask = self.mask(sample_id)
        self._areas[sample_id] = class_areas(mask)
        size = mask.shape[1], mask.shape[0]
        decode_photo(self._photo(sample_id), size, LISTED, self.exif)
        return orientation_evidence(self._photo(sample_id), size)

    def image(self, sample_id: str) -> np.ndarray:
        """Return the RGB image uint8 (H, W, 3); EXIF orientation is applied as `photos.decode_photo` says.

        Raises:
            UserError: missing, unreadable or too large.
        """
        with open_image(self._mask(sample_id)) as mask:
            size = mask.size
        return decode_photo(self._photo(sample_id), size, LISTED, self.exif)

    def mask(self, sample_id: str) -> np.ndarray:
        """Return dataset ids uint8 (H, W), from a palette or a grey PNG, TIFF or BMP.

        Raises:
            UserError: missing, of another mode, or with a value that is no class.
        """
        return decode_mask(self._mask(sample_id), len(self.classes))

    def areas(self, sample_id: str) -> dict[int, float]:
        """Return the share of the image per dataset id; each mask is read once."""
        if sample_id not in self._areas:
            self._areas[sample_id] = class_areas(self.mask(sample_id))
        return self._areas[sample_id]


def _single(files: dict[str, list[Path]], sample_id: str, what: str, folder: Path, suffixes: tuple[str, ...]) -> Path:
    """Return the one file of an id."""
    paths = files.get(sample_id, [])
    if not paths:
        raise UserError(f"{what} {folder / sample_id} ({', '.join(suffixes)}) is missing; add it or take the id off its list")
    if len(paths) > 1:
        raise UserError(f"{what} {sample_id!r} is there twice: {paths[0]} and {paths[1].name}; keep one of the two files")
    return paths[0]


def _lists(name: str) -> tuple[str, ...]:
    """Return where a list may lie."""
    return f"{name}.txt", f"ImageSets/Segmentation/{name}.txt"


def _places(root: Path, names: tuple[str, ...]) -> list[Path]:
    return [root / name for name in names if (root / name).exists()]


def _find(root: Path, names: tuple[str, ...], what: str) -> Path:
    if not (places := _places(root, names)):
        raise UserError(f"{root} has no {' or '.join(names)} ({what}); add it")
    return places[0]
