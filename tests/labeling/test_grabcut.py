"""GrabCut in the place of SAM, and nothing in its place."""

from __future__ import annotations

import numpy as np

from syn4seg.labeling.components import find_components
from syn4seg.labeling.grabcut import ComponentMasks, GrabCut
from syn4seg.labeling.refinement import refine_boundary


def disk(radius: float, centre: tuple[int, int] = (32, 32)) -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def picture(mask: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 20, (64, 64, 3))
    return (np.where(mask[..., None], (200, 60, 40), (40, 90, 180)) + noise).astype(np.uint8)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def test_a_label_that_is_too_small_and_moved_is_cut_along_the_object():
    truth = disk(15)
    label = disk(13, (31, 34)).astype(np.uint8) * 3
    regions = find_components(label)
    masks, quality = GrabCut(5).masks(picture(truth), regions)
    assert iou(masks[0], truth) > 0.97 > iou(label > 0, truth) + 0.1
    assert np.isclose(quality[0], iou(masks[0], label > 0))
    refined = refine_boundary(label, regions, masks, quality, band_width=5, min_agreement=0.5)
    assert iou(refined.label == 3, truth) > 0.95


def test_the_cut_is_the_same_every_time_and_stays_inside_the_band():
    truth, label = disk(15), disk(13).astype(np.uint8)
    first, again = (GrabCut(3).masks(picture(truth), find_components(label))[0] for _ in range(2))
    assert np.array_equal(first, again)
    y, x = np.nonzero(first[0] != (label > 0))
    inner, outer = disk(13 - 3 * 2**0.5 - 1), disk(13 + 3 * 2**0.5 + 1)
    assert not inner[y, x].any() and outer[y, x].all()


def test_a_component_of_a_few_pixels_stays_as_it_is():
    label = np.zeros((64, 64), np.uint8)
    label[10:13, 10:13] = 2
    masks, quality = GrabCut(3).masks(picture(disk(15)), find_components(label))
    assert np.array_equal(masks[0], label == 2) and quality[0] == 1


def test_without_a_refiner_no_label_changes():
    rng = np.random.default_rng(1)
    label = np.kron(rng.choice(np.array([0, 1, 2, 255], np.uint8), (8, 8)), np.ones((8, 8), np.uint8))
    regions = find_components(label)
    masks, quality = ComponentMasks().masks(picture(disk(9)), regions)
    refined = refine_boundary(label, regions, masks, quality, band_width=3, min_agreement=0.5)
    assert np.array_equal(refined.label, label) and refined.changed == 0 and refined.accepted.all()
