"""BCM: only a parent's pixels can change, families and shots come from the support set, and toy classes split perfectly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.baselines import bcm, build
from syn4seg.baselines.support import SupportCells
from syn4seg.data.canvas import Canvas
from syn4seg.seeds import seeded
from syn4seg.segmenter.evaluation import Query, scores_to_classes
from syn4seg.segmenter.network import Classifier, upsample
from syn4seg.segmenter.novel import TrainingSample

DIM, GRID, SIDE, BASE = 8, 6, 24, 2
LOOKS = torch.tensor(
    [
        [4, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 4, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 4, 1, 0, 0],  # background, base 1, base 2
        [4, 0, 0, 0, 0, 0, 3, 0],
        [0, 0, 4, 0, 0, 0, 0, 3],  # novel 3 looks like background, novel 4 like base 1
    ]
).float()
BASE_MODEL = Classifier(LOOKS[:3].clone(), torch.zeros(3))


def _sample(name, classes, labels=None, noise=0.05):
    """Upright strips of the looks of `classes` under a brightness that varies from cell to cell, plus noise."""
    rng = seeded("strips", name)
    grid = np.repeat(classes, GRID // len(classes))[None].repeat(GRID, 0)
    bright = rng.uniform(0.5, 2, (GRID, GRID))
    features = bright * LOOKS.numpy()[grid].transpose(2, 0, 1) + noise * np.abs(rng.standard_normal((DIM, GRID, GRID)))
    label = np.repeat(labels or classes, SIDE // len(classes))[None].repeat(SIDE, 0)
    return TrainingSample(name, torch.from_numpy(features).half(), label.astype(np.uint8), "support")


def _support(shots=1):
    return [_sample(f"{k}-{s}", [0, k, 1], labels=[0, k, 0]) for k in (3, 4) for s in range(shots)]


def _query(sample):
    return Query("q", sample.features, sample.label, Canvas(SIDE))


def _built(support, shots=1, novel=2, seed=0, base=BASE_MODEL):
    return build("bcm", base=base, support=support, base_classes=BASE, novel_classes=novel, shots=shots, seed=seed)


def _before(query, base=BASE_MODEL):
    return scores_to_classes(query, upsample(base(query.features.float()[None]).softmax(1), (SIDE, SIDE)))


@pytest.fixture(scope="module", params=[1, 2])
def built(request):
    return _built(_support(request.param), request.param)


@pytest.mark.parametrize("shots", [1, 2])
def test_separable_classes_are_split_perfectly(shots):
    predict = _built([_sample(f"3-{s}", [0, 3, 0]) for s in range(shots)], shots, novel=1)
    sure = np.abs(np.arange(SIDE) - SIDE / 2 + 0.5) > 3  # beside the one border
    for classes in ([0, 3], [3, 0], [2, 3], [1, 3]):
        query = _query(_sample(f"query-{classes}", classes))
        assert (predict(query) == query.label)[:, sure].all() and (_before(query) != query.label)[:, sure].any()


@settings(max_examples=60, deadline=None)
@given(number=st.integers(0, 10**6), scale=st.floats(0.1, 20))
def test_no_pixel_changes_whose_base_prediction_is_not_a_parent_and_no_pixel_goes_to_another_family(built, number, scale):
    features = torch.from_numpy(np.abs(seeded("noise", number).standard_normal((DIM, GRID, GRID))) * scale).half()
    query = Query("q", features, np.zeros((SIDE, SIDE), np.uint8), Canvas(SIDE))
    before, after = _before(query), built(query)
    assert (after[before == 2] == 2).all()
    assert np.isin(after[before == 0], (0, 3)).all() and np.isin(after[before == 1], (1, 4)).all()


def test_everything_random_is_named_and_the_order_of_the_support_changes_nothing():
    def rows(support, seed):
        return [m.rows.weight for p in _built(support, 2, novel=1, seed=seed).parents for m in p.models]

    support = [_sample(f"3-{s}", [0, 0, 3], noise=1.0) for s in range(2)]
    a, b, c = rows(support, 0), rows(support[::-1], 0), rows(support, 1)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))


def test_the_parent_is_the_most_frequent_base_prediction_on_the_novel_cells():
    rng = seeded("families")
    for _ in range(20):
        support = [
            TrainingSample(
                str(n),
                torch.from_numpy(rng.random((DIM, GRID, GRID))).half(),
                rng.choice([0, 1, 3, 4, 255], (SIDE, SIDE)).astype(np.uint8),
                "support",
            )
            for n in range(3)
        ]
        cells = SupportCells.of(support, BASE_MODEL.weight, BASE, 2)
        expected: dict[int, list[int]] = {}
        for k in (3, 4):
            counts = [0, 0, 0]
            for s in support:
                for y, x in np.ndindex(GRID, GRID):
                    if s.label[y * SIDE // GRID, x * SIDE // GRID] == k:
                        counts[int((BASE_MODEL.weight @ s.features[:, y, x].float()).argmax())] += 1
            expected.setdefault(counts.index(max(counts)), []).append(k)
        assert bcm.find_parents(BASE_MODEL, cells) == expected


def test_two_novel_classes_of_one_parent_are_told_apart_by_one_model():
    base = BASE_MODEL.replaced(LOOKS[:3].clone(), torch.tensor([9.0, 0, 9]))  # base 1 is mostly taken for background
    base.weight[0, 2:4] = base.weight[1, 2:4]
    predict = _built(_support(), base=base)
    assert [(p.index, p.novel, [m.outcomes for m in p.models]) for p in predict.parents] == [(0, [3, 4], [[0, 1, 2]])]
    result = predict(_query(_sample("pair", [3, 4])))
    assert (result[:, :8] == 3).all() and (result[:, -8:] == 4).all()


def test_shots_hold_every_image_once_and_one_of_each_class():
    cells = SupportCells.of(_support(5), BASE_MODEL.weight, BASE, 2)
    assert bcm.assign_shots(cells, 5).tolist() == [0, 1, 2, 3, 4] * 2
    models = _built(_support(3)[:3], 3, novel=1).parents[0].models
    assert [(m.votes, m.outcomes) for m in models] == [(1, [0, 1])] * 3 + [(3, [0, 1])]
    assert [m.votes for m in _built(_support(1)[:1], 1, novel=1).parents[0].models] == [1]


def test_the_ensemble_is_a_weighted_mean_over_the_models_that_know_an_outcome():
    rng = seeded("ensemble")
    x = torch.from_numpy(rng.random((1, DIM, 2, 2))).float()
    models = [
        bcm.Regression(Classifier(torch.from_numpy(rng.standard_normal((len(o), DIM))).float(), torch.zeros(len(o))), o, votes)
        for o, votes in (([0, 1], 1), ([0, 2], 1), ([0, 1, 2], 5))
    ]
    mixed = bcm.ParentClass(0, [3, 4], models).shares(x)
    for outcome in range(3):
        knows = [m for m in models if outcome in m.outcomes]
        total = sum(m.votes * m.rows(x).softmax(1)[:, m.outcomes.index(outcome)] for m in knows)
        assert isinstance(total, torch.Tensor)
        assert torch.allclose(mixed[:, outcome], total / sum(m.votes for m in knows))


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(0, 30), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_only_the_background_is_drawn_down_to_the_second_largest_outcome(counts, seed):
    outcome = seeded("shuffle", seed).permutation(np.repeat(np.arange(len(counts)), counts))
    if len(np.unique(outcome)) < 2:
        return
    use = bcm.balance_background(outcome, seeded("draw", seed))
    left = np.bincount(outcome[use], minlength=len(counts)).tolist()
    assert len(np.unique(use)) == len(use) and left[1:] == counts[1:] and left[0] == min(counts[0], sorted(counts)[-2])


def test_a_class_of_one_or_few_cells_still_gets_a_model():
    for size in (1, 3):
        support = _support()
        support[0].label[support[0].label == 3] = 0
        support[0].label[: 4 * size, 8:12] = 3
        predict = _built(support)
        assert [p.novel for p in predict.parents] == [[3], [4]]
        assert (predict(_query(_sample("few", [3, 3]))) == 3).mean() > 0.9
    x, outcome = np.zeros((9, DIM), np.float32), np.array([0] * 8 + [1])
    assert bcm._best_strength(x, outcome, ("t",)) == bcm.DEFAULT_STRENGTH


def test_without_anything_but_the_class_on_the_support_set_its_parent_stays():
    predict = _built([_sample("3-0", [3, 3])], novel=1)
    query = _query(_sample("single", [3, 0]))
    assert isinstance(predict, bcm.Bcm) and predict.parents == [] and (predict(query) == _before(query)).all()


def test_the_power_is_the_square_root_and_negative_features_count_as_zero():
    assert bcm.temper(torch.tensor([4.0, 0.25, 0.0, -3.0])).tolist() == [2.0, 0.5, 0.0, 0.0]
