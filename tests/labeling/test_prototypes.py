"""Prototypes against per-pixel loops, on grids that divide the image and grids that do not."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.errors import UserError
from syn4seg.labeling import prototypes
from syn4seg.labeling.prototypes import (
    area_weights,
    background_prototype,
    blend,
    cell_size,
    local_prototypes,
    normalize,
    occupancy,
    pool,
    region_map,
    region_occupancy,
    support_prototypes,
)
from syn4seg.seeds import seeded

GRIDS = [((12, 16), (3, 4)), ((13, 10), (4, 3)), ((7, 9), (7, 9)), ((5, 4), (8, 6)), ((11, 6), (1, 1)), ((6, 13), (3, 4))]


def slow_bounds(cells: int, pixels: int, align_corners: bool) -> list[tuple[Fraction, Fraction]]:
    """Start and end of every cell in pixels: even shares, or up to the middle between two centres."""
    if not align_corners or 1 in (cells, pixels):
        return [(Fraction(i * pixels, cells), Fraction((i + 1) * pixels, cells)) for i in range(cells)]
    centres = [Fraction(1, 2) + Fraction(i * (pixels - 1), cells - 1) for i in range(cells)]
    middles = [Fraction(0), *((a + b) / 2 for a, b in itertools.pairwise(centres)), Fraction(pixels)]
    return list(itertools.pairwise(middles))


def slow_shares(mask: np.ndarray, grid: tuple[int, int], align_corners: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Share of every cell, from the exact overlap of every pixel with every cell; and the cells' areas in pixels."""
    share, area = np.zeros(grid), np.zeros(grid)
    tall, wide = (slow_bounds(g, n, align_corners) for g, n in zip(grid, mask.shape, strict=True))
    for (i, (top, bottom)), (j, (left, right)) in itertools.product(enumerate(tall), enumerate(wide)):
        area[i, j] = (bottom - top) * (right - left)
        for y, x in itertools.product(range(mask.shape[0]), range(mask.shape[1])):
            height, width = min(bottom, y + 1) - max(top, y), min(right, x + 1) - max(left, x)
            if height > 0 and width > 0:
                share[i, j] += float(height * width) * mask[y, x] / area[i, j]
    return share, area


def slow_occupancy(mask: np.ndarray, grid: tuple[int, int], align_corners: bool = False) -> np.ndarray:
    return slow_shares(mask, grid, align_corners)[0]


