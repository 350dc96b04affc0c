"""Formats with outlines and run lengths instead of mask pictures: COCO instances, and YOLO's segmentation labels."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from syn4seg.config.yaml_text import parse_yaml
from syn4seg.data.regions import decode_runs, fill_outlines
from syn4seg.errors import UserError
from syn4seg.intake.tree import UNKNOWN, Found, SourcePhoto, Tree, paint, show, split_of

_AGAIN = "export it again, or take this object out"


def _coco_files(tree: Tree) -> list[str]:
    words = b'"images"', b'"annotations"', b'"categories"'
    names = [n for n in tree.shallow((".json",)) if tree.holds(n, *words) and not tree.holds(n, b'"segments_info"')]
    return [n for n in names if PurePosixPath(n).name.startswith("instances")] or names


def detect_coco(tree: Tree) -> str:
    """Return why the folder holds COCO's instances, or ""."""
    files = _coco_files(tree)
    return f"{files[0]} with images, annotations and categories" if files else ""


def read_coco(tree: Tree) -> Found:
    """Read every file of COCO instances: objects in the order of the file, later ones over earlier ones; crowds are unlabeled.

    Raises:
        UserError: a file is damaged, an id stands there twice or not at all, or a name leads out of the folder.
    """
    if not (files := _coco_files(tree)):
        raise UserError(f"{tree.root}: no JSON file with images, annotations and categories; put COCO's instances there")
    numbers: dict[str, int] = {}
    found = Found([], [])
    for name in files:
        _read_coco_file(tree, name, numbers, found)
    found.names = list(numbers)
    return found


def _read_coco_file(tree: Tree, source: str, numbers: dict[str, int], found: Found) -> None:
    content, path = tree.json(source), tree.root / source
    parts = [content.get(key) if isinstance(content, dict) else None for key in ("categories", "images", "annotations")]
    if not all(isinstance(part, list) and all(isinstance(item, dict) for item in part) for part in parts):
        raise UserError(f"{path}: expected lists of objects under images, annotations and categories; export it again")
    categories, images, annotations = (_by_id(part, path) for part in parts)  # pyright: ignore[reportArgumentType]
    values = {}
    for number, category in categories.items():
        if not isinstance(category.get("name"), str):
            raise UserError(f"{path}: category {show(number)} has no name; add it")
        values[number] = numbers.setdefault(category["name"].strip(), len(numbers) + 1)
    shapes: dict[Any, list] = {number: [] for number in images}
    for number, item in annotations.items():
        if _key(item.get("image_id")) not in images or _key(item.get("category_id")) not in categories:
            key = "image_id" if _key(item.get("image_id")) not in images else "category_id"
            raise UserError(f"{path}: annotation {show(number)} has {key} {show(item.get(key))}, which is not there; {_AGAIN}")
        region = item.get("segmentation")
        if region:
            value = UNKNOWN if item.get("iscrowd") == 1 else values[item["category_id"]]
            shapes[item["image_id"]].append((value, partial(_coco_pixels, region)))
        else:
            found.odd["objects without an outline, not drawn"] += 1
    stem = PurePosixPath(source).stem.removeprefix("instances_")
    here = str(PurePosixPath(source).parent)
    folders = [here, stem, f"images/{stem}", "images", "JPEGImages", f"{here}/images", "."]
    missing = ""
    for number, image in images.items():
        if (name := tree.locate(image.get("file_name"), folders, source)) is None:
            missing = missing or show(image.get("file_name"))
            found.odd["photos named in JSON that are not there, left out"] += 1
            continue
        size = image.get("width"), image.get("height")
        if not all(type(side) is int and 0 < side < 100_000 for side in size):
            raise UserError(f"{path}: image {show(number)} has width and height {show(size)}; expected pixels: correct them")
        draw = paint(shapes[number], f"{path}: an object of {name}", _AGAIN)
        found.photos.append(SourcePhoto(name, split_of(stem) or split_of(source), draw, size))  # pyright: ignore[reportArgumentType]
    if images and missing and not any(photo for photo in found.photos):
        raise UserError(f"{path}: no photo that it names is in {tree.root}, such as {missing}; put the photos there")


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else None


def _by_id(items: list[dict[str, Any]], path: object) -> dict[Any, dict[str, Any]]:
    table: dict[Any, dict[str, Any]] = {}
    for item in items:
        if (number := _key(item.get("id"))) is None or number in table:
            what = "has no id" if number is None else f"has the id {show(number)} of another one"
            raise UserError(f"{path}: the entry {show(item)} {what}; expected an id of its own: export it again")
        table[number] = item
    return table


