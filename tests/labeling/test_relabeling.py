"""Relabeling (APR) against a loop over pixels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from syn4seg.labeling.prototypes import blend, normalize, occupancy
from syn4seg.labeling.relabeling import cosines, relabel
from syn4seg.seeds import seeded

TARGET = 5
SETTINGS: dict[str, Any] = dict(target=TARGET, beta=0.6, tau=0.2, theta=0.4, lambda_keep=-1.0, min_target=0.0, max_target=1.0)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def bilinear(plane: np.ndarray, y: int, x: int, shape: tuple[int, int]) -> float:
    """Value of a grid at the centre of pixel (y, x), half-pixel centres, edges repeated."""
    (height, width), (h, w) = shape, plane.shape
    v, u = (y + 0.5) * h / height - 0.5, (x + 0.5) * w / width - 0.5
    j, i = math.floor(v), math.floor(u)
    value = 0.0
    for row, dy in ((j, 1 - (v - j)), (j + 1, v - j)):
        for column, dx in ((i, 1 - (u - i)), (i + 1, u - i)):
            value += dy * dx * plane[min(max(row, 0), h - 1), min(max(column, 0), w - 1)]
    return value


def is_far(kept: np.ndarray, y: int, x: int, margin: int) -> bool:
    """Whether everything within a margin of a pixel is background."""
    return bool((kept[max(y - margin, 0) : y + margin + 1, max(x - margin, 0) : x + margin + 1] == 0).all())


def slow_relabel(kept, features, prototypes, *, target, beta, tau, theta, lambda_keep, min_target, max_target):
    """Loops over pixels, float64; also returns how far each pixel is from another decision."""
    (height, width), (_, h, w) = kept.shape, features.shape
    margin = max(math.ceil(height / h), math.ceil(width / w))
    classes = sorted({0, target, *np.unique(kept).tolist()} - {255})
    adapted, local = {}, {}
    for index in classes:
        pixels = [(y, x) for y, x in np.argwhere(kept == index) if index or is_far(kept, y, x, margin)]
        adapted[index] = prototypes[index]
        if pixels:
            local[index] = unit(np.sum([features[:, y * h // height, x * w // width] for y, x in pixels], axis=0))
            adapted[index] = unit(beta * prototypes[index] + (1 - beta) * local[index])
    cosine = {k: np.einsum("dhw,d->hw", features / np.linalg.norm(features, axis=0), adapted[k]) for k in classes}
    label, slack, best = kept.copy(), np.full(kept.shape, np.inf), cosine[target].max()
    if not (kept == target).any() and best < lambda_keep:
        return label, slack, best, local, "no_evidence"
    for y, x in np.argwhere(kept == 255):
        values = [bilinear(cosine[k], y, x, kept.shape) for k in classes]
        odds = [math.exp(v / tau) for v in values]
        confidence = max(odds) / sum(odds)
        second, first = sorted(values)[-2:]
        slack[y, x] = min(abs(confidence - theta), first - second)
        if confidence >= theta:
            label[y, x] = classes[values.index(first)]
    share = (label == target).mean()
    reason = "target_too_small" if share < min_target else "target_too_large" if share > max_target else ""
    return label, slack, best, local, reason


def case(seed: object, shape: tuple[int, int] = (24, 32), grid: tuple[int, int] = (6, 8), with_target: bool = True):
    """A kept map with free areas and features that follow the classes noisily."""
    rng = seeded("relabeling", seed)
    values = [0, 0, 0, 1, 255, 255, *([TARGET] if with_target else [])]
    coarse = rng.choice(np.array(values, np.uint8), (3, 4))
    coarse[0, 0] = coarse[0, 1] = coarse[1, 0] = 0
    coarse[2, 3] = 255
    kept = coarse[np.arange(shape[0]) * 3 // shape[0]][:, np.arange(shape[1]) * 4 // shape[1]]
    prototypes: dict[int, np.ndarray] = dict(zip((0, 1, 3, TARGET), normalize(rng.normal(size=(4, 12)) + 0.3), strict=True))
    features = rng.normal(size=(12, *grid)).astype(np.float32) + 0.3
    return kept, features, prototypes


@pytest.mark.parametrize("seed", range(12))
def test_relabeling_equals_the_loop_over_pixels(seed):
    kept, features, prototypes = case(seed, with_target=seed % 4 != 3)
    got = relabel(kept, features, prototypes=prototypes, **SETTINGS)
    label, slack, best, local, reason = slow_relabel(kept, features, prototypes, **SETTINGS)
    sure = slack > 1e-4
    assert sure.mean() > 0.98
    np.testing.assert_array_equal(got.label[sure], label[sure])
    assert got.reason == reason and got.changed == np.count_nonzero(got.label != kept)
    assert got.similarity_best == pytest.approx(best, abs=1e-5)
    assert list(got.local) == list(local)
    for index in local:
        np.testing.assert_allclose(got.local[index], local[index], atol=1e-5)


@pytest.mark.parametrize("grid", [(5, 7), (24, 32), (1, 1)])
def test_upsampling_equals_the_loop_on_any_grid(grid):
    """beta = 1 leaves the pooling out, so only cosine, upsampling and softmax are compared."""
    kept, features, prototypes = case(("grid", grid), grid=grid)
    settings = {**SETTINGS, "beta": 1.0}
    got = relabel(kept, features, prototypes=prototypes, **settings)
    label, slack, *_ = slow_relabel(kept, features, prototypes, **settings)
    sure = slack > 1e-4
    assert sure.mean() > 0.98
    np.testing.assert_array_equal(got.label[sure], label[sure])


@pytest.mark.parametrize("place", [60, 390])
def test_a_disk_comes_back_where_it_was_in_either_corner_convention(place):
    """DIaM's canvas: 417 pixels, 53 cells. Features are the disk's shares of the cells; the wrong convention moves it."""
    rows, columns = np.mgrid[:417, :417]
    disk = (rows - place) ** 2 + (columns - place) ** 2 <= 24**2
    free, prototypes = np.full(disk.shape, 255, np.uint8), dict(zip((0, TARGET), np.eye(2, dtype=np.float32), strict=True))
    ious = {}
    for network, labels in itertools.product((False, True), repeat=2):
        share = occupancy(disk[None], (53, 53), network)[0]
        settings = {**SETTINGS, "beta": 1.0, "theta": 0.0}
        label = relabel(free, np.stack([1 - share, share]), prototypes=prototypes, align_corners=labels, **settings).label
        ious[network, labels] = ((label == TARGET) & disk).sum() / ((label == TARGET) | disk).sum()
    assert ious[True, True] > 0.94 and min(ious[k, k] - ious[k, not k] for k in (False, True)) > 0.05


@pytest.mark.parametrize("seed", range(8))
def test_relabeling_never_edits_kept_pixels_nor_its_inputs(seed):
    kept, features, prototypes = case(("kept", seed))
    before = kept.copy()
    got = relabel(kept, features, prototypes=prototypes, **{**SETTINGS, "theta": 0.0})
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(got.label[kept != 255], kept[kept != 255])
    assert not (got.label == 255).any()
    assert set(np.unique(got.label)) <= {0, TARGET, *np.unique(kept[kept != 255])}


def test_raising_theta_only_leaves_more_pixels_unlabeled():
    kept, features, prototypes = case("theta")
    labels = [relabel(kept, features, prototypes=prototypes, **{**SETTINGS, "theta": t}).label for t in (0, 0.4, 0.5, 0.8, 1.01)]
    for looser, stricter in itertools.pairwise(labels):
        assert ((looser == stricter) | (stricter == 255)).all()
    np.testing.assert_array_equal(labels[-1], kept)


def test_beta_one_uses_the_global_and_beta_zero_the_local_prototypes():
    kept, features, prototypes = case("beta")
    kept[20, 20] = TARGET
    local = relabel(kept, features, prototypes=prototypes, **SETTINGS).local
    assert set(local) == {int(k) for k in np.unique(kept)} - {255}
    only_local = relabel(kept, features, prototypes=local, **{**SETTINGS, "beta": 1.0})
    zero = relabel(kept, features, prototypes=prototypes, **{**SETTINGS, "beta": 0.0})
    np.testing.assert_array_equal(zero.label, only_local.label)
    cut = features.copy()
    cut[:, ::2, ::3] *= 7.0  # changes the means and so the local prototypes, not the cosines
    one = {**SETTINGS, "beta": 1.0}
    np.testing.assert_array_equal(
        relabel(kept, features, prototypes=prototypes, **one).label, relabel(kept, cut, prototypes=prototypes, **one).label
    )


def test_without_a_kept_region_the_target_keeps_its_global_prototype():
    kept, features, prototypes = case("global", with_target=False)
    got = relabel(kept, features, prototypes=prototypes, **{**SETTINGS, "beta": 0.0})
    assert TARGET not in got.local
    cosine = cosines(features, prototypes[TARGET][None])
    assert got.similarity_best == pytest.approx(float(cosine.max()), abs=1e-6)


def test_an_image_without_evidence_is_rejected_unchanged_and_one_with_a_kept_region_never_is():
    kept, features, prototypes = case("evidence", with_target=False)
    strict = {**SETTINGS, "lambda_keep": 0.99}
    got = relabel(kept, features, prototypes=prototypes, **strict)
    assert got.reason == "no_evidence" and got.changed == 0
    assert -1 <= got.similarity_best < 0.99 and set(got.local) <= {int(k) for k in np.unique(kept)} - {255} and got.local
    np.testing.assert_array_equal(got.label, kept)
    kept[20, 20] = TARGET
    assert relabel(kept, features, prototypes=prototypes, **strict).reason == ""


def test_too_little_or_too_much_target_is_rejected_with_its_reason():
    features, prototypes = np.ones((2, 5, 4), np.float32), {0: np.array([1.0, 0]), TARGET: np.array([0.6, 0.8])}
    kept = np.zeros((20, 20), np.uint8)
    settings: dict[str, Any] = dict(target=TARGET, beta=1.0, tau=0.1, theta=0.5, lambda_keep=-1.0)
    for pixels, reason in ((1, "target_too_small"), (2, ""), (380, ""), (381, "target_too_large")):
        kept.ravel()[:] = 0
        kept.ravel()[:pixels] = TARGET
        assert relabel(kept, features, prototypes=prototypes, **settings).reason == reason


def test_ties_go_to_the_lower_class_index_whatever_the_order_of_prototypes():
    same = np.array([0.6, 0.8])
    kept = np.array([[1, 255, 255, TARGET]], np.uint8)
    features = np.ones((2, 1, 4), np.float32)
    far_from = {0: np.array([-1.0, 0]), 1: same, TARGET: same}
    for prototypes in (far_from, dict(reversed(far_from.items()))):
        got = relabel(kept, features, prototypes=prototypes, **{**SETTINGS, "beta": 1.0})
        assert got.label.tolist() == [[1, 1, 1, TARGET]]


def test_a_cell_exactly_at_lambda_is_evidence_and_a_class_exactly_at_theta_is_clear():
    kept, features = np.full((1, 4), 255, np.uint8), np.zeros((2, 1, 4), np.float32)
    features[0] = 2
    east = np.array([1.0, 0], np.float32)
    settings = {**SETTINGS, "beta": 1.0, "lambda_keep": 1.0, "theta": 0.5}
    got = relabel(kept, features, prototypes={0: east, TARGET: east}, **settings)  # two equal classes: a share of 1/2 each
    assert got.reason == "" and got.similarity_best == 1 and got.label.tolist() == [[0, 0, 0, 0]]
    assert (relabel(kept, features, prototypes={0: east, TARGET: east}, **{**settings, "theta": 0.51}).label == 255).all()


@pytest.mark.parametrize("value", [0, 255, TARGET, 1])
def test_an_image_of_one_label_is_relabeled(value):
    _, features, prototypes = case("one")
    kept = np.full((24, 32), value, np.uint8)
    got = relabel(kept, features, prototypes=prototypes, **SETTINGS)
    label, slack, *_ = slow_relabel(kept, features, prototypes, **SETTINGS)
    np.testing.assert_array_equal(got.label[slack > 1e-4], label[slack > 1e-4])


def test_local_background_ignores_pixels_near_foreground_and_free_pixels():
    features = np.zeros((2, 1, 6), np.float32)
    features[0, 0, :3], features[1, 0, 3:] = 1, 1
    kept = np.zeros((4, 24), np.uint8)
    kept[:, 16:] = 255
    got = relabel(kept, features, prototypes={0: np.array([0, 1.0]), TARGET: np.array([1.0, 0])}, **SETTINGS)
    np.testing.assert_allclose(got.local[0], [1, 0], atol=1e-6)


def test_cosines_of_zero_features_are_zero_and_all_others_match_the_definition():
    rng = seeded("cosines")
    features = rng.normal(size=(5, 3, 4)).astype(np.float32)
    features[:, 0] *= 0.01
    features[:, 1, 2] = 0
    vectors = normalize(rng.normal(size=(2, 5)))
    garbage = [np.full(12, np.nan, np.float32) for _ in range(64)]
    del garbage  # memory that nobody fills is not zero by chance
    got = cosines(features, vectors)
    assert got.dtype == cosines(features.astype(np.float64), vectors).dtype == np.float32
    for c, y, x in np.ndindex(got.shape):
        length = np.linalg.norm(features[:, y, x])
        assert got[c, y, x] == pytest.approx(vectors[c] @ features[:, y, x] / length if length else 0.0, abs=1e-6)


def test_wrong_arguments_are_explained():
    kept, features, prototypes = case("errors")
    for missing in (0, TARGET):
        with pytest.raises(ValueError, match=rf"lacks \[{missing}\]"):
            relabel(kept, features, prototypes={k: v for k, v in prototypes.items() if k != missing}, **SETTINGS)
    with pytest.raises(ValueError, match="tau is 0"):
        relabel(kept, features, prototypes=prototypes, **{**SETTINGS, "tau": 0})


def test_the_adaptive_prototype_lies_between_global_and_local():
    kept, features, prototypes = case("between")
    local = relabel(kept, features, prototypes=prototypes, **SETTINGS).local[0]
    adapted = blend(prototypes[0], local, SETTINGS["beta"])
    assert adapted @ prototypes[0] >= prototypes[0] @ local - 1e-6 <= adapted @ local


def test_a_pixel_that_resembles_a_rival_most_stays_free_and_all_others_are_as_without_it():
    background, target, rival = np.eye(3, dtype=np.float32)
    features = np.zeros((3, 1, 3), np.float32)
    features[:, 0, 0], features[:, 0, 1], features[:, 0, 2] = background, target, 0.6 * target + 0.8 * rival
    kept, prototypes = np.full((1, 3), 255, np.uint8), {0: background, 1: target, 2: rival}
    settings = {"target": 1, "prototypes": prototypes, "beta": 1.0, "tau": 0.1, "theta": 0.5, "lambda_keep": 0.5}
    assert relabel(kept, features, **settings).label.tolist() == [[0, 1, 1]]
    found = relabel(kept, features, **settings, rivals=[2])
    assert found.label.tolist() == [[0, 1, 255]] and found.changed == 2
    assert relabel(kept, features, **settings, rivals=[2], rival_margin=0.15).label.tolist() == [[0, 1, 255]]
    assert relabel(kept, features, **settings, rivals=[2], rival_margin=0.25).label.tolist() == [[0, 1, 1]]
