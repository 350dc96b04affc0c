"""The decoder of everybody else's pictures: photos of data sets and imports as RGB, masks as indices, never as colours.

Photos: JPEG, PNG, TIFF, WebP and BMP. 16-bit grey is scaled to 8 bits by its whole range (value / 257); 32-bit and floating
point pixels are refused, since nobody says what their range is. EXIF orientation: see `decode_photo`.
"""

from __future__ import annotations

import io
import stat
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from syn4seg.errors import UserError
from syn4seg.schema import BACKGROUND, UNLABELED

MAX_PIXELS = 64_000_000
MAX_FILE = 2**30
"""Bytes of the largest picture file that is opened."""
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
"""Names of photos end in one of these, in any case."""
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
"""Names of masks: formats without loss."""
Exif = Literal["auto", "apply", "ignore", "stored_first"]
LISTED = "replace the file or take its id off the list"

_PHOTO_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
_MASK_FORMATS = ("PNG", "TIFF", "BMP")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error, Image.DecompressionBombError)
_LARGE = 16_000_000
_ONE_LARGE = threading.Lock()  # several threads decode, but large pictures one at a time: memory stays bounded


def list_pictures(folder: Path, suffixes: tuple[str, ...] = PHOTO_SUFFIXES) -> dict[str, list[Path]]:
    """Return the picture files below a folder by id: the path below it without the suffix, parts joined by "/".

    Hidden files and folders (`._x.png`, `.thumbnails/`) and files with other suffixes (`Thumbs.db`) are no pictures.
    """
    pictures: dict[str, list[Path]] = {}
    for path in sorted(_visible_files(folder)):
        if path.suffix.lower() in suffixes:
            pictures.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return pictures


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if not path.name.startswith("."):
            if not path.is_dir():
                yield path
            elif not path.is_symlink():  # it may lead in a circle
                yield from _visible_files(path)


def decode_image(path: Path, remedy: str = "replace the file or take it out of the folder") -> np.ndarray:
    """Return the RGB image uint8 (H, W, 3) of any photo, upright by its EXIF orientation.

    Raises:
        UserError: missing, unreadable, larger than `MAX_PIXELS`, or with pixels whose range is unknown.
    """
    with open_image(path, remedy) as stored:
        return _to_rgb(_upright(stored, path, remedy), stored.format, path, remedy)


def decode_bytes(data: bytes, what: str, remedy: str = "replace the file or leave it out") -> np.ndarray:
    """Return the RGB image uint8 (H, W, 3) of the bytes of a photo, as `decode_image` does of a file; `what` names it in messages.

    Raises:
        UserError: unreadable, larger than `MAX_PIXELS`, or with pixels whose range is unknown.
    """
    place = Path(what)
    with _open(io.BytesIO(data), place, remedy, _PHOTO_FORMATS) as stored:
        return _to_rgb(_upright(stored, place, remedy), stored.format, place, remedy)


def upright_pixels(image: Image.Image, what: str) -> np.ndarray:
    """Return the RGB image uint8 (H, W, 3) of an opened PIL image, upright by its EXIF orientation.

    Raises:
        UserError: it cannot be decoded, or the range of its pixels is unknown.
    """
    place, remedy = Path(what), "give another image"
    return _to_rgb(_upright(image, place, remedy), image.format, place, remedy)


def decode_photo(path: Path, size: tuple[int, int], remedy: str = LISTED, exif: Exif = "auto") -> np.ndarray:
    """Return the RGB image uint8 (H, W, 3) of a photo (grey and CMYK included) in the orientation of its mask.

    "auto": the photo is turned upright by its EXIF orientation, as every viewer and annotation tool shows it; where only the
    photo as stored is as large as its mask, it stays as stored. `check_orientations` refuses what this rule cannot decide.

    Args:
        size: columns and rows of the mask.
        remedy: what to do about a file that cannot be decoded.
        exif: "apply" turns every photo, "ignore" none; "stored_first" those that fit only when turned (official data sets, whose
            masks were drawn on photos as stored).

    Raises:
        UserError: missing, unreadable, larger than `MAX_PIXELS`, or of another size than the mask.
    """
    with open_image(path, remedy) as stored:
        turned = upright_size(stored)
        apply = exif == "apply" or (exif == "auto" and turned == size) or (exif != "ignore" and stored.size != size)
        if (turned if apply else stored.size) != size:
            told = f" as stored, {turned[0]}x{turned[1]} turned by EXIF," if _orientation(stored) > 1 else ""
            raise UserError(
                f"{path} is {stored.size[0]}x{stored.size[1]} pixels{told} but its mask {path.stem} is {size[0]}x{size[1]}; they "
                "must have one size" + (f" (data.exif={exif})" if told and exif != "stored_first" else "")
            )
        return _to_rgb(_upright(stored, path, remedy) if apply else stored, stored.format, path, remedy)


def orientation_evidence(path: Path, size: tuple[int, int]) -> str:
    """Return what a photo says of the rule for EXIF: "" nothing, "both" fit its mask, or only "turned" or "stored" does.

    Args:
        size: columns and rows of the mask.
    """
    with open_image(path) as stored:
        if _orientation(stored) <= 1:
            return ""
        fits = {name for name, shape in (("turned", upright_size(stored)), ("stored", stored.size)) if shape == size}
    return "both" if len(fits) == 2 else next(iter(fits), "")


