"""Prototype imprinting, and what all baselines share: names, facts, and the support set on the feature grid."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from syn4seg.baselines import NAMES, build, facts
from syn4seg.baselines.imprinting import SupportCells, nearest
from syn4seg.data.canvas import Canvas
from syn4seg.errors import UserError
from syn4seg.segmenter.evaluation import Query
from syn4seg.segmenter.network import Classifier, upsample
from syn4seg.segmenter.novel import Sample

DIM, GRID, SIDE, BASE, NOVEL = 8, 6, 20, 2, 2


def _label(seed):
    rng = np.random.default_rng(seed)
    label = np.kron(rng.choice([0, 0, 3, 4, 255], (5, 5)), np.ones((4, 4))).astype(np.uint8)
    label[:8, :8], label[8:16, :8], label[16:, 8:] = 3, 4, 255
    return label


def _features(seed):
    return torch.randn(DIM, GRID, GRID, generator=torch.Generator().manual_seed(seed)).relu().half()


def _support(shots=2):
    return [Sample(f"{k}-{s}", _features(10 * k + s), _label(10 * k + s), "support") for k in (3, 4) for s in range(shots)]


def _base(seed=0):
    g = torch.Generator().manual_seed(seed)
    return Classifier(torch.randn(1 + BASE, DIM, generator=g), torch.randn(1 + BASE, generator=g))


def _built(name, support, base=None, base_classes=BASE, novel_classes=NOVEL, prototypes=None):
    return build(
        name,
        base=base or _base(),
        support=support,
        base_classes=base_classes,
        novel_classes=novel_classes,
        shots=1,
        seed=0,
        prototypes=prototypes,
    )


def _query(seed, side=SIDE):
    return Query(f"q{seed}", _features(seed), np.zeros((side, side), np.uint8), Canvas(side))


def test_imprinting_equals_a_loop_over_cells_and_pixels():
    support, base, query = _support(), _base(), _query(99)
    rows = [w / w.norm() for w in base.weight]
    for k in (3, 4):
        total, count = torch.zeros(DIM), 0
        for s in support:
            for y, x in np.ndindex(GRID, GRID):
                if s.label[y * SIDE // GRID, x * SIDE // GRID] == k:
                    total, count = total + s.features[:, y, x].float(), count + 1
        rows.append(total / count / (total / count).norm())
    scores = torch.zeros(1, 1 + BASE + NOVEL, GRID, GRID)
    for y, x in np.ndindex(GRID, GRID):
        f = query.features[:, y, x].float()
        scores[0, :, y, x] = torch.stack([10 * f @ row / max(float(f.norm()), 1e-12) for row in rows])
    found = _built("imprinting", support)(query)
    assert found.dtype == np.uint8 and (found == upsample(scores, (SIDE, SIDE))[0].argmax(0).numpy()).mean() > 0.995


def test_given_prototypes_replace_the_rows_of_a_linear_classifier_and_of_no_other():
    base, rows, query = _base(), torch.randn(1 + BASE, DIM, generator=torch.Generator().manual_seed(3)), _query(5)
    rows[1] = 0  # a class that no base image shows keeps its row
    there = base.replaced(torch.where(rows.any(1, keepdim=True), rows, base.weight), base.bias)
    found = _built("imprinting", _support(), prototypes=rows)(query)
    assert np.array_equal(found, _built("imprinting", _support(), base=there)(query))
    assert not np.array_equal(found, _built("imprinting", _support())(query))
    cosine = Classifier(base.weight, base.bias, cosine=True)
    same = (_built("imprinting", _support(), base=cosine, prototypes=p)(query) for p in (None, rows))
    assert np.array_equal(*same)


@pytest.mark.parametrize("scale", [0.1, 50.0])
def test_imprinting_does_not_see_the_scale_of_the_base_rows_or_their_biases(scale):
    base = _base()
    other = base.replaced(base.weight * scale, base.bias + torch.arange(1.0 + BASE))
    a, b = (_built("imprinting", _support(), base=v)(_query(5)) for v in (base, other))
    assert (a == b).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_as_large_as_the_label_and_does_not_depend_on_the_order_of_the_support(name):
    label = np.zeros((13, 27), np.uint8)
    query = dataclasses.replace(_query(7), label=label, shape=label.shape)
    a, b = (_built(name, s)(query) for s in (_support(), _support()[::-1]))
    assert a.shape == label.shape and a.dtype == np.uint8 and a.max() <= BASE + NOVEL and (a == b).all()


@pytest.mark.parametrize("name", NAMES)
def test_unlabelled_support_pixels_teach_nothing(name):
    changed = []
    for s in _support():
        unlabelled = nearest(torch.from_numpy(s.label), (GRID, GRID)) == 255
        assert unlabelled.any()
        changed.append(dataclasses.replace(s, features=torch.where(unlabelled, 9, s.features)))
    a, b = (_built(name, s)(_query(3)) for s in (_support(), changed))
    assert (a == b).all()


@pytest.mark.parametrize("name", NAMES)
def test_facts_say_what_differs(name):
    found = facts(name)
    assert found["source"] and found["settings"] and found["deviations"]
    assert found["transductive"] == (name == "diam")


def test_a_class_that_the_grid_loses_keeps_its_fullest_cell_and_only_where_it_is_lost_everywhere():
    support = _support()
    for s in support:
        s.label[s.label == 4] = 0
    support[0].label[12, 11] = 4  # no cell samples this pixel
    cells = SupportCells.of(support, torch.zeros(1), BASE, NOVEL)
    place = (cells.labels == 4).nonzero().tolist()
    assert len(place) == 1 and place[0][0] == 0
    y, x = place[0][1:]
    assert y <= 12 * GRID / SIDE < y + 1 and x <= 11 * GRID / SIDE < x + 1
    assert torch.allclose(cells.means()[1], support[0].features[:, y, x].float())
    support[1].label[:] = 4
    assert not (SupportCells.of(support, torch.zeros(1), BASE, NOVEL).labels[0] == 4).any()


def test_bad_input_is_refused_by_name():
    with pytest.raises(UserError, match="'prototype' is unknown; expected imprinting"):
        _built("prototype", _support())
    with pytest.raises(UserError, match="'prototype' is unknown"):
        facts("prototype")
    with pytest.raises(UserError, match=r"3 rows; expected 5"):
        _built("imprinting", _support(), base_classes=4)
    with pytest.raises(UserError, match=r"novel class index 5 covers no cell of the 4 support samples"):
        _built("imprinting", _support(), novel_classes=3)
    with pytest.raises(UserError, match=r"'4-0' has class index 4; expected 0..3"):
        _built("imprinting", _support()[2:], novel_classes=1)
    with pytest.raises(UserError, match="no support sample"):
        _built("imprinting", [])
