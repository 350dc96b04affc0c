"""The novel stage: which samples, labels and pixel weights the rows train on."""

from __future__ import annotations

import numpy as np

from syn4seg.config.loading import load
from syn4seg.stages.checks import check
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.rows import ROWS
from syn4seg.store.samples import StoredSample as Record


def test_rows_train_on_the_bank_and_the_label_column_that_the_table_says(fresh, small):
    run, _ = fresh
    config = load(None, small)
    dataset, fold = check(config)
    stage = NovelStage(config, run, dataset, fold)
    labels = {s: np.full((64, 64), i, np.uint8) for i, s in enumerate(("draft", "kept", "relabeled", "label"))}
    record = {"ok": Record({"reason": ""}, labels), "rejected": Record({"reason": "target_too_small"}, labels)}
    expected = {
        "class_name_raw": ["ok", "rejected"],
        "hdig_raw": ["ok", "rejected"],
        "apf": ["ok", "rejected"],
        "apf_apr": ["ok"],
        "syn4seg": ["ok"],
    }
    for number, (row, there) in enumerate(expected.items()):
        bank, column = ROWS[row]
        found = {name: stage.training_labels(bank, sample) for name, sample in record.items()}
        assert [name for name, columns in found.items() if column in columns] == there
        assert all(columns[column].max() == max(0, number - 1) for columns in found.values() if column in columns)
    assert [r for r in ROWS if r not in expected] == ["support_only"]


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
