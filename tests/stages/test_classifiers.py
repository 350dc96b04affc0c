"""The classifiers of the novel stage: how they start, and the file that keeps one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.segmenter.network import Classifier
from syn4seg.stages.checks import check
from syn4seg.stages.classifiers import (
    base_classifier,
    digest_of_ids,
    initial_classifier,
    load_classifier,
    pixel_weights,
    read_learned_digest,
    save_classifier,
    schedule_of,
    seed_of,
)
from syn4seg.stages.labels import load_on_device


def classifier(seed: int = 0) -> Classifier:
    rng = torch.Generator().manual_seed(seed)
    return Classifier(torch.randn(5, 3, generator=rng), torch.randn(5, generator=rng), True, False)


def test_a_classifier_comes_back_and_equal_ones_give_equal_bytes(tmp_path):
    files = set()
    for number in range(5):
        save_classifier(tmp_path / f"{number}", classifier(), "digest")
        files.add((tmp_path / f"{number}").read_bytes())
    assert len(files) == 1
    again = load_classifier(tmp_path / "0")
    assert torch.equal(again.weight, classifier().weight) and torch.equal(again.bias, classifier().bias)
    assert (again.cosine, again.align_corners) == (True, False)
    assert read_learned_digest(tmp_path / "0") == "digest"


def test_a_missing_file_and_one_that_is_no_classifier_are_named_with_the_remedy(tmp_path):
    assert read_learned_digest(tmp_path / "absent") is None
    with pytest.raises(UserError, match="absent: missing; run `syn4seg train`"):
        load_classifier(tmp_path / "absent")
    (tmp_path / "other").write_bytes(save({"weight": torch.zeros(1)}, metadata={"old": json.dumps(1)}))
    assert read_learned_digest(tmp_path / "other") is None
    with pytest.raises(UserError, match="other: no classifier of this version; delete it"):
        load_classifier(tmp_path / "other")


def test_the_digest_of_ids_depends_on_the_set_alone():
    assert digest_of_ids(["b", "a"]) == digest_of_ids(iter(["a", "b"])) != digest_of_ids(["a"])
    assert digest_of_ids(["ab"]) != digest_of_ids(["a", "b"]) and len(digest_of_ids([])) == 32


def test_novel_rows_point_where_the_prototypes_do_and_base_rows_are_those_of_the_base_stage(prepared, small):
    run, _ = prepared
    config = load(None, small)
    _, fold = check(config)
    segmenter = load_on_device(run, "cpu")
    prototypes = np.random.default_rng(0).normal(size=(17, 128)).astype(np.float32)
    start, base = initial_classifier(segmenter, prototypes, fold), base_classifier(segmenter)
    assert start.weight.shape == (17, 128) and torch.equal(start.weight[:13], base.weight)
    cosine = torch.nn.functional.cosine_similarity(start.weight[13:], torch.from_numpy(prototypes[13:]))
    assert torch.allclose(cosine, torch.ones(4), atol=1e-6)
    assert base.weight.device.type == "cpu" and base.weight.dtype == torch.float32 and not base.weight.requires_grad


def test_every_key_of_the_novel_stage_reaches_the_schedule(small):
    keys = ("support_batch=3", "synthetic_batch=5", "replay_batch=2", "steps=9", "lr=0.5", "distillation=0.25", "ramp=0.5")
    config = load(None, [*small, *(f"novel.{key}" for key in keys), "novel.background_weight=0.5", "data.base_in_support=kept"])
    schedule = schedule_of(config)
    assert schedule.per_step == {"support": 3, "synthetic": 5, "replay": 2}
    assert (schedule.steps, schedule.lr, schedule.distill, schedule.ramp) == (9, 0.5, 0.25, 0.5)
    assert schedule.background_weight == 0.5 and schedule.merge_base == ()
    assert schedule_of(load(None, small)).merge_base == ("support",)


def test_draws_have_seeds_of_their_own(small):
    seeds = {seed_of(load(None, [*small, f"seed={seed}"]), draw) for seed in range(5) for draw in range(5)}
    assert len(seeds) == 25


def test_pixels_weigh_less_the_less_sure_the_registered_classifier_is(small):
    config = load(None, [*small, "novel.confidence_weight=0.5", "novel.synthetic_weight=0.8"])
    features = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    weights = pixel_weights(config, classifier(), features)
    assert weights is not None and weights.dtype == np.float16 and weights.shape == (64, 64)
    confidence = classifier().pixels(features[None], 64).softmax(1)[0].amax(0).numpy()
    assert np.allclose(weights, 0.8 * (0.5 + 0.5 * confidence), atol=1e-3)
