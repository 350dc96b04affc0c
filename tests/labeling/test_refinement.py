"""Boundary refinement (SABR) against a loop over pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from syn4seg.labeling import refinement
from syn4seg.labeling.components import find_components
from syn4seg.labeling.refinement import boundary_band, component_masks, hint_boxes, hint_points, refine_boundary
from syn4seg.seeds import seeded


def window(label: np.ndarray, y: int, x: int, width: int) -> set[int]:
    return set(np.unique(label[max(y - width, 0) : y + width + 1, max(x - width, 0) : x + width + 1]).tolist())


def slow_band(label: np.ndarray, width: int) -> np.ndarray:
    """A pixel is in the band iff some pixel with another label is at most `width` rows and columns away."""
    band = np.zeros(label.shape, bool)
    for y, x in np.ndindex(label.shape):
        band[y, x] = window(label, y, x, width) != {int(label[y, x])}
    return band


def slow_refine(label, components, masks, ious, *, band_width, min_agreement):
    inside = [components.map == r + 1 for r in range(len(masks))]
    agreement = [(i & m).sum() / (i | m).sum() for i, m in zip(inside, masks, strict=True)]
    accepted = [bool(a >= min_agreement) for a in agreement]
    band, out = slow_band(label, band_width), label.copy()
    for y, x in np.ndindex(label.shape):
        if not band[y, x] and label[y, x] != 255:
            continue
        claims = [(-ious[r], int(components.class_index[r])) for r in range(len(masks)) if accepted[r] and masks[r][y, x]]
        own = int(components.map[y, x]) - 1
        if claims:
            out[y, x] = min(claims)[1]
        elif own >= 0 and accepted[own]:
            others = window(label, y, x, band_width) - {0, 255, int(label[y, x])}
            out[y, x] = 255 if others else 0
    return out, accepted, agreement


def shifted(mask: np.ndarray, dy: int, dx: int) -> np.ndarray:
    return np.roll(mask, (dy, dx), (0, 1))


def case(seed: object, shape: tuple[int, int] = (26, 31)):
    """Blobs of three classes and unlabeled areas; masks are components moved, grown, emptied or random; tied IoUs."""
    rng = seeded("refinement", seed)
    rows, columns = (np.arange(n) * g // n for n, g in zip(shape, (5, 6), strict=True))
    label = rng.choice(np.array([0, 0, 0, 1, 2, 7, 255], np.uint8), (5, 6))[rows][:, columns]
    label[rng.random(shape) < 0.02] = 2
    components = find_components(label)
    masks = []
    for r in range(len(components.area)):
        own = components.map == r + 1
        kind = rng.integers(6)
        moved = shifted(own, *rng.integers(-2, 3, 2))
        masks.append([moved, moved | shifted(own, 1, 1), own, moved, np.zeros(shape, bool), rng.random(shape) < 0.5][kind])
    ious = rng.choice(np.array([0.5, 0.7, 0.7, 0.9], np.float32), len(masks))
    return label, components, np.array(masks).reshape(-1, *shape), ious


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("width", [0, 1, 2, 5])
def test_the_band_is_every_pixel_within_reach_of_another_label(seed, width):
    label, *_ = case(("band", seed), (13, 17))
    np.testing.assert_array_equal(boundary_band(label, width), slow_band(label, width))


def test_an_image_of_one_label_has_no_band_and_a_single_pixel_has_a_square_one():
    for value in (0, 3, 255):
        assert not boundary_band(np.full((9, 8), value, np.uint8), 3).any()
    label = np.zeros((9, 9), np.uint8)
    label[4, 4] = 3
    want = np.zeros((9, 9), bool)
    want[2:7, 2:7] = True
    np.testing.assert_array_equal(boundary_band(label, 2), want)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("margin", [0, 2, 100])
def test_refinement_equals_the_loop_over_pixels(seed, margin, monkeypatch):
    monkeypatch.setattr(refinement, "MARGIN", margin)
    label, components, masks, ious = case(seed)
    settings: dict[str, Any] = dict(band_width=1 + seed % 3, min_agreement=(0.2, 0.5)[seed % 2])
    got = refine_boundary(label, components, masks, ious, **settings)
    want, accepted, agreement = slow_refine(label, components, masks, ious, **settings)
    np.testing.assert_array_equal(got.label, want)
    assert got.accepted.tolist() == accepted and got.changed == np.count_nonzero(want != label)
    assert got.agreement.dtype == np.float32
    np.testing.assert_allclose(got.agreement, agreement, atol=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_refinement_never_touches_the_locked_region_nor_its_input(seed):
    label, components, masks, ious = case(("locked", seed))
    before = label.copy()
    masks = masks | (seeded("noise", seed).random(masks.shape) < 0.4)
    for width in (0, 1, 3):
        got = refine_boundary(label, components, masks, ious, band_width=width, min_agreement=0.0)
        locked = ~slow_band(label, width) & (label != 255)
        np.testing.assert_array_equal(got.label[locked], label[locked])
    np.testing.assert_array_equal(label, before)


def test_masks_equal_to_their_components_change_nothing():
    label, components, _, ious = case("same")
    masks = np.stack([components.map == r + 1 for r in range(len(ious))])
    got = refine_boundary(label, components, masks, ious, band_width=3, min_agreement=1.0)
    assert got.changed == 0 and got.accepted.all() and (got.agreement == 1).all()
    np.testing.assert_array_equal(got.label, label)


def test_a_mask_that_disagrees_is_ignored_and_counted():
    label = np.zeros((12, 12), np.uint8)
    label[2:6, 2:6], label[8:11, 8:11] = 1, 2
    components = find_components(label)
    elsewhere = np.zeros((12, 12), bool)
    elsewhere[4:10, 0:4] = True
    masks = np.stack([elsewhere, components.map == 2])
    got = refine_boundary(label, components, masks, np.array([1.0, 0.5]), band_width=2, min_agreement=0.5)
    assert got.accepted.tolist() == [False, True] and got.changed == 0
    np.testing.assert_array_equal(got.label, label)


def test_the_order_of_components_does_not_matter():
    label, components, masks, ious = case("order")
    settings: dict[str, Any] = dict(band_width=2, min_agreement=0.2)
    first = refine_boundary(label, components, masks, ious, **settings)
    order = seeded("permutation").permutation(len(ious))
    place = np.concatenate([[0], np.argsort(order) + 1]).astype(np.int32)
    turned = type(components)(place[components.map], components.class_index[order], components.box[order], components.area[order])
    second = refine_boundary(label, turned, masks[order], ious[order], **settings)
    np.testing.assert_array_equal(first.label, second.label)
    np.testing.assert_array_equal(first.accepted[order], second.accepted)


def test_overlaps_go_to_the_higher_predicted_iou_and_ties_to_the_lower_class():
    label = np.zeros((6, 12), np.uint8)
    label[:, 1:5], label[:, 7:11] = 4, 2
    components = find_components(label)  # class 2 first
    between = np.zeros((6, 12), bool)
    between[:, 5:7] = True
    masks = np.stack([(label == 2) | between, (label == 4) | between])
    for ious, winner in (((0.9, 0.8), 2), ((0.8, 0.9), 4), ((0.9, 0.9), 2)):
        got = refine_boundary(label, components, masks, np.array(ious), band_width=2, min_agreement=0.5)
        assert (got.label[:, 5:7] == winner).all()


def test_a_withdrawn_pixel_becomes_background_but_unlabeled_where_two_classes_meet():
    label = np.zeros((5, 14), np.uint8)
    label[:, 2:7], label[:, 7:12] = 1, 2
    components = find_components(label)
    masks = np.stack([label == 1, label == 2])
    masks[0][:, [2, 6]] = False  # column 2 borders on background, column 6 on class 2
    got = refine_boundary(label, components, masks, np.array([0.9, 0.9]), band_width=1, min_agreement=0.5)
    assert got.label[0].tolist() == [0, 0, 0, 1, 1, 1, 255, 2, 2, 2, 2, 2, 0, 0]


def test_unlabeled_pixels_take_a_class_wherever_they_are_and_otherwise_stay_unlabeled():
    label = np.full((9, 20), 255, np.uint8)
    label[:, :5] = 3
    components = find_components(label)
    mask = np.zeros((1, 9, 20), bool)
    mask[:, :, :8] = True
    got = refine_boundary(label, components, mask, np.array([0.9]), band_width=1, min_agreement=0.5)
    assert (got.label[:, :8] == 3).all() and (got.label[:, 8:] == 255).all()


@pytest.mark.parametrize("value", [0, 255])
def test_a_label_without_components_is_returned_as_it_is(value):
    label = np.full((6, 5), value, np.uint8)
    got = refine_boundary(label, find_components(label), np.zeros((0, 6, 5), bool), np.zeros(0), band_width=2, min_agreement=0.5)
    np.testing.assert_array_equal(got.label, label)
    assert got.changed == 0 and got.accepted.shape == (0,) and got.agreement.shape == (0,)


def test_hint_boxes_widen_the_tight_boxes_and_stay_in_the_frame():
    label = np.zeros((10, 20), np.uint8)
    label[0:3, 4:6], label[9, 19] = 1, 1
    boxes = hint_boxes(find_components(label), 2.5, (10, 20))
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[1.5, 0.0, 8.5, 5.5], [16.5, 6.5, 20.0, 10.0]]
    assert hint_boxes(find_components(np.zeros((4, 4), np.uint8)), 1, (4, 4)).shape == (0, 4)


def test_masks_of_other_components_are_refused():
    label, components, masks, ious = case("errors")
    with pytest.raises(ValueError, match="do not fit"):
        refine_boundary(label, components, masks[1:], ious[1:], band_width=2, min_agreement=0.5)
    with pytest.raises(ValueError, match="do not fit"):
        refine_boundary(label, components, masks[:, 1:], ious, band_width=2, min_agreement=0.5)


def test_point_hints_lie_deepest_inside_their_component():
    label = np.zeros((12, 30), np.uint8)
    label[0:7, 0:7] = 1  # at the corner of the frame: beyond it is outside
    label[2:10, 20:22] = 1
    label[8:11, 3:18], label[9, 5] = 2, 0  # a hole is outside
    found = find_components(label)
    points = hint_points(found)
    assert points.dtype == np.float32 and points.tolist() == [[3, 3], [20, 2], [7, 9]]
    masks = component_masks(found)
    assert masks.shape == (3, 12, 30) and np.array_equal(masks.any(0), label > 0)
    for row, (x, y) in enumerate(points.astype(int)):
        assert masks[row, y, x]
    assert hint_points(find_components(np.zeros((4, 4), np.uint8))).shape == (0, 2)
