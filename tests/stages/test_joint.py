"""The joint stage of a run: what its networks learn from, that they are scored as they are kept, and that nothing is done twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.segmenter.network import load_segmenter, upsample
from syn4seg.segmenter.novel import KINDS
from syn4seg.stages.checks import check
from syn4seg.stages.joint import check_joint_shares, joint_views, train_network
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.rows import joint_rows, scored_rows
from syn4seg.stages.setup import canvas_of
from syn4seg.store.files import read_bytes
from syn4seg.store.rundir import RunDir

WORDS = ("novel.trains=all", "novel.rows=[support_only, syn4seg, oracle]", "evaluation.rows=[syn4seg]", "evaluation.controls=true")
STEPS = ("joint.steps=3", "joint.crop=32")


def run(small, out, *words):
    command = [sys.executable, "-m", "syn4seg.cli", "run", *small, *WORDS, *STEPS, *words, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return RunDir(out), done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small):
    """A run with three networks of the joint stage, and what was printed."""
    return run(small, tmp_path_factory.mktemp("joint") / "run")


def test_the_networks_are_rows_of_their_own(trained):
    found, printed = trained
    config = found.stored()
    assert list(joint_rows(config)) == ["support_only_all", "syn4seg_all", "oracle_all"]
    rows = json.loads(found.results.read_text())["rows"]
    assert {*rows} >= {"syn4seg", *joint_rows(config)} and "Syn4Seg, all trained" in printed


def test_a_network_is_scored_as_it_is_kept(trained):
    found, _ = trained
    config = found.stored()
    dataset, fold = check(config)
    network, _ = load_segmenter(found.draw(0).checkpoint("syn4seg_all"))
    assert len(network.weight) == len(fold.index_names)
    canvas, matrix = canvas_of(config), np.zeros((len(fold.index_names),) * 2, np.int64)
    for sample_id in dataset.val:
        features = network.features(network.prepare(canvas.image(dataset.image(sample_id))))
        logits = upsample(network.classifier(features.half().float()), (canvas.size, canvas.size)).detach()
        truth = fold.to_index[dataset.mask(sample_id)]
        np.add.at(matrix, (truth.ravel(), logits[0].argmax(0).numpy().ravel()), truth.ravel() != 255)
    kept = np.array(json.loads((found.draw(0).root / "confusion.json").read_text())["syn4seg_all"])
    assert matrix.sum() == kept.sum() and np.abs(matrix - kept).sum() <= 2 * len(
        dataset.val
    )  # a batch rounds otherwise than an image


def test_each_kind_of_image_has_its_own_labels(trained):
    found, _ = trained
    config = found.stored()
    dataset, fold = check(config)
    views = joint_views(config, found, dataset, fold, 0, "syn4seg")
    records = {row["sample_id"]: row for row in found.draw(0).records()}
    accepted = {s for s, row in records.items() if not row["reason"] and s.startswith("hdig")}
    assert set(views.pools["synthetic"]) == accepted and len(views.pools["support"]) == len(fold.novel)
    for kind in KINDS:
        name = views.pools[kind][0]
        image, label = views.read(kind, name)
        novel = set(np.unique(label)) & set(fold.novel_indices)
        assert image.shape[:2] == label.shape
        assert len(novel) == {"support": 1, "replay": 0}.get(kind, len(novel))
    sample, stored = found.draw(0).read([views.read.synthetic[name := views.pools["synthetic"][0]]])[0]
    image, label = views.read("synthetic", name)
    assert np.array_equal(image, stored) and np.array_equal(label, sample.labels["label"])
    truth = joint_views(config, found, dataset, fold, 0, "oracle")
    assert set(truth.pools["synthetic"]) >= accepted and not np.array_equal(truth.read("synthetic", name)[1], label)
    assert joint_views(config, found, dataset, fold, 0, "support_only").pools["synthetic"] == []


def test_layouts_and_readers_change_no_byte_and_nothing_is_trained_twice(trained, small, tmp_path):
    found, _ = trained
    paths = [found.draw(0).checkpoint(name) for name in joint_rows(found.stored())]
    before = [(read_bytes(path), path.stat().st_mtime_ns) for path in paths]
    run(small, found.root)
    assert [(read_bytes(path), path.stat().st_mtime_ns) for path in paths] == before
    other, _ = run(small, tmp_path / "sharded", "layout=sharded", "placement.training.readers=1")
    assert [read_bytes(other.draw(0).checkpoint(path.stem)) for path in paths] == [data for data, _ in before]
    assert scored_rows(other.stored()) == scored_rows(found.stored())


def test_a_network_is_not_trained_on_a_part_of_the_labels(trained, tmp_path):
    found, _ = trained
    copy = RunDir(shutil.copytree(found.root, tmp_path / "run"))
    stage = NovelStage(copy.stored(), copy, *check(copy.stored()))
    before = read_bytes(copy.draw(0).checkpoint("syn4seg_all"))
    next((copy.root / "draws" / "0" / "records").rglob("hdig*.json")).unlink()
    with pytest.raises(UserError, match="1 of 24 samples of draw 0 have no label"):
        train_network(stage, 0, "syn4seg_all", lambda *_: None)
    assert read_bytes(copy.draw(0).checkpoint("syn4seg_all")) == before


def test_workers_that_cannot_share_a_step_are_refused_from_the_configuration(small):
    config = load(None, [*small, "novel.trains=all", "novel.rows=[syn4seg, support_only]"])
    check_joint_shares(config, 4)  # 20 images, and 12
    with pytest.raises(UserError, match=r"12 images.*workers=5"):
        check_joint_shares(config, 5)
    check_joint_shares(load(None, small), 7)
