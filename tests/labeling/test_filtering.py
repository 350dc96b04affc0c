"""Filtering (APF) against a loop over flood-filled regions and pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from syn4seg.errors import UserError
from syn4seg.labeling.filtering import filter_regions, held_out_similarities
from syn4seg.labeling.prototypes import normalize
from syn4seg.seeds import seeded

TARGET, NOVEL = 5, (4, 5, 6)


def slow_regions(label: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(class, mask) of every 8-connected region."""
    regions = []
    for index in (k for k in range(1, 255) if (label == k).any()):
        labelled: Any = ndimage.label(label == index, np.ones((3, 3)))
        ids, count = labelled
        regions += [(index, ids == r) for r in range(1, count + 1)]
    return regions


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def mean_feature(features: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the mask's pixels of the feature of the cell that holds each pixel; the grid must divide the image."""
    sy, sx = mask.shape[0] // features.shape[1], mask.shape[1] // features.shape[2]
    return np.mean([features[:, y // sy, x // sx] for y, x in np.argwhere(mask)], axis=0)


def slow_filter(draft, features, prototypes, confidence, *, lambda_keep, min_region, tau_base, tau_background, rivals=()):
    kept, verdicts = draft.copy(), []
    for index, mask in slow_regions(draft):
        similarity = cosine(mean_feature(features, mask), prototypes[index]) if index in prototypes else math.nan
        why = ""
        if index == TARGET:
            rival = max((cosine(mean_feature(features, mask), prototypes[k]) for k in rivals), default=-2.0)
            why = "similarity" if similarity < lambda_keep else "rival" if rival > similarity else ""
            why = why or ("area" if mask.sum() < min_region else "")
            if why:
                kept[mask] = 255
        elif index in NOVEL:
            why = "other_novel"
            kept[mask] = 255
        elif confidence is not None:
            for y, x in np.argwhere(mask):
                if confidence[y, x] < tau_base:
                    kept[y, x] = 255
            why = "" if (kept[mask] == index).any() else "confidence"
        verdicts.append((index, int(mask.sum()), similarity, why))
    if confidence is not None:
        kept[(draft == 0) & (confidence < tau_background)] = 255
    return kept, verdicts


def case(seed: object, shape: tuple[int, int] = (24, 32), grid: tuple[int, int] = (6, 8)):
    """A blobby draft, features that follow it noisily, prototypes for some classes and a confidence map."""
    rng = seeded("filtering", seed)
    coarse = rng.choice(np.array([0, 0, 1, 2, 4, 5, 5, 6, 255], np.uint8), (6, 8))
    rows, columns = (np.arange(n) * g // n for n, g in zip(shape, coarse.shape, strict=True))
    draft = coarse[rows][:, columns]
    speckle = rng.random(shape) < 0.06
    draft = np.where(speckle, rng.choice(np.array([0, 1, 5, 255], np.uint8), shape), draft)
    features = rng.normal(size=(10, *grid)).astype(np.float32) + 0.5
    prototypes = {k: v for k, v in zip((1, 5, 6), normalize(rng.normal(size=(3, 10)) + 0.5), strict=True)}
    return draft, features, prototypes, rng.random(shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(10))
def test_filtering_equals_the_loop_over_regions_and_pixels(seed):
    draft, features, prototypes, confidence = case(seed)
    rivals = (1, 6) if seed % 2 else ()
    settings: dict[str, Any] = dict(lambda_keep=0.3, min_region=4, tau_base=0.6, tau_background=0.2, rivals=rivals)
    confidence = None if seed % 3 == 0 else confidence
    got = filter_regions(draft, features, prototypes, target=TARGET, novel=NOVEL, confidence=confidence, **settings)
    kept, verdicts = slow_filter(draft, features, prototypes, confidence, **settings)
    np.testing.assert_array_equal(got.kept, kept)
    records = [(r.class_index, r.area, round(r.similarity, 4), r.why) for r in got.regions]
    assert sorted(map(str, records)) == sorted(str((k, a, round(s, 4), w)) for k, a, s, w in verdicts)
    assert all(r.kept == (r.why == "") for r in got.regions)
    assert rivals or "rival" not in {r.why for r in got.regions}


def test_a_region_of_the_target_that_resembles_a_rival_more_is_freed():
    draft = np.zeros((8, 8), np.uint8)
    draft[:3, :3] = draft[5:, 5:] = TARGET
    prototypes = dict(zip((TARGET, 4, 0), np.eye(3, dtype=np.float32), strict=True))
    features = np.zeros((3, 8, 8), np.float32)
    features[2], features[0, :3, :3], features[:2, 5:, 5:] = 0.1, 1, np.array([0.6, 0.8])[:, None, None]
    settings: dict[str, Any] = dict(target=TARGET, novel=NOVEL, lambda_keep=0.5, min_region=1)
    assert [r.why for r in filter_regions(draft, features, prototypes, **settings).regions] == ["", ""]
    got = filter_regions(draft, features, prototypes, rivals=(4,), **settings)
    assert [r.why for r in got.regions] == ["", "rival"] and (got.kept[5:, 5:] == 255).all() and (got.kept[:3, :3] == TARGET).all()
    assert [r.why for r in filter_regions(draft, features, prototypes, rivals=(4,), rival_margin=0.25, **settings).regions] == [
        "",
        "",
    ]
    with pytest.raises(ValueError, match="not rival 6"):
        filter_regions(draft, features, prototypes, rivals=(6,), **settings)


def test_a_region_record_carries_the_tight_box_and_the_area():
    draft = np.zeros((16, 16), np.uint8)
    draft[3:7, 5:11] = TARGET
    features = np.ones((4, 4, 4), np.float32)
    got = filter_regions(draft, features, {TARGET: np.full(4, 0.5)}, target=TARGET, novel=NOVEL, lambda_keep=0.99, min_region=1)
    (region,) = got.regions
    assert (
        region.box == (5, 3, 11, 7)
        and all(type(v) is int for v in region.box)
        and region.area == 24
        and region.kept
        and abs(region.similarity - 1) < 1e-5
    )


@pytest.mark.parametrize("seed", range(5))
def test_raising_lambda_or_min_region_or_tau_never_adds_kept_pixels(seed):
    draft, features, prototypes, confidence = case(("monotone", seed))
    settings: dict[str, Any] = dict(lambda_keep=-1.0, min_region=1, tau_base=0.0, tau_background=0.0)
    ladders = dict(lambda_keep=(-0.2, 0.1, 0.4, 0.8, 1.1), min_region=(3, 30, 900), tau_base=(0.5, 0.9), tau_background=(0.5, 2))
    for key, values in ladders.items():
        free = np.zeros(draft.shape, bool)
        for value in values:
            stricter = {**settings, key: value}
            got = filter_regions(draft, features, prototypes, target=TARGET, novel=NOVEL, confidence=confidence, **stricter).kept
            assert (got[free] == 255).all()
            free = got == 255


@pytest.mark.parametrize("seed", range(5))
def test_filtering_only_ever_frees_pixels_and_keeps_whole_target_regions(seed):
    draft, features, prototypes, confidence = case(("frees", seed))
    got = filter_regions(
        draft, features, prototypes, target=TARGET, novel=NOVEL, lambda_keep=0.2, min_region=3, confidence=confidence, tau_base=0.5
    )
    assert ((got.kept == draft) | (got.kept == 255)).all()
    assert not np.isin(got.kept, [k for k in NOVEL if k != TARGET]).any()
    for index, mask in slow_regions(draft):
        if index == TARGET:
            assert len(np.unique(got.kept[mask])) == 1
    assert (got.kept[draft == 0] == 0).all()


def test_the_order_of_novel_classes_and_prototypes_does_not_matter():
    draft, features, prototypes, confidence = case("order")
    settings: dict[str, Any] = dict(target=TARGET, lambda_keep=0.2, min_region=2, confidence=confidence, tau_base=0.5)
    first = filter_regions(draft, features, prototypes, novel=NOVEL, **settings)
    second = filter_regions(draft, features, dict(reversed(prototypes.items())), novel=frozenset(NOVEL[::-1]), **settings)
    np.testing.assert_array_equal(first.kept, second.kept)
    assert str(first.regions) == str(second.regions)


@pytest.mark.parametrize("grid", [(5, 7), (24, 32), (1, 1)])
def test_a_region_of_one_feature_has_similarity_one_on_any_grid(grid):
    draft, _, prototypes, _ = case("grid")
    features = np.broadcast_to(prototypes[TARGET][:, None, None] * 3, (10, *grid)).astype(np.float32)
    got = filter_regions(draft, features, prototypes, target=TARGET, novel=NOVEL, lambda_keep=0.999, min_region=1)
    of_target = [r for r in got.regions if r.class_index == TARGET]
    assert of_target and all(r.kept for r in of_target)


def test_a_region_exactly_at_a_threshold_and_a_pixel_exactly_at_its_confidence_are_kept():
    draft = np.array([[TARGET, TARGET, 0, 1]], np.uint8)
    features, prototype = np.zeros((2, 1, 4), np.float32), np.array([1.0, 0], np.float32)
    features[0] = 3
    settings: dict[str, Any] = dict(target=TARGET, novel=NOVEL, min_region=2, tau_base=0.7, tau_background=0.7)
    exact = np.full(draft.shape, 0.7, np.float32)  # less than the float64 0.7
    got = filter_regions(draft, features, {TARGET: prototype}, lambda_keep=1.0, confidence=exact, **settings)
    np.testing.assert_array_equal(got.kept, draft)
    above = np.nextafter(np.float64(1), 2)
    assert (filter_regions(draft, features, {TARGET: prototype}, lambda_keep=above, **settings).kept == 255).sum() == 2
    unsure = np.zeros(draft.shape, np.float32)
    got = filter_regions(
        draft, features, {TARGET: prototype}, target=TARGET, novel=NOVEL, lambda_keep=0, min_region=1, confidence=unsure
    )
    np.testing.assert_array_equal(got.kept, draft)  # without thresholds no confidence is too low


@pytest.mark.parametrize("value", [0, 255, TARGET, 1])
def test_an_image_of_one_label_is_filtered(value):
    features = np.ones((3, 2, 2), np.float32)
    draft = np.full((7, 5), value, np.uint8)
    got = filter_regions(draft, features, {TARGET: np.ones(3)}, target=TARGET, novel=NOVEL, lambda_keep=0.5, min_region=1)
    np.testing.assert_array_equal(got.kept, draft)
    assert len(got.regions) == (0 if value in (0, 255) else 1)


def test_wrong_arguments_are_explained():
    draft, features, prototypes, confidence = case("errors")
    with pytest.raises(ValueError, match="target 4"):
        filter_regions(draft, features, prototypes, target=4, novel=NOVEL, lambda_keep=0, min_region=1)
    with pytest.raises(ValueError, match="confidence has shape"):
        filter_regions(draft, features, prototypes, target=5, novel=NOVEL, lambda_keep=0, min_region=1, confidence=confidence[1:])


def shots(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Shots 16 x 16 with a big and a small region of class 5, and one of class 2."""
    features, masks = [], []
    for shot in range(count):
        rng = seeded("shots", shot)
        mask = np.zeros((16, 16), np.uint8)
        mask[1:9, 2:9], mask[11:13, 12:15], mask[12:, 1:4] = 5, 5, 2
        masks.append(mask)
        features.append(rng.normal(size=(6, 4, 4)).astype(np.float32) + 1)
    return features, masks


def test_with_several_shots_each_region_meets_the_prototype_of_the_other_shots():
    features, masks = shots(3)
    want = []
    for shot in range(3):
        rest = [mean_feature(f, m == 5) * (m == 5).sum() for j, (f, m) in enumerate(zip(features, masks, strict=True)) if j != shot]
        regions = [mask for index, mask in slow_regions(masks[shot]) if index == 5]
        want += [cosine(mean_feature(features[shot], r), np.sum(rest, axis=0)) for r in regions]
    np.testing.assert_allclose(sorted(held_out_similarities(features, masks, 5)), sorted(want), atol=1e-5)


def test_with_one_shot_each_region_meets_the_prototype_of_the_other_regions():
    features, masks = shots(1)
    big, small = (mean_feature(features[0], mask) for index, mask in slow_regions(masks[0]) if index == 5)
    np.testing.assert_allclose(held_out_similarities(features, masks, 5), [cosine(big, small)] * 2, atol=1e-5)
    empty = [*masks, np.zeros((16, 16), np.uint8)]
    np.testing.assert_allclose(held_out_similarities(features * 2, empty, 5), [cosine(big, small)] * 2, atol=1e-5)


def test_with_one_region_its_quadrants_are_held_out_in_turn():
    features, _ = shots(1)
    mask = np.zeros((16, 16), bool)
    mask[6:10, 2:7] = True  # cut at row 8 and column 4.5
    parts = []
    for rows in (np.s_[6:8], np.s_[8:10]):
        for columns in (np.s_[2:5], np.s_[5:7]):
            part = np.zeros_like(mask)
            part[rows, columns] = True
            parts.append(mean_feature(features[0], part) * part.sum())
    masks = [2 * mask.astype(np.uint8)]
    want = [cosine(p, np.sum(parts, axis=0) - p) for p in parts]
    np.testing.assert_allclose(held_out_similarities(features, masks, 2), want, atol=1e-5)


def test_the_quadrants_of_any_region_are_cut_at_the_middle_of_its_box_and_empty_ones_left_out():
    features = [seeded("quadrants").normal(size=(6, 5, 10)).astype(np.float32) + 1]
    angle, pair = np.zeros((2, 10, 20), bool)
    angle[2:8, 3:5] = angle[6, 3:11] = True  # box rows 2..7 and columns 3..10, nothing at the upper right
    pair[2, 3] = pair[3, 4] = True  # two pixels that touch at a corner
    for mask in (angle, pair):
        parts = []
        ys, xs = np.nonzero(mask)
        middle = (ys.min() + ys.max() + 1) / 2, (xs.min() + xs.max() + 1) / 2
        for low in (False, True):
            for right in (False, True):
                pixels = [(y, x) for y, x in zip(ys, xs, strict=True) if (y >= middle[0]) == low and (x >= middle[1]) == right]
                parts += [np.sum([features[0][:, y // 2, x // 2] for y, x in pixels], axis=0)] if pixels else []
        want = [cosine(p, np.sum(parts, axis=0) - p) for p in parts]
        np.testing.assert_allclose(held_out_similarities(features, [mask.astype(np.uint8)], 1), want, atol=1e-5)
    with pytest.raises(ValueError, match="zip"):
        held_out_similarities(features, [angle.astype(np.uint8)] * 2, 1)


def test_a_support_that_cannot_be_held_out_is_an_error():
    features, masks = shots(1)
    masks[0][0, 15] = 7
    for index in (7, 8):
        with pytest.raises(UserError, match=f"class index {index} .*draw another support set$"):
            held_out_similarities(features, masks, index)
