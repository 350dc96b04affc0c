"""Components against a flood fill in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.labeling.components import find_components
from syn4seg.seeds import seeded


def slow_components(label: np.ndarray) -> dict[frozenset[tuple[int, int]], int]:
    """Set of pixels -> class, by flood fill over 8 neighbours."""
    height, width = label.shape
    seen, regions = np.isin(label, (0, 255)), {}
    for start in np.argwhere(~seen):
        if seen[tuple(start)]:
            continue
        stack, pixels, index = [tuple(start.tolist())], set(), int(label[tuple(start)])
        while stack:
            y, x = stack.pop()
            inside = 0 <= y < height and 0 <= x < width
            if inside and not seen[y, x] and label[y, x] == index:
                seen[y, x] = True
                pixels.add((y, x))
                stack += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        regions[frozenset(pixels)] = index
    return regions


@pytest.mark.parametrize("seed", range(12))
def test_components_equal_a_flood_fill_of_every_class(seed):
    rng = seeded("components", seed)
    label = rng.choice(np.array([0, 0, 1, 2, 7, 255], np.uint8), rng.integers(1, 24, 2))
    got, want = find_components(label), slow_components(label)
    sets = [frozenset(map(tuple, np.argwhere(got.map == r + 1).tolist())) for r in range(len(got.area))]
    assert dict(zip(sets, got.class_index.tolist(), strict=True)) == want
    assert got.map.dtype == np.int32 and got.box.dtype == np.float32 and got.box.shape == (len(want), 4)
    first = [np.flatnonzero(got.map.ravel() == r + 1)[0] for r in range(len(want))]
    assert list(zip(got.class_index, first, strict=True)) == sorted(zip(got.class_index, first, strict=True))
    for pixels, area, box in zip(sets, got.area, got.box, strict=True):
        ys, xs = zip(*pixels, strict=True)
        assert area == len(pixels) and box.tolist() == [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


@pytest.mark.parametrize("value", [0, 255])
def test_a_label_without_foreground_has_no_components(value):
    got = find_components(np.full((5, 4), value, np.uint8))
    assert not got.map.any() and got.class_index.shape == (0,) and got.box.shape == (0, 4) and got.area.shape == (0,)


def test_an_image_of_one_class_is_one_component():
    got = find_components(np.full((5, 4), 9, np.uint8))
    assert (got.map == 1).all() and got.class_index.tolist() == [9] and got.box.tolist() == [[0, 0, 4, 5]]