def slow_sum(features: np.ndarray, mask: np.ndarray, align_corners: bool = False) -> np.ndarray:
    """Sum over pixels of the area-averaged feature under each pixel."""
    share, area = slow_shares(mask, features.shape[1:], align_corners)
    return (features * share * area).sum((1, 2))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_area_weights_sum_to_one_per_cell_and_spread_every_pixel_evenly(fine, coarse):
    weights = area_weights(fine, coarse)
    assert weights.shape == (coarse, fine) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(area_weights(fine, coarse, True).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(weights.sum(0), coarse / fine, rtol=1e-5)


@pytest.mark.parametrize(("shape", "grid"), GRIDS)
def test_occupancy_equals_the_overlap_of_every_pixel_with_every_cell(shape, grid):
    rng = seeded("occupancy", shape, grid)
    masks = rng.random((3, *shape)) < 0.3
    shares = rng.random((1, *shape))
    for mask, got in zip(masks, occupancy(masks, grid), strict=True):
        np.testing.assert_allclose(got, slow_occupancy(mask, grid), atol=1e-6)
        np.testing.assert_allclose(occupancy(mask[None], grid, True)[0], slow_occupancy(mask, grid, True), atol=1e-6)
    assert got.dtype == np.float32
    np.testing.assert_allclose(occupancy(shares, grid)[0], slow_occupancy(shares[0], grid), atol=1e-6)


@pytest.mark.parametrize(("shape", "grid"), GRIDS)
def test_region_occupancy_equals_occupancy_of_the_regions_masks_even_if_some_are_empty(shape, grid):
    regions = seeded("regions", shape, grid).integers(0, 5, shape).astype(np.int32)
    regions[regions == 3] = 0
    got = region_occupancy(regions, 6, grid)
    masks = np.stack([regions == r for r in range(1, 7)])
    want = occupancy(masks, grid)
    np.testing.assert_allclose(region_occupancy(regions, 6, grid, True), occupancy(masks, grid, True), atol=1e-6)
    assert got.dtype == np.float32 and got.shape == (6, *grid)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert not got[2].any() and not got[5].any()


def test_on_a_grid_that_divides_the_image_a_share_is_a_count_of_pixels():
    regions = seeded("counts").integers(0, 3, (12, 9)).astype(np.int32)
    cells = regions.reshape(4, 3, 3, 3).swapaxes(1, 2).reshape(4, 3, 9)
    for row, share in enumerate(region_occupancy(regions, 2, (4, 3)), 1):
        np.testing.assert_array_equal(share, (cells == row).sum(2).astype(np.float32) * np.float32(1 / 9))


@pytest.mark.parametrize(("shape", "grid"), [((64, 64), (8, 8)), ((50, 47), (7, 6))])
def test_a_small_object_never_vanishes_in_occupancy(shape, grid):
    for y, x in seeded("small", shape).integers(0, shape, (40, 2)):
        regions = np.zeros(shape, np.int32)
        regions[y, x] = 1
        share = region_occupancy(regions, 1, grid)
        assert share.max() > 0
        np.testing.assert_allclose(share.sum() * regions.size / (grid[0] * grid[1]), 1, rtol=1e-5)
        np.testing.assert_allclose(occupancy(regions[None] == 1, grid), share, atol=1e-7)


def test_no_regions_give_an_empty_array():
    assert region_occupancy(np.zeros((6, 6), np.int32), 0, (3, 3)).shape == (0, 3, 3)
    assert region_occupancy(np.zeros((7, 6), np.int32), 0, (3, 3)).shape == (0, 3, 3)
    assert occupancy(np.zeros((0, 6, 6), bool), (3, 3)).shape == (0, 3, 3)


@pytest.mark.parametrize(("shape", "grid"), GRIDS)
@pytest.mark.parametrize("many", [0, 128])
def test_pool_sums_the_feature_under_every_pixel_of_few_and_of_many_regions(shape, grid, many, monkeypatch):
    monkeypatch.setattr(prototypes, "MANY_REGIONS", many)
    rng = seeded("pool", shape, grid)
    features = rng.normal(size=(4, *grid)).astype(np.float32)
    regions = rng.integers(0, 4, shape).astype(np.int32)
    for align_corners in (False, True):
        want = np.stack([slow_sum(features, regions == r, align_corners) for r in (1, 2, 3, 4)])
        found = pool(features, regions, 4, align_corners)  # the fourth is empty
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
        assert found.dtype == np.float32 and not found[3].any()


def test_pool_has_one_precision_whatever_that_of_the_features():
    features, regions = seeded("precision").normal(size=(4, 3, 4)), np.ones((12, 16), np.int32)
    double, single = pool(features, regions, 1), pool(features.astype(np.float32), regions, 1)
    assert double.dtype == np.float32
    np.testing.assert_array_equal(double, single)


def test_a_grid_has_two_axes_like_the_image():
    with pytest.raises(ValueError, match="zip"):
        occupancy(np.zeros((1, 6, 6), bool), (3, 3, 3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="zip"):
        cell_size((6, 6), (3, 3, 3))  # pyright: ignore[reportArgumentType]
    assert cell_size((13, 16), (4, 4)) == 4 and cell_size((12, 17), (4, 4)) == 5


def test_pool_refuses_a_batch_of_features():
    with pytest.raises(ValueError, match=r"\(D, h, w\)"):
        pool(np.zeros((1, 4, 2, 2), np.float32), np.zeros((4, 4), np.int32), 0)


def test_region_map_numbers_classes_in_the_order_given():
    label = np.array([[0, 7, 255], [3, 7, 9]], np.uint8)
    assert region_map(label, [7, 3, 255]).tolist() == [[0, 1, 3], [2, 1, 0]]


def support(seed: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Three shots of different sizes and grids with classes 0, 2, 5, 9 and unlabeled pixels."""
    rng = seeded("support", seed)
    features = [rng.normal(size=(6, *grid)).astype(np.float32) for grid in ((3, 4), (4, 3), (2, 2))]
    masks = [rng.choice(np.array([0, 2, 5, 9, 255], np.uint8), shape) for shape in ((12, 16), (13, 10), (6, 6))]
    masks[1][masks[1] == 9] = 0
    return features, masks


@pytest.mark.parametrize("seed", ["a", "b"])
def test_support_prototypes_pool_raw_features_over_all_pixels_and_shots(seed):
    features, masks = support(seed)
    got = support_prototypes(features, masks, (2, 5, 9))
    for index, row in zip((2, 5, 9), got, strict=True):
        want = unit(np.sum([slow_sum(f, m == index) for f, m in zip(features, masks, strict=True)], axis=0))
        np.testing.assert_allclose(row, want, atol=1e-5)


def test_support_prototypes_follow_the_order_of_classes_and_ignore_the_order_of_shots():
    features, masks = support("order")
    rows = support_prototypes(features, masks, (2, 5, 9))
    np.testing.assert_allclose(support_prototypes(features, masks, (9, 2, 5)), rows[[2, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(support_prototypes(features[::-1], masks[::-1], (2, 5, 9)), rows, atol=1e-5)


def test_a_class_without_support_pixels_is_named_in_the_error():
    features, masks = support("absent")
    with pytest.raises(UserError, match=r"class index 4 \(sheep\).*label map of its images$"):
        support_prototypes(features, masks, (2, 4), names=("dog", "sheep"))
    with pytest.raises(UserError, match="class index 4 has no pixel in the 3"):
        support_prototypes(features, masks, (2, 4))
    with pytest.raises(ValueError, match="one mask per feature map"):
        support_prototypes(features[:2], masks, (2,))


def test_the_background_prototype_sees_only_pixels_that_mask_and_base_model_both_call_background():
    features, masks = support("background")
    base = [seeded("base", i).choice(np.array([0, 1], np.uint8), m.shape) for i, m in enumerate(masks)]
    agreed = [(m == 0) & (b == 0) for m, b in zip(masks, base, strict=True)]
    want = unit(np.sum([slow_sum(f, a) for f, a in zip(features, agreed, strict=True)], axis=0))
    np.testing.assert_allclose(background_prototype(features, masks, base), want, atol=1e-5)
    unmasked = unit(np.sum([slow_sum(f, m == 0) for f, m in zip(features, masks, strict=True)], axis=0))
    np.testing.assert_allclose(background_prototype(features, masks, None), unmasked, atol=1e-5)
    with pytest.raises(UserError, match=r"base predictions.*pass base_predictions=None$"):
        background_prototype(features, masks, [np.ones_like(m) for m in masks])
    with pytest.raises(ValueError, match="zip"):
        background_prototype(features, masks, base[:2])


def test_local_prototypes_are_the_unit_means_of_the_classes_that_are_there():
    features, masks = support("local")
    got = local_prototypes(features[1], masks[1], (0, 2, 5, 9))
    assert list(got) == [0, 2, 5]
    for index, vector in got.items():
        np.testing.assert_allclose(vector, unit(slow_sum(features[1], masks[1] == index)), atol=1e-5)
    assert local_prototypes(features[1], np.full((13, 10), 255, np.uint8), (0, 2)) == {}


def test_beta_zero_and_one_are_the_local_and_the_global_prototype():
    rng = seeded("blend")
    for _ in range(20):
        a, b = normalize(rng.normal(size=(2, 8)))
        np.testing.assert_allclose(blend(a, b, 1.0), a, atol=1e-6)
        np.testing.assert_allclose(blend(a, b, 0.0), b, atol=1e-6)
        np.testing.assert_allclose(blend(a, b, 0.3), unit(0.3 * a + 0.7 * b), atol=1e-6)


def test_blending_has_one_precision_whatever_that_of_the_prototypes():
    a, b = seeded("blend precision").normal(size=(2, 64, 16))
    for x, y in zip(a, b, strict=True):
        single = blend(x.astype(np.float32), y.astype(np.float32), 0.3)
        np.testing.assert_array_equal(blend(x, y, 0.3), single)
        np.testing.assert_array_equal(blend(x.astype(np.float32), y, 0.3), single)


def fill_memory_with_nan(shape: tuple[int, ...]) -> None:
    """Leaves freed arrays of nan behind, so that memory that nobody fills is not zero by chance."""
    arrays = [np.full(shape, np.nan, np.float32) for _ in range(64)]
    del arrays


def test_normalising_keeps_a_zero_vector_zero_whatever_was_in_memory():
    for shape in ((3, 4), (40, 64)):
        fill_memory_with_nan(shape)
        assert not normalize(np.zeros(shape, np.float32)).any()


def test_normalising_keeps_a_zero_vector_zero():
    rows = normalize(np.array([[0, 0, 0], [3, 0, 4]], np.float64))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0, 0, 0], [0.6, 0, 0.8]], atol=1e-7)
    assert not blend(np.array([1.0, 0]), np.array([-1.0, 0]), 0.5).any()
