"""Round 0: what a registration holds, and how it is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.stages.base_data import shuffled_base_images
from syn4seg.stages.checks import check
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.setup import base_images, support_of
from syn4seg.stages.support import Registration, keep_thresholds, support_samples
from syn4seg.store.seals import write_sealed


def test_registration_survives_its_file(fresh, small):
    run, names = fresh
    made = Registration.load(run.draw(0))
    assert made.weight.shape == made.prototypes.shape == (17, 128)
    assert made.thresholds == {13: 0.3, 14: 0.3, 15: 0.3, 16: 0.3}
    assert np.allclose(np.linalg.norm(made.prototypes[13:], axis=1), 1, atol=1e-5)
    facts = json.loads(run.draw(0).support_json.read_text())
    assert set(facts["support"]) == set(names[13:])
    with pytest.raises(UserError, match="missing; run `syn4seg refine`"):
        Registration.load(run.draw(5))


def test_equal_registrations_give_equal_bytes_and_every_field_comes_back(fresh):
    run, _ = fresh
    draw, files = run.draw(0), set()
    registration = replace(Registration.load(draw), cosine=True, thresholds={13: 0.25, 16: -0.5})
    for _ in range(20):
        registration.save(draw.support)
        files.add(draw.support.read_bytes())
        again = Registration.load(draw)
        assert again.thresholds == registration.thresholds and (again.cosine, again.align_corners) == (True, False)
        assert np.array_equal(again.prototypes, registration.prototypes)
    assert len(files) == 1


@pytest.mark.parametrize("flags", [{}, {"cosine": "true", "align_corners": "true"}])
def test_a_registration_of_an_older_version_is_read(fresh, flags):
    run, _ = fresh
    draw = run.draw(0)
    registration = Registration.load(draw)
    tensors = {key: getattr(registration, key) for key in ("weight", "bias", "prototypes")}
    write_sealed(draw.support, save(tensors, metadata={"thresholds": json.dumps({"13": 0.5, "14": 0.75}), **flags}))
    again = Registration.load(draw)
    assert again.thresholds == {13: 0.5, 14: 0.75} and np.array_equal(again.weight, registration.weight)
    assert (again.cosine, again.align_corners) == (bool(flags), bool(flags))


def test_a_support_quantile_gives_thresholds_between_the_extremes(fresh, small):
    run, _ = fresh
    limits = {}
    for q in (0.0, 0.5, 1.0):
        config = load(None, [*small, f"labeling.lambda_keep={{support_quantile: {q}}}", "data.shots=2"])
        dataset, fold = check(config)
        stage = NovelStage(config, run, dataset, fold)
        samples = support_samples(config, dataset, fold, support_of(config, dataset, fold, 0), stage.real_features)
        limits[q] = keep_thresholds(config, fold, samples)
    for k in limits[0.0]:
        assert -1 <= limits[0.0][k] <= limits[0.5][k] <= limits[1.0][k] <= 1


def test_replayed_and_prototype_images_are_base_images_in_an_order_that_the_seed_names(small):
    config, other = load(None, small), load(None, [*small, "seed=1"])
    dataset, fold = check(config)
    order = shuffled_base_images(config, dataset, fold)
    assert sorted(order) == sorted(base_images(config, dataset, fold)) and order == shuffled_base_images(config, dataset, fold)
    assert order != shuffled_base_images(other, dataset, fold)


def test_base_samples_show_novel_objects_as_background(fresh, small):
    run, _ = fresh
    config = load(None, [*small, "novel.replay_images=5", "labeling.base_prototype_images=9"])
    dataset, fold = check(config)
    base = NovelStage(config, run, dataset, fold).base
    replayed, prototypes = ({s.sample_id for s in samples} for samples in (base.replayed, base.prototype_images))
    assert len(replayed) == 5 and len(prototypes) == 9 and replayed < prototypes
    assert all(s.label[s.label < 255].max() <= len(fold.base) for s in base.prototype_images)
    assert any(set(np.unique(dataset.mask(s))) & set(fold.novel) for s in prototypes)