def check_orientations(evidence: Iterable[str]) -> None:
    """Check that the rule "auto" of `decode_photo` is right for a whole data set.

    Raises:
        UserError: some photos fit their masks both ways, while the others say that EXIF was not applied when masks were drawn.
    """
    found = list(evidence)
    if "both" in found and "stored" in found:
        raise UserError(
            f"data.exif=auto: {found.count('stored')} photos fit their masks only as stored, not turned by their EXIF orientation, "
            f"and {found.count('both')} fit both ways, so the sizes do not say whether those masks were drawn on turned photos; "
            "set data.exif=ignore (masks of photos as stored) or data.exif=apply (masks of upright photos)"
        )


def decode_mask(path: Path, classes: int, remedy: str = LISTED) -> np.ndarray:
    """Return dataset ids uint8 (H, W) of an index PNG: palette entries or grey values as stored, never colours.

    Args:
        classes: the largest id; 255 is allowed besides.
        remedy: what to do about a file that cannot be decoded.

    Raises:
        UserError: missing, unreadable, of another mode, or with a value that is no class.
    """
    with open_image(path, remedy, _MASK_FORMATS) as stored:
        if stored.mode in _SIXTEEN_BITS or (stored.mode == "I" and stored.format == "PNG"):
            mask = _pixels(stored, path, remedy)
            if mask.max(initial=0) > UNLABELED:
                raise UserError(_no_class(path, int(mask.max()), classes))
            mask = mask.astype(np.uint8)
        elif stored.mode in ("L", "P"):
            mask = _pixels(stored, path, remedy)
        else:
            raise UserError(f"{path} has mode {stored.mode}; expected an index PNG (mode P or L) whose pixel values are class ids")
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    wrong = [int(v) for v in values if v > classes and v != UNLABELED]
    if wrong:
        raise UserError(_no_class(path, wrong[0], classes))
    return mask


def _no_class(path: Path, value: int, classes: int) -> str:
    return (
        f"{path} has the value {value}; expected {BACKGROUND} (background), 1..{classes} (the classes in order) "
        f"or {UNLABELED} (unlabeled): renumber the mask or extend the class table"
    )


@contextmanager
def open_image(path: Path, remedy: str = LISTED, formats: tuple[str, ...] = _PHOTO_FORMATS) -> Iterator[Image.Image]:
    """Open a picture and read its header; decode nothing yet.

    Raises:
        UserError: missing, no regular file, not a picture of these formats, of several frames, or larger than `MAX_PIXELS`.
    """
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing; {remedy}") from error
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_FILE:
        what = f"has {facts.st_size:,} bytes" if stat.S_ISREG(facts.st_mode) else "is no regular file"
        raise UserError(f"{path} {what}; expected a picture file of at most {MAX_FILE:,} bytes: {remedy}")
    with _open(path, path, remedy, formats) as image:
        yield image


@contextmanager
def _open(source: Path | io.BytesIO, path: Path, remedy: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Open a picture of a file or of bytes, see `open_image`; `path` names it in messages."""
    try:
        image = Image.open(source, formats=formats)
    except _UNREADABLE as error:
        reason = _line(error).replace(f" {source!r}", "")  # an address in memory would be another one every time
        raise UserError(f"{path} is not a readable image ({reason}); expected {', '.join(formats)}: {remedy}") from error
    with image:
        columns, rows = image.size
        if columns * rows > MAX_PIXELS:
            raise UserError(f"{path} has {columns * rows} pixels; expected at most {MAX_PIXELS}: shrink image and mask")
        try:
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        except _UNREADABLE as error:
            raise UserError(f"{path} is not a readable image ({_line(error)}): {remedy}") from error
        if frames > 1:
            raise UserError(f"{path} has {frames} frames or pages; expected one picture: {remedy}")
        if columns * rows > _LARGE:
            with _ONE_LARGE:
                yield image
        else:
            yield image


def _orientation(stored: Image.Image) -> int:
    try:
        value = stored.getexif().get(ExifTags.Base.Orientation, 1)
    except _UNREADABLE:  # damaged EXIF says nothing
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright_size(stored: Image.Image) -> tuple[int, int]:
    """Return columns and rows of an opened picture, turned by its EXIF orientation."""
    columns, rows = stored.size
    return (rows, columns) if _orientation(stored) >= 5 else (columns, rows)


def _upright(stored: Image.Image, path: Path, remedy: str) -> Image.Image:
    """Return a photo turned by its EXIF orientation; the rest of damaged EXIF does not matter."""
    if _orientation(stored) == 1:
        return stored
    try:
        return ImageOps.exif_transpose(stored)
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be decoded ({_line(error)}); {remedy}") from error


def _to_rgb(image: Image.Image, stored_as: str | None, path: Path, remedy: str) -> np.ndarray:
    """Return the RGB image uint8 (H, W, 3).

    Args:
        stored_as: the format of the file; a 16-bit PNG may be opened as 32 bits.
    """
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and stored_as == "PNG"):
        grey = _pixels(image, path, remedy)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise UserError(f"{path} has grey values beyond 16 bits, whose range is unknown; convert it to 8 bits per channel")
        return np.repeat(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise UserError(
            f"{path} has 32-bit {'floating point' if image.mode == 'F' else 'integer'} pixels, whose range is unknown; convert it "
            "to 8 bits per channel"
        )
    try:
        return np.array(image.convert("RGB"))
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be decoded ({_line(error)}); {remedy}") from error


def _pixels(image: Image.Image, path: Path, remedy: str) -> np.ndarray:
    try:
        return np.array(image)
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be decoded ({_line(error)}); {remedy}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
