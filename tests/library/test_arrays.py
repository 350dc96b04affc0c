"""Mistakes in arguments of the library: one sentence that names value and expectation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import syn4seg
from syn4seg.errors import UserError
from syn4seg.labeling.prototypes import normalize
from syn4seg.library.arrays import check_masks
from syn4seg.report.picture import Picture
from syn4seg.report.reading import GallerySample
from syn4seg.seeds import seeded


def case(seed: object):
    """A draft of three classes with unlabeled pixels, features on a grid, unit prototypes, and the segmenter's confidence."""
    rng = seeded("library", seed)
    label = np.kron(rng.choice(np.array([0, 0, 1, 4, 5, 255], np.uint8), (6, 7)), np.ones((4, 4), np.uint8))
    features = rng.normal(size=(8, 12, 14)).astype(np.float32)
    prototypes = {k: normalize(rng.normal(size=8)) for k in (0, 1, 4, 5)}
    return label, features, prototypes, rng.random(label.shape)


LABEL, FEATURES, PROTOTYPES, _ = case("mistakes")

BAD = {
    "scores for a label": (lambda: filter_with(draft=LABEL.astype(float)), r"draft has dtype float64; .*argmax"),
    "a negative class": (lambda: filter_with(draft=LABEL.astype(int) - 1), r"draft holds -1; expected 0 \(background\)"),
    "a class above 255": (lambda: filter_with(draft=LABEL.astype(int) * 9), r"draft holds 2295; expected"),
    "a batch of labels": (lambda: filter_with(draft=LABEL[None]), r"draft has shape \(1, 24, 28\); expected \(H, W\): one image"),
    "texts": (lambda: filter_with(draft=[["a"]]), r"draft is a list of <U1; expected numbers"),
    "uneven lists": (lambda: filter_with(draft=[[1], [1, 2]]), r"draft is a list"),
    "an empty label": (lambda: filter_with(draft=LABEL[:0]), r"draft has shape \(0, 28\)"),
    "nan features": (lambda: filter_with(features=FEATURES * np.nan), r"features: 1344 of 1344 numbers are nan or infinite"),
    "features in half precision": (
        lambda: filter_with(features=torch.from_numpy(FEATURES * 1e6).half()),
        r"infinite; .*half precision",
    ),
    "features of a batch": (lambda: filter_with(features=FEATURES[None]), r"features has shape \(1, 8, 12, 14\).*one image"),
    "rows for prototypes": (lambda: filter_with(prototypes=np.eye(8)), r"prototypes is a ndarray; .*dict\(enumerate\(rows\)\)"),
    "a short prototype": (lambda: filter_with(prototypes={5: np.ones(3)}), r"prototypes\[5\] has shape \(3,\); expected \(8,\)"),
    "no prototype of the target": (lambda: filter_with(prototypes={1: np.ones(8)}), r"but not target 5"),
    "a small confidence": (lambda: filter_with(confidence=np.ones((2, 2))), r"confidence has shape \(2, 2\); expected \(24, 28\)"),
    "background as target": (lambda: filter_with(target=0), r"target is 0; expected a class index from 1 to 254"),
    "a fraction as target": (lambda: filter_with(target=1.5), r"target is 1.5; expected a class index"),
    "a cosine above 1": (lambda: filter_with(lambda_keep=1.2), r"lambda_keep is 1.2; expected a number from -1 to 1"),
    "a nan threshold": (lambda: filter_with(lambda_keep=float("nan")), r"lambda_keep is nan"),
    "a text for a number": (lambda: filter_with(min_region="many"), r"min_region is 'many'; expected a number from 0 on"),
    "raw prototypes": (lambda: relabel_with({0: np.ones(8), 5: np.ones(8)}), r"prototypes\[0\] has length 2.828; expected 1"),
    "temperature 0": (lambda: relabel_with(PROTOTYPES, tau=0), r"tau is 0; expected a number above 0"),
    "a missing prototype": (lambda: relabel_with({5: PROTOTYPES[5]}), r"prototypes lacks \[0"),
    "logits for masks": (lambda: check_masks(np.ones((1, 2, 2)), "masks", 1, (2, 2)), r"masks has dtype float64.*> 0"),
    "too few masks": (lambda: syn4seg.refine_boundary(LABEL, np.ones((1, 24, 28), bool), [1]), r"one mask per component"),
    "masks without ious": (lambda: syn4seg.refine_boundary(np.eye(2, dtype=int), np.ones((1, 2, 2), bool)), r"ious is missing"),
    "a number of classes": (lambda: score(base=2, novel=[3]), r"base is 2; .*range\(1, 16\)"),
    "a class twice": (lambda: score(base=[1, 2], novel=[2]), r"base is \[1, 2\] and novel \[2\]; expected different"),
    "a class nobody knows": (lambda: score(base=[1, 4], novel=[9]), r"labels\[0\] holds 5, which is neither"),
    "a larger prediction": (
        lambda: syn4seg.evaluate([LABEL], [LABEL.T], base=[1, 4], novel=[5]),
        r"predictions\[0\] has shape \(28, 24\); expected",
    ),
    "one prediction less": (lambda: syn4seg.evaluate([LABEL] * 2, [LABEL], base=[1, 4], novel=[5]), r"predictions ended first"),
    "no image": (lambda: syn4seg.evaluate([], [], base=[1], novel=[2]), r"labels is empty"),
    "no pairs": (lambda: syn4seg.evaluate([LABEL], base=[1, 4], novel=[5]), r"labels\[0\] is a ndarray; .*pairs"),
    "no embeddings": (lambda: syn4seg.PromptBank().offer("a dog"), r"embeddings is missing and the bank has no encoder"),
    "a zero embedding": (lambda: syn4seg.PromptBank().offer(["a", "b"], [[1, 0], [0, 0]]), r"that of 'b' is zero"),
    "a row too many": (lambda: syn4seg.PromptBank().offer(["a"], np.eye(2)), r"embeddings has shape \(2, 2\); expected \(1, E\)"),
    "no texts": (lambda: syn4seg.PromptBank().offer(["a", 3], np.eye(2)), r"prompts holds 3; expected texts"),
    "no threshold": (lambda: syn4seg.PromptBank(-1), r"lambda_prompt is -1; expected a number above -1 to 1"),
    "no run": (lambda: syn4seg.show("nowhere", "x"), r"nowhere: not a run"),
    "another kind of file": (lambda: Picture(GallerySample({}, None, {})).save("x.jpg"), r"path is 'x.jpg'; .*\.png or \.html"),
}


def filter_with(**changed):
    given = {"draft": LABEL, "features": FEATURES, "prototypes": PROTOTYPES, "target": 5} | changed
    return syn4seg.filter_regions(given.pop("draft"), given.pop("features"), given.pop("prototypes"), **given)


def relabel_with(prototypes, **changed):
    return syn4seg.relabel(LABEL, FEATURES, target=5, prototypes=prototypes, **changed)


def score(**groups):
    return syn4seg.evaluate([LABEL], [LABEL], **groups)


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_sentence_that_names_value_and_expectation(name):
    call, said = BAD[name]
    kind = UserError if name in ("no run", "another kind of file") else ValueError  # of a run, not of an argument
    with pytest.raises(kind, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
