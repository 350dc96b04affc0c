"""The user's folder as it is read: names once, files by name, never beyond its top; and what was understood of it.

Names that stand in somebody's JSON or XML are data: one that leads out of the folder, by `..` or through a link, is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from syn4seg.data.photos import PHOTO_SUFFIXES
from syn4seg.errors import UserError

MAX_FILES = 2_000_000
MAX_TEXT = 500_000_000
"""Bytes of the largest annotation file that is read."""


@dataclass(frozen=True)
class SourcePhoto:
    """A photo of the user's and how its mask is made.

    Attributes:
        name: path below the folder.
        split: "train", "val", "test", or "" where the source does not say.
        draw: called with rows and columns; returns (H, W) of 0 background, k for `names[k - 1]`, `UNKNOWN` unlabeled. Raises
            UserError.
        size: columns and rows that the source states; None: those of the upright photo.
    """

    name: str
    split: str
    draw: Callable[[int, int], np.ndarray]
    size: tuple[int, int] | None = None


@dataclass
class Found:
    """What a folder holds: class names, photos with masks, and how many odd things there are of each kind."""

    names: list[str]
    photos: list[SourcePhoto]
    odd: Counter[str] = field(default_factory=Counter)


UNKNOWN = 65_535
"""Value of an unlabeled pixel before classes are numbered: there may be more than 254 of them in a source."""


class Tree:
    """The files below a folder; hidden ones and linked folders are left out.

    Attributes:
        names: their paths below it, with "/", sorted.

    Raises:
        UserError: there is no such folder, or it holds too much.
    """

    def __init__(self, root: Path):
        self.root = root
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; give the folder that holds your photos and their annotations")
        self._real, names = os.path.realpath(root), []
        for place, folders, files in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = Path(place).relative_to(root)
            names += [(below / name).as_posix() for name in files if not name.startswith(".")]
            if len(names) > MAX_FILES:
                raise UserError(f"{root}: holds more than {MAX_FILES:,} files; give the folder of the data set alone")
        self.names = sorted(names)

    @cached_property
    def _known(self) -> set[str]:
        return set(self.names)

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.names:
            if name.lower().endswith(PHOTO_SUFFIXES):
                found.setdefault(name.rpartition("/")[2], []).append(name)
        return found

    def has(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        return name in self._known

    def below(self, folder: str, suffixes: tuple[str, ...] = PHOTO_SUFFIXES) -> list[str]:
        """Return the names below a folder ("" for all) that end so, in any case."""
        start = f"{folder}/" if folder else ""
        return [name for name in self.names if name.startswith(start) and name.lower().endswith(suffixes)]

    def shallow(self, suffixes: tuple[str, ...], deepest: int = 2) -> list[str]:
        """Return the names that end so, at most `deepest` folders down."""
        return [name for name in self.below("", suffixes) if name.count("/") <= deepest]

    def path(self, name: str) -> Path:
        """Return the path of a file.

        Raises:
            UserError: it is a link that leads out of the folder.
        """
        path = self.root / name
        if os.path.commonpath([self._real, os.path.realpath(path)]) != self._real:
            raise UserError(f"{path} is a link that leads out of {self.root}; put the file itself there, or remove the link")
        return path

    def locate(self, said: Any, folders: Sequence[str], source: str) -> str | None:
        """Return the name of the photo that an annotation file means; None if it is not there.

        Args:
            said: what the file says.
            folders: where to look first; else the only photo of that name counts, wherever it lies.
            source: the file that says so, for the message.

        Raises:
            UserError: it is no name, or one that leads out of the folder; or several photos may be meant.
        """
        if not isinstance(said, str) or not said or not said.isprintable():
            raise UserError(f"{self.root / source}: {show(said)} stands where the file name of a photo belongs; export it again")
        told = PurePosixPath(said.replace("\\", "/"))
        if ".." in told.parts or told.is_absolute() or re.match("[A-Za-z]:", said):
            raise UserError(
                f"{self.root / source}: names the photo {show(said)}, which may lie outside of {self.root}; expected one below it: "
                "put the photo there and correct the name"
            )
        for folder in folders:
            if self.has(name := (PurePosixPath(folder) / told).as_posix()):
                return name
        same = [name for name in self._by_base.get(told.name, []) if f"/{name}".endswith(f"/{told}")]
        same = same or self._by_base.get(told.name, [])
        if len(same) > 1:
            raise UserError(
                f"{self.root / source}: names the photo {show(said)}, and {same[0]} and {same[1]} may be meant; expected one photo "
                "of that name: move the other one away"
            )
        return same[0] if same else None

    def text(self, name: str) -> str:
        """Return the text of an annotation file.

        Raises:
            UserError: no regular file, too large, or not UTF-8.
        """
        path = self.path(name)
        if not path.is_file() or (size := path.stat().st_size) > MAX_TEXT:
            raise UserError(f"{path}: expected a regular file of at most {MAX_TEXT:,} bytes; put such a file there, or split it")
        try:
            return path.read_bytes()[:size].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: byte {error.start} is no UTF-8 text; save it as UTF-8") from None

    def json(self, name: str) -> Any:
        """Return the value of a JSON file.

        Raises:
            UserError: it is damaged.
        """
        try:
            return json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.root / name}: is damaged JSON ({str(error)[:100]}); export it again") from None

    def holds(self, name: str, *words: bytes) -> bool:
        """Return whether the bytes of a file hold every word."""
        path = self.root / name
        if not path.is_file() or path.stat().st_size > MAX_TEXT:
            return False
        data = self.path(name).read_bytes()
        return all(word in data for word in words)


def show(value: Any) -> str:
    """Return a value for a message, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def split_of(name: str) -> str:
    """Return the split that the name of a file or folder tells: "train", "val", "test" or ""."""
    for split, words in (("val", "val|valid|validation"), ("train", "train|training"), ("test", "test|testing")):
        if re.search(rf"(?<![a-z])(?:{words})(?![a-z])", name.lower()):
            return split
    return ""


def paint(shapes: Sequence[tuple[int, Callable[[int, int], np.ndarray]]], source: str, remedy: str) -> Callable[..., np.ndarray]:
    """Return how a mask is painted: shapes in order, later ones over earlier ones.

    Args:
        shapes: value, and what returns its pixels as bool (H, W) for rows and columns, or raises ValueError.
        source: what stands before the message of an error.
        remedy: what to do about it.
    """

    def draw(rows: int, columns: int) -> np.ndarray:
        mask = np.zeros((rows, columns), np.uint16)
        for value, pixels in shapes:
            try:
                mask[pixels(rows, columns)] = value
            except ValueError as error:
                raise UserError(f"{source}: {error}; {remedy}") from None
        return mask

    return draw


def box_pixels(left: float, top: float, right: float, bottom: float, rows: int, columns: int) -> np.ndarray:
    """Return the pixels of a box as bool (H, W), cut at the image.

    Raises:
        ValueError: it has no finite corners.
    """
    corners = np.array([left, top, right, bottom], np.float64)
    if not np.isfinite(corners).all():
        raise ValueError("a box has a corner that is no number")
    x, y, right, bottom = (int(v) for v in np.clip(np.rint(corners), 0, [columns, rows, columns, rows]))
    box = np.zeros((rows, columns), bool)
    box[y:bottom, x:right] = True
    return box
