"""What all baselines share: the table, facts, and the support set on the feature grid."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from syn4seg.baselines import BASELINES, build, facts_of, find_baseline, title_of
from syn4seg.baselines.support import SupportCells, nearest
from syn4seg.data.canvas import Canvas
from syn4seg.errors import UserError
from syn4seg.segmenter.evaluation import Query
from syn4seg.segmenter.network import Classifier
from syn4seg.segmenter.novel import TrainingSample

DIM, GRID, SIDE, BASE, NOVEL = 8, 6, 20, 2, 2


def block_label(seed):
    rng = np.random.default_rng(seed)
    label = np.kron(rng.choice([0, 0, 3, 4, 255], (5, 5)), np.ones((4, 4))).astype(np.uint8)
    label[:8, :8], label[8:16, :8], label[16:, 8:] = 3, 4, 255
    return label


def noise_features(seed):
    return torch.randn(DIM, GRID, GRID, generator=torch.Generator().manual_seed(seed)).relu().half()


def support_set(shots=2):
    return [
        TrainingSample(f"{k}-{s}", noise_features(10 * k + s), block_label(10 * k + s), "support")
        for k in (3, 4)
        for s in range(shots)
    ]


def base_classifier(seed=0):
    g = torch.Generator().manual_seed(seed)
    return Classifier(torch.randn(1 + BASE, DIM, generator=g), torch.randn(1 + BASE, generator=g))


def build_on(name, support, base=None, base_classes=BASE, novel_classes=NOVEL, prototypes=None):
    return build(
        name,
        base=base or base_classifier(),
        support=support,
        base_classes=base_classes,
        novel_classes=novel_classes,
        shots=1,
        seed=0,
        prototypes=prototypes,
    )


def noise_query(seed, side=SIDE):
    return Query(f"q{seed}", noise_features(seed), np.zeros((side, side), np.uint8), Canvas(side))


def test_a_class_that_the_grid_loses_keeps_its_fullest_cell_and_only_where_it_is_lost_everywhere():
    support = support_set()
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


@pytest.mark.parametrize("name", BASELINES)
def test_a_result_is_as_large_as_the_label_and_does_not_depend_on_the_order_of_the_support(name):
    label = np.zeros((13, 27), np.uint8)
    query = dataclasses.replace(noise_query(7), label=label, shape=label.shape)
    a, b = (build_on(name, s)(query) for s in (support_set(), support_set()[::-1]))
    assert a.shape == label.shape and a.dtype == np.uint8 and a.max() <= BASE + NOVEL and (a == b).all()


@pytest.mark.parametrize("name", BASELINES)
def test_unlabelled_support_pixels_teach_nothing(name):
    changed = []
    for s in support_set():
        unlabelled = nearest(torch.from_numpy(s.label), (GRID, GRID)) == 255
        assert unlabelled.any()
        changed.append(dataclasses.replace(s, features=torch.where(unlabelled, 9, s.features)))
    a, b = (build_on(name, s)(noise_query(3)) for s in (support_set(), changed))
    assert (a == b).all()


@pytest.mark.parametrize("name", BASELINES)
def test_facts_say_what_differs(name):
    facts = facts_of(name)
    assert facts["source"] and facts["settings"] and facts["deviations"]
    assert facts["transductive"] == (name == "diam")


def test_bad_input_is_refused_by_name():
    for refuse in (find_baseline, facts_of, lambda name: build_on(name, support_set())):
        with pytest.raises(UserError, match=r"^evaluation.baselines=bmc: no such baseline; .* imprinting, .*mean bcm\?$"):
            refuse("bmc")
    with pytest.raises(UserError, match=r"diam, bcm$"):
        find_baseline("zzzz")
    assert title_of("diam") == "DIaM" and title_of("a baseline of an older version") == "a baseline of an older version"
    with pytest.raises(ValueError, match=r"3 rows; expected 5"):
        build_on("imprinting", support_set(), base_classes=4)
    with pytest.raises(UserError, match=r"novel class index 5 covers no cell of the 4 support samples"):
        build_on("imprinting", support_set(), novel_classes=3)
    with pytest.raises(UserError, match=r"'4-0' has class index 4; expected 0..3"):
        build_on("imprinting", support_set()[2:], novel_classes=1)
    with pytest.raises(UserError, match="no support sample"):
        build_on("imprinting", [])
