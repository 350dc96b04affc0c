"""What annotation tools export: CVAT ("CVAT for images 1.1", annotations.xml) and Label Studio (JSON)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from syn4seg.data.photos import MAX_PIXELS, PHOTO_SUFFIXES
from syn4seg.data.regions import fill_outlines
from syn4seg.errors import UserError
from syn4seg.intake.tree import UNKNOWN, Found, SourcePhoto, Tree, box_pixels, paint, split_of

_AGAIN = "export it again, or take this object out"
_BOXES = "boxes, whose pixels stay unlabeled"
Pixels = Callable[[int, int], np.ndarray]


def _cvat_files(tree: Tree) -> list[str]:
    return [n for n in tree.shallow((".xml",), 1) if tree.holds(n, b"<annotations>", b"<version>1.1", b"<image ")]


def detect_cvat(tree: Tree) -> str:
    """Return why the folder is an export of CVAT, or ""."""
    files = _cvat_files(tree)
    return f"{files[0]} of version 1.1 with images" if files else ""


def read_cvat(tree: Tree) -> Found:
    """Read polygons and masks of "CVAT for images 1.1", by z_order; boxes leave their pixels unlabeled.

    Raises:
        UserError: the file is damaged, or a value is.
    """
    if not (files := _cvat_files(tree)):
        raise UserError(f"{tree.root}: expected annotations.xml of CVAT for images 1.1; export it so")
    found, numbers = Found([], []), {}
    for source in files:
        text, path = tree.text(source), tree.root / source
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise UserError(f"{path}: declares entities, which CVAT never does; expected its own export: export it again")
        try:
            top = ElementTree.fromstring(text)
        except (ElementTree.ParseError, RecursionError) as error:
            raise UserError(f"{path}: is damaged XML ({error}); export it again") from None
        for label in top.iterfind(".//label/name"):
            numbers.setdefault((label.text or "").strip(), len(numbers) + 1)
        for image in top.iterfind("image"):
            _read_cvat_image(tree, source, image, numbers, found)
    found.names = list(numbers)
    return found


def _read_cvat_image(tree: Tree, source: str, image: ElementTree.Element, numbers: dict[str, int], found: Found) -> None:
    path = tree.root / source
    folders = [f"images/{image.get('subset', '')}", "images", ".", str(PurePosixPath(source).parent)]
    if (name := tree.locate(image.get("name"), folders, source)) is None:
        found.odd["photos named in XML that are not there, left out"] += 1
        return
    shapes: list[tuple[int, int, Pixels]] = []
    try:
        size = int(image.get("width", "")), int(image.get("height", ""))
        for item in image:
            if item.tag in ("tag", "points", "polyline", "ellipse", "cuboid", "skeleton"):
                found.odd[f"objects of kind {item.tag}, not drawn"] += 1
            elif item.tag in ("polygon", "mask", "box"):
                value = numbers.setdefault(item.attrib["label"].strip(), len(numbers) + 1)
                if item.tag == "box":
                    found.odd[_BOXES] += 1
                    value = UNKNOWN
                shapes.append((int(item.get("z_order", 0)), value, _cvat_pixels(item)))
    except (ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{path}: an object of {name} is malformed ({type(error).__name__}: {str(error)[:80]}); {_AGAIN}") from None
    ordered = [(value, pixels) for _, value, pixels in sorted(shapes, key=lambda shape: shape[0])]
    draw = paint(ordered, f"{path}: an object of {name}", _AGAIN)
    found.photos.append(SourcePhoto(name, split_of(image.get("subset", "")), draw, size))


def _cvat_pixels(item: ElementTree.Element) -> Pixels:
    if item.tag == "polygon":
        corners = [float(part) for pair in item.attrib["points"].split(";") for part in pair.split(",")]
        return partial(fill_outlines, [corners])
    if item.tag == "box":
        return partial(box_pixels, *(float(item.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr")))
    left, top, width, height = (int(item.attrib[key]) for key in ("left", "top", "width", "height"))
    counts = [int(count) for count in item.attrib["rle"].split(",")]
    if min(counts) < 0 or min(left, top, width, height) < 0 or sum(counts) != width * height or width * height > MAX_PIXELS:
        raise ValueError("the run lengths of a mask do not fit its box")
    return partial(_cvat_mask, left, top, width, height, counts)


def _cvat_mask(left: int, top: int, width: int, height: int, counts: list[int], rows: int, columns: int) -> np.ndarray:
    """Decode CVAT's run lengths, row by row inside a box, beginning with pixels that are not of the mask."""
    if left + width > columns or top + height > rows:
        raise ValueError(f"the box of a mask does not fit {columns}x{rows} pixels")
    mask = np.zeros((rows, columns), bool)
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    mask[top : top + height, left : left + width] = runs.reshape(height, width)
    return mask


def _studio_files(tree: Tree) -> list[str]:
    files = [n for n in tree.shallow((".json",), 1) if tree.holds(n, b'"result"', b'"annotations"', b'"data"')]
    return [n for n in files if tree.text(n).lstrip().startswith("[")]


