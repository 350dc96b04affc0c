"""Random outlines for training the embedded SAM: generic shapes, with every near-copy of an embedded class refused.

A shape is composed on a small raster (blobs, polygons, bars, rings; united, cut and rounded), and its contours are read
back. It is kept only if no silhouette of the 16 classes, at any size, turn or usual stretch, overlaps it too well.
"""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np

from syn4seg.data import embedded

CANVAS = 128  # side of the raster on which a shape is composed
LIKENESS = 0.80  # a shape this alike (IoU, aligned) to a silhouette of an embedded class is refused
_THUMB = 28  # side of the thumbnails that are compared


def _fill(points: np.ndarray) -> np.ndarray:
    """Return raster uint8 (CANVAS, CANVAS), 0 or 1, of a polygon (V, 2) in [-1, 1]."""
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.fillPoly(canvas, [np.round((points + 1) * (CANVAS / 2) * 16).astype(np.int32)], 1, shift=4)
    return canvas


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _blob(rng: np.random.Generator, reach: float = 0.9) -> np.ndarray:
    """Return a closed curve whose radius is a short random Fourier series."""
    angle = np.linspace(0, 2 * math.pi, 90, endpoint=False)
    order = np.arange(1, int(rng.integers(3, 8)))
    size = rng.normal(0, 0.45, len(order)) / order ** rng.uniform(0.3, 1.0)
    radius = np.clip(1 + (size * np.cos(np.outer(angle, order) + rng.uniform(0, 7, len(order)))).sum(1), 0.2, None)
    return _fill(_polar(radius / radius.max() * reach, angle))


def _polygon(rng: np.random.Generator) -> np.ndarray:
    corners = int(rng.integers(4, 12))
    angle = np.sort(rng.uniform(0, 2 * math.pi, corners))
    return _fill(_polar(rng.uniform(0.25, 0.95, corners), angle))


def _bar(rng: np.random.Generator, length: float, width: float, angle: float) -> np.ndarray:
    half = np.array([(-length, -width), (length, -width), (length, width), (-length, width)])
    half[:2] *= rng.uniform(0.5, 1.2)  # most bars taper
    return _fill(np.clip(_turned(half, angle), -0.98, 0.98))


def _bars(rng: np.random.Generator) -> np.ndarray:
    """Return one bar, or two or three at right angles that meet anywhere: L, T, U, F, Z and their kin."""
    shape = _bar(rng, 0.85, float(rng.uniform(0.12, 0.4)), 0.0)
    for _ in range(int(rng.integers(0, 3))):
        side = _bar(rng, float(rng.uniform(0.25, 0.45)), float(rng.uniform(0.1, 0.25)), math.pi / 2)
        across, down = rng.uniform(-0.75, 0.75), rng.choice((-1, 1)) * rng.uniform(0.2, 0.4)
        move = np.array([[1, 0, across * CANVAS / 2], [0, 1, down * CANVAS / 2]], np.float32)
        shape = np.maximum(shape, cv2.warpAffine(side, move, (CANVAS, CANVAS), flags=cv2.INTER_NEAREST))
    return shape


def _ring(rng: np.random.Generator) -> np.ndarray:
    """Return a blob with another blob cut out, off its centre; half of them are cut open."""
    outer, inner = _blob(rng, 0.95), _blob(rng, float(rng.uniform(0.4, 0.7)))
    move = np.array([[1, 0, rng.normal(0, 7)], [0, 1, rng.normal(0, 7)]], np.float32)
    shape = outer * (1 - cv2.warpAffine(inner, move, (CANVAS, CANVAS), flags=cv2.INTER_NEAREST))
    if rng.random() < 0.5:
        spread, angle = rng.uniform(0.3, 1.6), rng.uniform(0, 7)
        wedge = np.array([(0, 0), *_polar(np.full(3, 3.0), angle + spread * np.array([-1, 0, 1]))])
        shape *= 1 - _fill(wedge)
    return shape