def _coco_pixels(region: Any, rows: int, columns: int) -> np.ndarray:
    if isinstance(region, dict):
        return decode_runs(region, rows, columns)
    if not isinstance(region, list):
        raise ValueError(f"{show(region)} is neither outlines nor run lengths")
    return fill_outlines(region, rows, columns)


def _yolo_table(tree: Tree) -> str:
    return next((n for n in tree.shallow((".yaml", ".yml"), 1) if tree.holds(n, b"names") and tree.holds(n, b"train")), "")


def detect_yolo(tree: Tree) -> str:
    """Return why the folder is a YOLO data set, or ""."""
    table = _yolo_table(tree)
    labels = any("labels" in name.split("/") for name in tree.below("", (".txt",)))
    return f"{table} with names, and labels/ with .txt files" if table and labels else ""


def read_yolo(tree: Tree) -> Found:
    """Read Ultralytics' segmentation labels: per line a class number and an outline in shares of the upright photo's size.

    Raises:
        UserError: the table or a line is malformed.
    """
    if not (table := _yolo_table(tree)):
        raise UserError(f"{tree.root}: expected data.yaml with names, train and val; add it")
    path = tree.root / table
    try:
        content = parse_yaml(tree.text(table))
    except ValueError as error:
        raise UserError(f"{path} is no YAML ({str(error)[:150]}); correct it") from None
    names = content.get("names") if isinstance(content, dict) else None
    names: Any = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        raise UserError(f"{path}: names is {show(names)}; expected class names by number, from 0 without a gap: correct it")
    ordered = [str(names.get(k, names.get(str(k)))) for k in range(len(names))]
    found = Found(ordered, [])
    for split in ("train", "val", "test"):
        for name in _yolo_photos(tree, table, content, split):
            folder, _, rest = f"/{name}".rpartition("/images/")
            label = f"{folder}/labels/{rest}"[1:].rpartition(".")[0] + ".txt"
            if tree.has(label):
                shapes = _yolo_shapes(tree, label, len(ordered))
            else:
                shapes = []
                found.odd["photos without a label file, all background"] += 1
            draw = paint(shapes, str(tree.root / label), "correct the line")
            found.photos.append(SourcePhoto(name, split, draw))
    return found


def _yolo_photos(tree: Tree, table: str, content: dict[str, Any], split: str) -> list[str]:
    """Return the photos of a split: of folders, or of lists of files."""
    said = content.get(split)
    names: list[str] = []
    for place in said if isinstance(said, list) else [said] if said else []:
        start = str(PurePosixPath(table).parent)
        parts = [p for p in PurePosixPath(str(place).replace("\\", "/")).parts if p not in ("..", "/", ".")]
        known = [f for k in range(len(parts)) if tree.below(f := "/".join((*([] if start == "." else [start]), *parts[k:])))]
        known += [f for k in range(len(parts)) if tree.below(f := "/".join(parts[k:]))]
        if known:
            names += tree.below(known[0])
        elif tree.has("/".join(parts)):
            source = "/".join(parts)
            lines = [line.strip().removeprefix("./") for line in tree.text(source).splitlines() if line.strip()]
            names += [name for line in lines if (name := tree.locate(line, ["."], source))]
        elif split != "test":
            raise UserError(f"{tree.root / table}: {split} is {show(place)}, and no photo lies there; correct the path")
    return sorted(set(names))


def _yolo_shapes(tree: Tree, label: str, classes: int) -> list[tuple[int, Callable[[int, int], np.ndarray]]]:
    shapes = []
    for number, line in enumerate(tree.text(label).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            corners = np.array([float(word) for word in words[1:]]) if re.fullmatch(r"\d{1,6}(\.0*)?", words[0]) else None
        except ValueError:
            corners = None
        if corners is None or len(corners) < 6 or len(corners) % 2 or not ((corners >= -0.01) & (corners <= 1.01)).all():
            boxes = " (a box alone is no outline)" if len(words) == 5 else ""
            raise UserError(
                f"{tree.root / label}: line {number} is {show(line)}{boxes}; expected a class number and at least three corners as "
                "shares of width and height: export with outlines, or correct the line"
            )
        if (value := int(float(words[0]))) >= classes:
            raise UserError(f"{tree.root / label}: line {number} has the class {value}; expected 0..{classes - 1}: correct names")
        shapes.append((value + 1, partial(_share_pixels, corners.clip(0, 1))))
    return shapes


def _share_pixels(corners: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return fill_outlines([corners.reshape(-1, 2) * [columns, rows]], rows, columns)
