"""Metrics against loops over pixels; absent classes are nan; evaluation shares features between classifiers."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.data.canvas import Canvas
from syn4seg.data.datasets import EmbeddedDataset, fold_of
from syn4seg.segmenter import evaluation
from syn4seg.segmenter.backbones import load_backbone
from syn4seg.segmenter.evaluation import (
    Metrics,
    Query,
    abstentions,
    accumulate_confusion,
    best_classes,
    boundary_iou,
    class_iou,
    confusion,
    iterate_queries,
    metrics,
    predictor_of,
    scores_at_pixels,
    scores_to_classes,
    trimap_iou,
)
from syn4seg.segmenter.network import Classifier, Segmenter


def _labels(seed, shape=(9, 11), classes=5, unlabeled=0.2):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, shape).astype(np.uint8)
    label[rng.random(shape) < unlabeled] = 255
    return label


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_confusion_and_iou_equal_a_loop_over_pixels(seed, classes):
    prediction, label = _labels(seed, classes=classes, unlabeled=0.1), _labels(seed + 1, classes=classes)
    slow = np.zeros((classes, classes), np.int64)
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        if p != 255 and t != 255:
            slow[t, p] += 1
    fast = confusion(prediction, label, classes)
    assert fast.dtype == np.int64 and np.array_equal(fast, slow)
    for k, iou in enumerate(class_iou(fast)):
        a, b = prediction[(prediction != 255) & (label != 255)] == k, label[(prediction != 255) & (label != 255)] == k
        assert math.isnan(iou) if not b.any() else iou == pytest.approx((a & b).sum() / (a | b).sum())


def test_confusion_counts_large_images_in_parts_and_names_values_that_are_no_class(monkeypatch):
    prediction, label = _labels(3, (40, 50)), _labels(4, (40, 50))
    whole = confusion(prediction[:, ::-1], label[:, ::-1], 5)
    monkeypatch.setattr(evaluation, "EXACT", 77)
    assert np.array_equal(confusion(prediction, label, 5), whole) and whole.sum() == ((prediction != 255) & (label != 255)).sum()
    assert confusion(prediction[:0], label[:0], 5).tolist() == np.zeros((5, 5), int).tolist()
    for a, b in ((prediction, label), (label, prediction)):
        a = np.where(a == 4, 255, a).astype(np.uint8)
        with pytest.raises(ValueError, match="expected 0 to 3, or 255"):
            confusion(a, b, 4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.booleans())
def test_the_running_maximum_is_the_first_highest_class_also_where_classes_tie(seed, classes, rounded):
    scores = torch.randn(classes, 12, 17, generator=torch.Generator().manual_seed(seed))
    scores = scores.round() if rounded else scores
    label, best = best_classes(iter(scores))
    assert label.dtype == torch.uint8 and np.array_equal(label.numpy(), scores.numpy().argmax(0))
    assert torch.equal(best, scores.amax(0))


@pytest.mark.parametrize("kind", ["plain", "diam"])
@pytest.mark.parametrize("shape", [None, (65, 65), (48, 64), (200, 31)])
@pytest.mark.parametrize("rounded", [False, True])
def test_scores_become_the_classes_that_all_planes_together_give(kind, shape, rounded):
    scores = 2 * torch.randn(1, 21, 65, 65, generator=torch.Generator().manual_seed(2))
    scores, canvas = scores.round() if rounded else scores, Canvas(65, kind)
    query = Query("", scores[0], np.zeros(shape or (65, 65), np.uint8), canvas, shape)
    found, together = scores_to_classes(query, scores), scores if shape is None else scores_at_pixels(scores, canvas, shape)
    assert found.shape == query.label.shape and np.array_equal(found, together[0].numpy().argmax(0))


def test_every_figure_of_the_table_from_one_matrix():
    iou = [0.9, 0.8, 0.6, 0.5, 0.3]
    matrix = np.zeros((5, 5), np.int64)
    for k, v in enumerate(iou):  # 1000 v hits, the rest are misses that nobody else predicts
        matrix[k, k] = 1000 * v
    lost = np.array([1000 - 1000 * v for v in iou])
    wide = np.zeros((6, 6), np.int64)
    wide[:5, :5], wide[:5, 5] = matrix, lost  # a further class swallows them
    got = metrics(wide, 2, 3)
    assert got["base"] == pytest.approx(0.7) and got["base_with_background"] == pytest.approx(2.3 / 3)
    assert got["novel"] == pytest.approx(0.4) and math.isnan(got["per_class"][5])  # no label holds the sixth class
    b, n = got["base"], got["novel"]
    assert got["mean"] == pytest.approx((b + n) / 2) and got["harmonic"] == pytest.approx(2 * b * n / (b + n))
    assert got["total"] == pytest.approx(sum(iou) / 5)
    wider = got["base_with_background"]
    assert got["harmonic_with_background"] == pytest.approx(2 * wider * n / (wider + n))
    assert set(got) == set(Metrics.__annotations__)
    assert metrics(np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1]]), 1, 1)["harmonic"] == pytest.approx(0.5)  # of two equal shares


def test_an_absent_class_is_nan_and_leaves_the_means_alone():
    matrix = np.diag([5, 4, 0, 3]).astype(np.int64)
    got = metrics(matrix, 2, 1)
    assert math.isnan(got["per_class"][2]) and got["base"] == got["total"] == 1.0
    assert math.isnan(metrics(np.diag([5, 4, 3, 0]), 2, 1)["novel"])
    assert metrics(np.roll(np.eye(3, dtype=np.int64), 1, 1), 1, 1)["harmonic"] == 0
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        assert math.isnan(metrics(np.diag([5, 4, 3, 0]), 2, 1)["novel"])
    with pytest.raises(ValueError, match=r"expected \(5, 5\)"):
        metrics(matrix, 2, 2)


def _slow_bands(mask, width):
    h, w = mask.shape
    band = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        for dy in range(-width, width + 1):
            for dx in range(-width, width + 1):
                v, u = y + dy, x + dx
                if not (0 <= v < h and 0 <= u < w) or not mask[v, u]:
                    band[y, x] = True
    return band


@pytest.mark.parametrize("width", [1, 2])
def test_boundary_iou_equals_a_loop_over_neighbourhoods(width):
    truth = np.zeros((14, 16), np.uint8)
    truth[3:12, 2:9], truth[5:9, 9:16], truth[0, 0] = 1, 2, 255
    label = np.roll(truth, 1, 1)
    label[7, 7] = 0
    expected = []
    use = (label != 255) & (truth != 255)
    for k in range(4):
        a, b = _slow_bands(label == k, width) & use, _slow_bands(truth == k, width) & use
        expected.append((a & b).sum() / (a | b).sum() if (a | b).any() else math.nan)
    assert boundary_iou([label], [truth], 4, width) == pytest.approx(np.array(expected), nan_ok=True)
    near = np.zeros(truth.shape, bool)
    for y, x in np.ndindex(truth.shape):
        patch = truth[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        near[y, x] = (patch != truth[y, x]).any() | (patch.min() != patch.max())
    slow = class_iou(confusion(label[near], truth[near], 4))
    assert trimap_iou([label], [truth], 4, width) == pytest.approx(slow, nan_ok=True)
    assert boundary_iou([truth], [truth], 4, width)[:3].tolist() == [1, 1, 1]


def test_boundary_figures_add_up_over_images_and_absent_classes_are_nan():
    wide, dot = np.zeros((2, 9, 9), np.uint8)
    wide[2:7, 2:7], dot[4, 4] = 1, 2
    with np.errstate(all="raise"):
        apart = [boundary_iou([label], [truth], 4, 1) for label, truth in ((wide, wide), (dot, dot * 0), (dot, dot))]
        both = boundary_iou([wide, dot, dot], [wide, dot * 0, dot], 4, 1)
    assert apart[0][1] == 1 and apart[1][2] == 0 and apart[2][2] == 1 and np.isnan(apart[0][2:]).all()
    assert both[1] == 1 and both[2] == 0.5 and math.isnan(both[3])
    assert trimap_iou([wide, dot], [wide, wide], 3, 1)[1] == pytest.approx(0.5)
    for measure in (boundary_iou, trimap_iou):
        with pytest.raises(ValueError, match="zip"):
            measure([wide, wide], [wide], 2, 1)


def test_evaluation_counts_every_labelled_pixel_once_for_every_classifier():
    torch.manual_seed(0)
    dataset = EmbeddedDataset(1, 5)
    fold = fold_of(dataset, 0)
    net = Segmenter(load_backbone("embedded"), 13, 8, ())
    stored = list(iterate_queries(net, dataset, fold, dataset.val, canvas=Canvas(64), batch=2))
    rows = {
        "base": predictor_of(Classifier(torch.randn(13, 8), torch.zeros(13))),
        "all": predictor_of(Classifier(torch.randn(17, 8), torch.zeros(17))),
    }
    together = accumulate_confusion(stored, rows, 17)
    for name, predict in rows.items():
        alone = accumulate_confusion(iterate_queries(net, dataset, fold, dataset.val, canvas=Canvas(64)), {name: predict}, 17)
        assert abs(alone[name] - together[name]).sum() <= 8  # float16 features of other batches may turn a tie
        assert together[name].sum() == 5 * 64 * 64 and together[name].dtype == np.int64
    truth = np.bincount(np.concatenate([fold.to_index[dataset.mask(s)].ravel() for s in dataset.val]), minlength=17)
    assert np.array_equal(together["all"].sum(1), truth)
    some = accumulate_confusion(stored, rows, 17, lambda name, sample_id: name == "all" or sample_id == dataset.val[3])
    assert np.array_equal(some["all"], together["all"]) and some["base"].sum() == 64 * 64


class _Strips:
    """Two images of other shapes than the canvas: left half class 1, right half class 2, one unlabeled row."""

    classes, folds, train, val = ("a", "b"), ((2,),), [], ["wide", "tall"]

    def mask(self, sample_id):
        mask = np.ones((20, 36) if sample_id == "wide" else (36, 20), np.uint8)
        mask[:, mask.shape[1] // 2 :] = 2
        mask[0] = 255
        return mask

    def image(self, sample_id):
        return np.repeat(((self.mask(sample_id) == 2) * np.uint8(255))[..., None], 3, 2)

    def areas(self, sample_id):
        return {1: 0.5, 2: 0.5}


class _Bright(torch.nn.Module):
    """A backbone whose one feature is brightness at stride 2."""

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 2)


@pytest.mark.parametrize("kind", ["plain", "diam"])
@pytest.mark.parametrize("space", ["original", "canvas"])
def test_queries_of_any_shape_are_predicted_in_the_space_of_their_label(space, kind):
    from syn4seg.segmenter.backbones import Backbone

    dataset = _Strips()
    net = Segmenter(Backbone(_Bright(), 1, 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 2, 1, ())
    net.bottleneck = torch.nn.Identity()
    perfect = Classifier(torch.tensor([[0.0], [-9.0], [9.0]]), torch.tensor([-1.0, 0.0, 0.0]))
    stored = list(iterate_queries(net, dataset, fold_of(dataset, 0), dataset.val, canvas=Canvas(24, kind), space=space))
    for query, sample_id in zip(stored, dataset.val, strict=True):
        assert query.sample_id == sample_id
        assert query.label.shape == ((24, 24) if space == "canvas" else dataset.mask(sample_id).shape)
        assert predictor_of(perfect)(query).shape == query.label.shape
    got = metrics(accumulate_confusion(stored, {"x": predictor_of(perfect)}, 3)["x"], 1, 1)
    assert got["base"] > 0.88 and got["novel"] > 0.88


def test_a_predictor_may_not_leave_out_pixels_that_it_would_get_wrong():
    label = np.array([[0, 1, 255]], np.uint8)
    query = Query("a", torch.zeros(1), label, Canvas(3))
    complete, abstaining = np.array([[0, 1, 255]], np.uint8), np.array([[0, 255, 1]], np.uint8)
    assert accumulate_confusion([query], {"x": lambda _: complete}, 2)["x"].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="the predictor x returned 255 for labelled pixels"):
        accumulate_confusion([query], {"x": lambda _: abstaining}, 2)
    assert abstentions(abstaining, label, 2).tolist() == [0, 1]
