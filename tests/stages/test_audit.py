"""The leak audit: an honest run passes, and each planted leak is found and named."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from syn4seg.config.loading import load
from syn4seg.data.datasets import EmbeddedDataset, fold_of
from syn4seg.errors import UserError
from syn4seg.stages import audit
from syn4seg.stages.audit import Finding, audit_run
from syn4seg.stages.command import verdict_of
from syn4seg.store.files import write_json
from syn4seg.store.images import write_image
from syn4seg.store.rundir import RunDir
from syn4seg.store.tables import write_parquet

DATASET = EmbeddedDataset(40, 6)
FOLD = fold_of(DATASET, 0)


@pytest.fixture
def honest(tmp_path):
    """The records of a run without any leak: 12 base images, 4 support images, 4 queries."""
    run = RunDir(tmp_path / "run")
    write_json(
        run.base_facts,
        {
            "origin": "trained here",
            "rule": "all",
            "images": DATASET.train[:12],
            "chosen": "the last epoch",
            "label_pixels": {"0": 900, "1": 40, "12": 7, "255": 3},
            "weights": "none",
        },
    )
    support = {FOLD.names[k - 1]: [DATASET.train[20 + i]] for i, k in enumerate(FOLD.novel)}
    write_json(
        run.draw(0).support_json,
        {"support": support, "support_from": "train", "replayed": DATASET.train[:3], "base_prototypes_from": DATASET.train[:2]},
    )
    write_json(run.draw(0).queries, DATASET.val[:4])
    write_parquet(run.prompts, pa.table({"prompt": ["a large red star on sand", "two moons"]}))
    return run


def _change(path, **values):
    write_json(path, json.loads(path.read_text()) | values)


def _verdicts(run, *overrides):
    found = audit_run(load(None, ["data.support_reserve=0.5", "base.checkpoint=train", *overrides]), run, DATASET, FOLD)
    return {finding.claim: finding.verdict for finding in found}


def _leaks(run, *overrides):
    return [claim for claim, verdict in _verdicts(run, *overrides).items() if verdict == "LEAK"]


def test_an_honest_run_is_proved_in_every_claim(honest):
    verdicts = _verdicts(honest)
    assert set(verdicts.values()) == {"ok"} and len(verdicts) == 11


def test_a_validation_image_in_base_training_is_a_leak(honest):
    _change(honest.base_facts, images=[*DATASET.train[:12], DATASET.val[1]])
    assert _leaks(honest) == ["no validation image reached base training"]


def test_a_support_image_in_base_training_is_a_leak_unless_the_overlap_is_declared(honest):
    _change(honest.base_facts, images=DATASET.train[:25])
    assert _leaks(honest) == ["no support image reached base training"]
    found = _verdicts(honest, "data.support_reserve=0")
    assert found["no support image reached base training"] == "stated" and "LEAK" not in found.values()


def test_a_novel_index_in_the_labels_of_base_training_is_a_leak(honest):
    _change(honest.base_facts, label_pixels={"0": 900, "13": 1})
    assert _leaks(honest) == ["no novel mask reached base training"]


def test_a_checkpoint_chosen_otherwise_than_by_its_place_is_a_leak(honest):
    _change(honest.base_facts, chosen="best on the val list")
    assert _leaks(honest) == ["no checkpoint was chosen on validation images"]


@pytest.mark.parametrize(
    ("changes", "queries", "claim"),
    [
        ({"replayed": [DATASET.val[0]]}, DATASET.val[:4], "draw 0: no replayed or prototype image is a validation image"),
        ({"support": {"x": [DATASET.val[5]]}}, DATASET.val[:4], "draw 0: no support image is on the val list"),
        ({"support": {"x": [DATASET.val[0]]}, "support_from": "val"}, DATASET.val[:4], "draw 0: no support image is a query"),
        ({}, DATASET.train[30:32], "draw 0: every query is on the val list"),
    ],
)
def test_wrong_images_in_a_draw_are_leaks(honest, changes, queries, claim):
    _change(honest.draw(0).support_json, **changes)
    write_json(honest.draw(0).queries, queries)
    assert _leaks(honest) == [claim]


def test_a_prompt_that_names_a_real_image_is_a_leak(honest):
    write_parquet(honest.prompts, pa.table({"prompt": [f"a star like in {DATASET.val[0]}."]}))
    assert _leaks(honest) == ["no validation or support image reached the prompt bank"]


def test_an_imported_image_that_equals_a_validation_image_is_a_leak(honest, tmp_path):
    folder = ["synthesis.source=folder", f"synthesis.root={tmp_path}"]
    write_image(honest.image("star", "import-star-00000"), np.zeros((8, 8, 3), np.uint8))
    assert _leaks(honest, *folder) == []
    write_image(honest.image("star", "import-star-00001"), DATASET.image(DATASET.val[2]))
    assert _leaks(honest, *folder) == ["no synthetic image is an exact copy of a validation image"]


def test_what_the_records_cannot_prove_is_unknown_and_never_ok(honest):
    _change(honest.base_facts, origin="imported", weights=None, images=None, family="diam", sha256="ab" * 32)
    honest.draw(0).queries.unlink()
    verdicts = _verdicts(honest)
    assert list(verdicts.values()).count("unknown") == 6 and "LEAK" not in verdicts.values()
    honest.base_facts.unlink()
    with pytest.raises(UserError, match=r"base\.json: missing"):
        _verdicts(honest)


@pytest.mark.parametrize(
    ("weights", "verdict"), [("imagenet", "stated"), ("imagenet-v1", "stated"), ("imagenet-v2", "stated"), ("a.pth", "unknown")]
)
def test_published_imagenet_weights_are_known_by_each_of_their_names(weights, verdict):
    assert audit._audit_weights({"origin": "trained here", "weights": weights}).verdict == verdict


def test_the_verdict_counts_what_is_proven_and_names_a_leak():
    found = [Finding("a", "ok", ""), Finding("b", "stated", ""), Finding("c", "unknown", "")]
    assert verdict_of(found) == ("no leak: 1 of 3 claims are proven, 1 stated by the configuration, 1 not known from the records")
    assert verdict_of([*found, Finding("d", "LEAK", "")]).startswith("LEAK: 1 of 4 claims")