def detect_label_studio(tree: Tree) -> str:
    """Return why the folder is an export of Label Studio, or ""."""
    files = _studio_files(tree)
    return f"{files[0]}, a list of tasks with annotations and results" if files else ""


def read_label_studio(tree: Tree) -> Found:
    """Read polygons and brush strokes of Label Studio's JSON, each task's first annotation that was not cancelled.

    Raises:
        UserError: the file is damaged, or a value is.
    """
    if not (files := _studio_files(tree)):
        raise UserError(f"{tree.root}: expected a JSON export of Label Studio (a list of tasks); export it so")
    found, numbers = Found([], []), {}
    for source in files:
        for number, task in enumerate(tree.json(source)):
            try:
                _read_task(tree, source, task, numbers, found)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
                raise UserError(
                    f"{tree.root / source}: task {number} is malformed ({type(error).__name__}: {str(error)[:80]}); expected "
                    "a JSON export of Label Studio: export it again"
                ) from None
    found.names = [name for name, _ in sorted(numbers.items(), key=lambda pair: pair[1])]
    return found


def _read_task(tree: Tree, source: str, task: dict[str, Any], numbers: dict[str, int], found: Found) -> None:
    said = next((v for v in task["data"].values() if isinstance(v, str) and _picture(v).lower().endswith(PHOTO_SUFFIXES)), None)
    done = [a for a in task["annotations"] if not a.get("was_cancelled")]
    if said is None or not done:
        found.odd["tasks without a photo or an annotation, left out"] += 1
        return
    told = _picture(said)
    name = tree.locate(told, ["images", "."], source) or tree.locate(re.sub(r"^[0-9a-f]{8}-", "", told), ["images", "."], source)
    if name is None:
        found.odd["photos named in JSON that are not there, left out"] += 1
        return
    if len(done) > 1:
        found.odd["tasks with several annotations, of which the first counts"] += 1
    shapes, size = [], None
    for item in done[0]["result"]:
        kind = item.get("type")
        if kind not in ("polygonlabels", "brushlabels", "rectanglelabels"):
            found.odd[f"results of kind {str(kind)[:40]}, not drawn"] += 1
            continue
        if item.get("image_rotation"):
            raise ValueError(f"{name} was turned by {item['image_rotation']} degrees while it was annotated")
        size = int(item["original_width"]), int(item["original_height"])
        label = item["value"][kind][0]
        value = numbers.setdefault(str(label).strip(), len(numbers) + 1)
        if kind == "rectanglelabels":
            found.odd[_BOXES] += 1
            value = UNKNOWN
        shapes.append((value, _studio_pixels(kind, item["value"])))
    draw = paint(shapes, f"{tree.root / source}: a result of {name}", _AGAIN)
    found.photos.append(SourcePhoto(name, split_of(PurePosixPath(name).parent.as_posix()), draw, size))


def _picture(said: str) -> str:
    """Return the file name that a task's URL or path means."""
    url = urlsplit(said)
    local = parse_qs(url.query).get("d")
    path = local[0] if local else unquote(url.path)
    return path if local or ".." in path else path.rpartition("/")[2]


def _studio_pixels(kind: str, value: dict[str, Any]) -> Pixels:
    if kind == "polygonlabels":
        corners = np.array(value["points"], np.float64).reshape(-1, 2) / 100
        return lambda rows, columns: fill_outlines([corners * [columns, rows]], rows, columns)
    if kind == "rectanglelabels":
        x, y, w, h = (float(value[key]) / 100 for key in ("x", "y", "width", "height"))
        return lambda rows, columns: box_pixels(x * columns, y * rows, (x + w) * columns, (y + h) * rows, rows, columns)
    data = np.array(value["rle"])
    if data.ndim != 1 or data.dtype.kind not in "iu" or data.min(initial=0) < 0 or data.max(initial=0) > 255:
        raise ValueError("the rle of a brush is no list of bytes")
    return partial(_brush_pixels, data.astype(np.uint8))


def _brush_pixels(data: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Decode Label Studio's own run lengths (label-studio-converter, brush.py): RGBA values as a stream of bits; alpha counts."""
    bits, place = np.unpackbits(data), 0

    def number(width: int) -> int:
        nonlocal place
        if place + width > len(bits):
            raise ValueError("the rle of a brush ends too early")
        value = int("".join(map(str, bits[place : place + width])), 2) if width else 0
        place += width
        return value

    total, word = number(32), number(5) + 1
    widths = [number(4) + 1 for _ in range(4)]
    if total != rows * columns * 4:
        raise ValueError(f"the rle of a brush has {total} values; expected {rows * columns * 4} of {columns}x{rows} pixels")
    values, done = np.zeros(total, np.uint32), 0
    while done < total:
        repeated = number(1)
        end = done + 1 + number(widths[number(2)])
        if end > total:
            raise ValueError("the rle of a brush has too many values")
        if repeated:
            values[done:end] = number(word)
        else:
            for i in range(done, end):
                values[i] = number(word)
        done = end
    return values.reshape(rows, columns, 4)[..., 3] > 0
