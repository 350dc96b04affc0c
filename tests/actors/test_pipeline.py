"""The verbs in order: what a finished step does not repeat, and what processes on other nodes load."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from actors.pipeline import Pipeline, node_inputs
from syn4seg.config.loading import load
from syn4seg.stages.checks import check
from syn4seg.stages.classifiers import load_classifier
from syn4seg.stages.labels import Enhancer
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.results import verify_run
from syn4seg.stages.rows import HDIG
from syn4seg.stages.support import Registration
from syn4seg.store.files import read_json
from syn4seg.store.rundir import RunDir


class Quiet:
    """A display that nobody looks at."""

    def note(self, text: str) -> None:
        pass


def test_with_a_plan_there_is_nothing_to_encode_and_nothing_is_loaded(tmp_path):
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    run.plan.write_bytes(b"a plan")
    pipeline = Pipeline.__new__(Pipeline)
    pipeline.config = load(None, ["placement.runner=inline", f"synthesis.model={tmp_path / 'gone'}"])
    pipeline.run, pipeline.display = run, Quiet()  # type: ignore[assignment]
    pipeline.fold, pipeline.started = None, 0.0  # type: ignore[assignment]
    pipeline.prompts()


def test_training_workers_read_the_data_set_and_the_backbone_where_they_are(tmp_path):
    keys = [
        "data.source=folder",
        f"data.root={tmp_path}",
        "base.checkpoint=train",
        "segmenter.backbone=resnet50",
        "segmenter.weights=/mnt/w.pth",
    ]
    assert not {"data.root", "segmenter.weights"} & set(node_inputs(load(None, keys)))
    found = node_inputs(load(None, [*keys, "placement.training.workers=1"]))
    assert found["data.root"] == str(tmp_path) and found["segmenter.weights"] == "/mnt/w.pth"


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory, small):
    """A run whose labels were drafted by the classifier of a round before."""
    out = tmp_path_factory.mktemp("rounds") / "run"
    command = [sys.executable, "-m", "syn4seg.cli", "run", *small, "labeling.rounds=2", "evaluation.rows=[syn4seg]", "--out", out]
    for _ in range(2):  # the second command finds everything done
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    return RunDir(out)


def labels_of(draw) -> list:
    return [(r["sample_id"], r["image"], r["label"], r["reason"]) for r in draw.records()]


def test_the_round_before_is_the_run_of_one_round(two_rounds, finished):
    earlier = two_rounds.round(1)
    assert labels_of(earlier.draw(0)) == labels_of(RunDir(finished[0]).draw(0))
    for run in (earlier, two_rounds):
        assert verify_run(run)[1] == []
    label = min((earlier.root / "draws/0/labels").rglob("*.png"))
    before = label.read_bytes()
    label.write_bytes(before[: len(before) // 2])
    (problem,) = verify_run(two_rounds)[1]
    assert problem.startswith(str(earlier.root)) and label.stem in problem
    label.write_bytes(before)


def test_prototypes_of_a_later_round_are_means_of_what_was_labelled_blended_with_the_supports(two_rounds):
    config, earlier = two_rounds.stored(), two_rounds.round(1)
    stage = NovelStage(config, earlier, *check(config))
    support, later = (Registration.load(two_rounds.draw(0), number).prototypes for number in (1, 2))
    novel = list(stage.fold.novel_indices)
    assert np.array_equal(support[: novel[0]], later[: novel[0]]) and not np.array_equal(support, later)
    for k in novel:
        total = np.zeros(support.shape[1])
        for row in earlier.draw(0).records():
            if row["class_id"] == k and not row["reason"] and row["sample_id"].startswith(HDIG):
                ((sample, image),) = earlier.draw(0).read([row | {"class": stage.fold.index_names[k]}])
                features = stage.features_of(row["sample_id"], image).float().numpy()
                cell = sample.labels["label"].shape[0] // features.shape[1]
                for y, x in zip(*np.nonzero(sample.labels["label"] == k), strict=True):
                    total += features[:, y // cell, x // cell]
        if total.any():
            blend = 0.3 * support[k] + 0.7 * total / np.linalg.norm(total)
            np.testing.assert_allclose(later[k], blend / np.linalg.norm(blend), atol=1e-5)


def test_labels_of_a_later_round_are_drafted_by_the_classifier_of_the_round_before(two_rounds):
    config, draw = two_rounds.stored(), two_rounds.draw(0)
    trained = load_classifier(two_rounds.round(1).draw(0).checkpoint("syn4seg"))
    enhancer = Enhancer.from_run(two_rounds, 0, config, "cpu")
    assert (enhancer.classifier.weight == trained.weight).all() and (enhancer.classifier.bias == trained.bias).all()
    plan = [row for row in two_rounds.read_plan().to_pylist() if row["bank"] == HDIG]
    rows = {row["sample_id"]: row for row in draw.records()}
    (before,), (after,) = (run.draw(0).read([rows[plan[0]["sample_id"]]]) for run in (two_rounds.round(1), two_rounds))
    made = enhancer(after[1], plan[0]["class_id"])
    assert np.array_equal(made.draft, after[0].labels["draft"]) and not np.array_equal(made.draft, before[0].labels["draft"])
    assert set(read_json(two_rounds.results)["rows"]) == {"support_only", "syn4seg"}
