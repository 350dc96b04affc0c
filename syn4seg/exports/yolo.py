"""YOLO segmentation: a polygon per connected component, as text files beside the images, and data.yaml.

A polygon runs through the centres of its outermost pixels, so that filling it, border included, gives the component again. A hole
is joined to the contour above it by a vertical line there and back, which lies in the component; filling by parity leaves it
open. A class is its label value minus one, so the numbers begin at 0. Unlabeled pixels cannot be told from background here.
"""

from __future__ import annotations

import itertools
from operator import itemgetter
from typing import TYPE_CHECKING

import cv2
import numpy as np
import yaml

from syn4seg.exports.choice import class_split
from syn4seg.exports.info import ExportInfo, Parts
from syn4seg.labeling.components import find_components
from syn4seg.schema import BACKGROUND
from syn4seg.store.files import map_threads
from syn4seg.store.images import encode_image

if TYPE_CHECKING:
    from syn4seg.exports.samples import ExportSample
    from syn4seg.exports.target import Target

POINTS = 3
"""Points of the shortest polygon that readers take; a smaller component repeats its last one."""


def yolo(parts: Parts, target: Target, info: ExportInfo) -> None:
    """Write images/SPLIT/ID.png, labels/SPLIT/ID.txt (a line per component: class, then x and y in 0..1) and data.yaml."""
    train: list[str] = []
    val: list[str] = []

    def one(item: ExportSample) -> None:
        place = f"{item.row['split']}/{item.sample_id}"
        target.write(f"images/{place}.png", encode_image(item.image))
        target.write(f"labels/{place}.txt", "".join(f"{line}\n" for line in polygon_lines(item.label)).encode())

    for split, some in itertools.groupby(parts, key=itemgetter(0)):
        for _, items in some:
            row, place = items[0].row, f"images/{split}"
            if row["verdict"] != "rejected" and place not in (*train, *val):
                is_val = split in ("val", f"{class_split(row['class_id'], row['class'])}_val")
                (val if is_val else train).append(place)
            map_threads(one, items)
    if not val:
        info.note("data.yaml: val is train, as readers need both; use --split 0.9 for a val part of its own")
    names = {value - 1: name for value, name in enumerate(info.classes) if value != BACKGROUND}
    table = {"train": train or val, "val": val or train, "names": names}  # without `path`: the folder of data.yaml
    target.write("data.yaml", yaml.safe_dump(table, sort_keys=False, allow_unicode=True).encode())


def polygon_lines(label: np.ndarray) -> list[str]:
    """Return a line per foreground component of a label uint8 (H, W): class number, then x and y of each point in 0..1."""
    regions, lines, (height, width) = find_components(label), [], label.shape
    for i, (value, box) in enumerate(zip(regions.class_index, regions.box.astype(int), strict=True)):
        left, top, right, bottom = box
        points = outline((regions.map[top:bottom, left:right] == i + 1).astype(np.uint8)) + [left, top]
        if len(points) < POINTS:
            points = np.concatenate([points, np.repeat(points[-1:], POINTS - len(points), 0)])
        shares = (points + 0.5) / [width, height]
        lines.append(" ".join([str(int(value) - BACKGROUND - 1), *(f"{share:.7f}" for share in shares.ravel())]))
    return lines


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the one closed polygon int (N, 2), x and y of pixels, around an 8-connected mask uint8 (H, W) and into its holes."""
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    loops = [[(int(x), int(y)) for x, y in contour.reshape(-1, 2)] for contour in contours]
    inside = [parent >= 0 for parent in tree[0][:, 3]]
    outer = loops[inside.index(False)]
    holes = sorted((loop for loop, is_hole in zip(loops, inside, strict=True) if is_hole), key=lambda loop: min(y for _, y in loop))
    branches: dict[tuple[int, int], list[list[tuple[int, int]]]] = {}
    for loop in holes:
        start = min(range(len(loop)), key=lambda k: loop[k][1])
        x, top = loop[start]
        while top and mask[top - 1, x]:
            top -= 1
        there_and_back = [*loop[start:], *loop[: start + 1], (x, top)]
        branches.setdefault((x, top), []).append(there_and_back if top < loop[start][1] else there_and_back[1:-1])
    points, walks = [], [iter(outer)]
    while walks:
        point = next(walks[-1], None)
        if point is None:
            walks.pop()
            continue
        points.append(point)
        walks += map(iter, branches.pop(point, ()))  # the line into a hole leaves where the walk first comes by
    return _without_straight(np.array(points))


def _without_straight(points: np.ndarray) -> np.ndarray:
    """Leave out the points of a closed polygon in whose place it goes straight on."""
    step = np.sign(np.roll(points, -1, 0) - points)
    turns = (step != np.roll(step, 1, 0)).any(1)
    return points[turns] if turns.any() else points[:1]