def _compose(rng: np.random.Generator) -> np.ndarray:
    makers, shares = (_blob, _polygon, _bars, _ring), (0.3, 0.3, 0.2, 0.2)
    shape = makers[int(rng.choice(4, p=shares))](rng)
    if rng.random() < 0.35:  # united with, or cut by, another one that is smaller and elsewhere
        other = makers[int(rng.choice(4, p=shares))](rng)
        zoom = rng.uniform(0.35, 0.75)
        centre = CANVAS / 2 * (1 - zoom) + rng.uniform(-0.3, 0.3, 2) * CANVAS
        move = np.array([[zoom, 0, centre[0]], [0, zoom, centre[1]]], np.float32)
        other = cv2.warpAffine(other, move, (CANVAS, CANVAS), flags=cv2.INTER_NEAREST)
        shape = np.maximum(shape, other) if rng.random() < 0.7 else shape * (1 - other)
    if rng.random() < 0.5:  # rounded corners
        shape = (cv2.GaussianBlur(shape * 255, (0, 0), rng.uniform(1, 6)) > 127).astype(np.uint8)
    return shape


def _contours(shape: np.ndarray, angle: float) -> list[np.ndarray] | None:
    """Return contours of the largest piece with its large holes, turned and brought into the unit disc; None if too thin."""
    _, piece, stats, _ = cv2.connectedComponentsWithStats(shape, connectivity=4)
    if len(stats) < 2:
        return None
    shape = (piece == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    contours = cv2.findContours(np.pad(shape, 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
    contours = [cv2.approxPolyDP(c, 0.7, True)[:, 0].astype(np.float64) for c in contours if cv2.contourArea(c) > 120]
    if not contours:
        return None
    (x, y), radius = cv2.minEnclosingCircle(np.concatenate(contours).astype(np.float32))
    if shape.sum() < 0.2 * math.pi * radius**2:
        return None
    return [_turned((c - (x, y)) / (radius / 0.97), angle) for c in contours]


def _thumbnail(contours: list[np.ndarray]) -> np.ndarray:
    """Return the filled shape, float32 (_THUMB**2,) of 0 and 1, with its centroid in the middle and a fixed area."""
    fine = np.zeros((96, 96), np.uint8)
    cv2.fillPoly(fine, [np.round((c + 1) * 48 * 16).astype(np.int32) for c in contours], 1, shift=4)
    m = cv2.moments(fine, binaryImage=True)
    zoom = 0.5 * _THUMB / math.sqrt(m["m00"])
    move = np.array([[zoom, 0, _THUMB / 2 - zoom * m["m10"] / m["m00"]], [0, zoom, _THUMB / 2 - zoom * m["m01"] / m["m00"]]])
    return (cv2.warpAffine(fine * 255, move, (_THUMB, _THUMB)).ravel() > 127).astype(np.float32)


@cache
def _class_thumbnails() -> np.ndarray:
    """Return thumbnails (T, _THUMB**2) of the 16 classes over their variants, stretches and 36 turns."""
    rows = []
    for name in embedded.CLASSES:
        for variant in (0.0, 0.5, 1.0):
            for aspect in (0.85, 1.0, 1.2):
                stretch = np.array([math.sqrt(aspect), 1 / math.sqrt(aspect)]) * 0.75
                outline = [c * stretch for c in embedded.silhouette(name, variant)]
                rows += [_thumbnail([_turned(c, t * math.pi / 18) for c in outline]) for t in range(36)]
    return np.stack(rows)


def likeness(contours: list[np.ndarray]) -> float:
    """Return largest IoU of a shape with a silhouette of an embedded class, aligned by centroid, area and turn."""
    one, classes = _thumbnail(contours), _class_thumbnails()
    common = classes @ one
    return float((common / (classes.sum(1) + one.sum() - common)).max())


def random_outline(index: int) -> list[np.ndarray]:
    """Return shape number `index`: closed (V, 2) contours in the unit disc (even-odd rule), unlike every embedded class."""
    rng = embedded.seeded("sam", "shape", index)
    while True:
        contours = _contours(_compose(rng), float(rng.uniform(0, 2 * math.pi)))
        if contours is not None and likeness(contours) < LIKENESS:
            return contours
