"""Scores in the library are those of one confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import syn4seg
from syn4seg.labeling.prototypes import normalize
from syn4seg.seeds import seeded
from syn4seg.segmenter.evaluation import confusion, metrics


def case(seed: object):
    """A draft of three classes with unlabeled pixels, features on a grid, unit prototypes, and the segmenter's confidence."""
    rng = seeded("library", seed)
    label = np.kron(rng.choice(np.array([0, 0, 1, 4, 5, 255], np.uint8), (6, 7)), np.ones((4, 4), np.uint8))
    features = rng.normal(size=(8, 12, 14)).astype(np.float32)
    prototypes = {k: normalize(rng.normal(size=8)) for k in (0, 1, 4, 5)}
    return label, features, prototypes, rng.random(label.shape)


LABEL, FEATURES, PROTOTYPES, _ = case("mistakes")


# --------------------------------------------------------------------------------------------------- scoring
def test_scores_are_those_of_one_confusion_matrix_whatever_the_numbers_of_the_classes_and_however_the_images_come():
    rng = seeded("library", "scores")
    shapes = [(9, 7), (5, 11), (8, 8)]
    inner = [rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), s, p=[0.4, 0.2, 0.2, 0.1, 0.1]) for s in shapes]
    guesses = [np.where(rng.random(s) < 0.7, x % 255, 0).astype(np.uint8) for s, x in zip(shapes, inner, strict=True)]
    matrix = sum(confusion(g, x, 4) for g, x in zip(guesses, inner, strict=True))
    wanted = metrics(np.asarray(matrix), 2, 1)
    numbers = np.arange(256, dtype=np.uint8)
    numbers[[1, 2, 3]] = 40, 7, 20
    labels, predictions = [numbers[x] for x in inner], [numbers[g] for g in guesses]
    told = []
    given = [
        ((labels, predictions), len(labels)),
        ((iter(labels), (p.astype(np.int64) for p in predictions)), None),
        ((zip(labels, predictions, strict=True),), None),
        (([torch.from_numpy(x) for x in labels], [torch.from_numpy(p) for p in predictions]), len(labels)),
    ]
    for arguments, total in given:
        scores = syn4seg.evaluate(*arguments, base=[40, 7], novel=[20], progress=lambda *at: told.append(at))
        np.testing.assert_array_equal(scores.confusion, matrix)
        assert {k: getattr(scores, k) for k in wanted if k != "per_class"} == {k: v for k, v in wanted.items() if k != "per_class"}
        assert list(scores.per_class) == [0, 40, 7, 20] and list(scores.per_class.values()) == wanted["per_class"]
        assert told[-3:] == [(i, total) for i in (1, 2, 3)]
    assert isinstance(scores.confusion, torch.Tensor)


def test_one_map_and_a_stack_of_maps_are_images_too_and_absent_classes_are_nan(capsys):
    one = syn4seg.evaluate(LABEL, LABEL, base=[1, 4], novel=[5, 6])
    many = syn4seg.evaluate(np.stack([LABEL] * 3), np.stack([LABEL] * 3), base=[1, 4], novel=[5, 6], progress=True)
    assert one.base == many.base == one.novel == 1.0 and np.isnan(one.per_class[6])
    np.testing.assert_array_equal(many.confusion, 3 * one.confusion)
    said = capsys.readouterr()
    assert said.out == "" and "images" in said.err


def test_a_prediction_of_255_is_wrong_and_no_way_to_be_left_out():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (40, 40)).astype(np.uint8)
    guess = np.where(rng.random((40, 40)) < 0.6, truth, (truth + 1) % 3).astype(np.uint8)
    abstaining = np.where(guess == truth, guess, 255).astype(np.uint8)
    scores = syn4seg.evaluate([truth], [abstaining], base=[1], novel=[2])
    slow = [((truth == k) & (abstaining == k)).sum() / ((truth == k) | (abstaining == k)).sum() for k in range(3)]
    assert [scores.per_class[k] for k in range(3)] == pytest.approx(slow) and max(slow) < 0.7
    assert scores.missed.tolist() == [int(((truth == k) & (abstaining == 255)).sum()) for k in range(3)]
    truth[:, :20] = 255  # what the truth leaves out is left out, whatever was predicted
    again = syn4seg.evaluate([truth[:, 20:]], [abstaining[:, 20:]], base=[1], novel=[2])
    assert syn4seg.evaluate([truth], [abstaining], base=[1], novel=[2]).per_class == again.per_class


def test_rows_of_one_table_average_the_classes_that_the_truth_holds():
    truth = np.array([[0, 1, 1, 2]], np.uint8)
    right, invented = truth.copy(), np.array([[0, 1, 3, 2]], np.uint8)
    figures = [syn4seg.evaluate([truth], [guess], base=[1, 3], novel=[2]) for guess in (right, invented)]
    assert all(np.isnan(f.per_class[3]) for f in figures)
    assert figures[0].base == 1.0 and figures[1].base == 0.5  # of class 1 alone
