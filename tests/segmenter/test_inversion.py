"""Inverted cells: what a base classifier calls its classes, made without an image of them."""

from __future__ import annotations

import dataclasses

import torch

from syn4seg.segmenter.inversion import SURE, InvertedCells, invert_classifier
from syn4seg.segmenter.network import Classifier
from syn4seg.segmenter.novel import free_cells, imprint, train_novel
from tests.segmenter.test_novel import BASE, BASE_MODEL, DIRECTIONS, SCHEDULE, _sample


def _classifier(cosine: bool = False) -> Classifier:
    torch.manual_seed(1)
    return Classifier(torch.randn(5, 12), torch.randn(5) / 10, cosine)


def test_the_classifier_calls_every_inverted_cell_its_class_and_is_sure():
    cells = torch.rand(40, 12, generator=torch.Generator().manual_seed(2))
    for base in (_classifier(), _classifier(cosine=True)):
        found, classes = invert_classifier(base, cells, 6, 0)
        odds = base(found.T[None, :, :, None])[0, :, :, 0].softmax(0)
        assert set(classes.tolist()) == {1, 2, 3, 4} and (found >= 0).all()
        assert (odds.gather(0, classes[None]) >= SURE[0] - 1e-4).all()
    negative = invert_classifier(_classifier(), cells - 0.5, 6, 0)[0]
    assert (negative < 0).any()


def test_inverted_cells_are_named_by_the_seed_and_none_is_made_of_nothing():
    cells, base = torch.rand(40, 12), _classifier()
    before = base.weight.clone()
    first, again, other = (invert_classifier(base, cells, 6, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first[:5], other[:5]) and torch.equal(base.weight, before)
    assert len(invert_classifier(base, cells[:0], 6, 0)[0]) == 0 and len(invert_classifier(base, cells, 0, 0)[0]) == 0
    assert InvertedCells(base, cells[:0], 6, 0).loss(base, 0) == 0


def test_cells_of_an_object_that_is_learned_start_no_inversion():
    sample = _sample(0, "support", [0, 3])
    left = sample.features[:, :, :3].flatten(1).T.float()  # the half without the object
    assert torch.equal(free_cells([sample], 1 + BASE, False), left)


def test_novel_rows_keep_off_base_objects_that_no_image_shows():
    samples = [_sample(i, "support", [0, 3]) for i in range(4)]
    start = imprint(BASE_MODEL, DIRECTIONS[3:4] + DIRECTIONS[1:2])  # the support object resembles base class 1
    probe = _sample(77, "replay", [1, 1]).features.float()[None]
    odds = []
    for cells in (0, 50):
        schedule = dataclasses.replace(SCHEDULE, per_step={"support": 4}, inverted_cells=cells)
        after = train_novel(start, samples, base_classes=BASE, schedule=schedule, seed=0)(probe)[0].softmax(0)
        odds.append(after[1].mean().item())
    assert odds[1] > odds[0] + 0.1, odds
