"""The novel stage: which samples, labels and pixel weights the rows train on."""

from __future__ import annotations

import numpy as np

from syn4seg.config.loading import load
from syn4seg.stages.checks import check
from syn4seg.stages.novel import NovelStage


def test_synthetic_pixels_are_trusted_as_far_as_the_registered_segmenter_is_sure(fresh, small):
    run, _ = fresh
    trust = {}
    for g, w in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0)):
        config = load(None, [*small, f"novel.confidence_weight={g}", f"novel.synthetic_weight={w}"])
        dataset, fold = check(config)
        stage = NovelStage(config, run, dataset, fold)
        trust[g, w] = stage.pixel_weights(0, stage.base.replayed[0].features)
    assert trust[0.0, 1.0] is None
    assert np.all(trust[0.0, 0.5] == 0.5)
    sure = trust[1.0, 1.0].astype(float)
    assert sure.min() > 1 / 17
    assert sure.max() <= 1
    assert np.allclose(trust[0.5, 1.0], 0.5 + 0.5 * sure, atol=2e-3)


def test_the_features_of_an_image_are_computed_once(fresh, small, monkeypatch):
    run, _ = fresh
    config = load(None, small)
    stage = NovelStage(config, run, *check(config))
    image = stage.dataset.image(stage.dataset.val[0])
    features = stage.features_of("a", image)
    monkeypatch.setattr(type(stage.segmenter), "features", None)
    assert stage.features_of("a", np.zeros_like(image)) is features
