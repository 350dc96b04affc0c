"""The stages between the networks: checks before anything loads, registration, results."""

from __future__ import annotations

import json

import numpy as np
import pytest

from actors.graph import check_placement
from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.segmenter.evaluation import metrics
from syn4seg.stages.checks import check
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.results import spread, summarise
from syn4seg.stages.reuse import reuse
from syn4seg.stages.rows import ROWS, rows_of
from syn4seg.stages.setup import digest_inputs, shipped_base, support_of
from syn4seg.stages.support import Registration
from syn4seg.store.files import write_atomically, write_image, write_json
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import Sample as Record


def test_support_is_never_a_query_and_draws_are_named(small):
    config = load(None, small)
    dataset, fold = check(config)
    first, again, other = (support_of(config, dataset, fold, d) for d in (0, 0, 1))
    assert first == again != other
    for ids in (*first.values(), *other.values()):
        assert not set(ids) & set(dataset.val)


def test_registration_survives_its_file(fresh, small):
    run, names = fresh
    made = Registration.load(run.draw(0))
    assert made.weight.shape == made.prototypes.shape == (17, 128)
    assert made.thresholds == {13: 0.5, 14: 0.5, 15: 0.5, 16: 0.5}
    assert np.allclose(np.linalg.norm(made.prototypes[13:], axis=1), 1, atol=1e-5)
    facts = json.loads(run.draw(0).support_json.read_text())
    assert set(facts["support"]) == set(names[13:])
    with pytest.raises(UserError, match="missing; run `syn4seg refine`"):
        Registration.load(run.draw(5))


def test_a_support_quantile_gives_thresholds_between_the_extremes(fresh, small):
    from syn4seg.stages.support import keep_thresholds, support_samples

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


def test_imported_runs_have_no_class_name_row(small, tmp_path):
    assert "class_name_raw" in rows_of(load(None, small))
    assert "class_name_raw" not in rows_of(load(None, [*small, "synthesis.class_name_bank=false"]))
    assert "class_name_raw" not in rows_of(load(None, [*small, "synthesis.source=folder", f"synthesis.root={tmp_path}"]))


def test_spread_leaves_nan_out_and_counts_what_is_left():
    assert spread([1.0, float("nan"), 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "n": 2}
    assert spread([0.5]) == {"mean": 0.5, "std": 0.0, "n": 1}
    assert spread([float("nan")]) == {"mean": None, "std": None, "n": 0}


def test_results_are_means_of_the_metrics_of_each_draw(small):
    config = load(None, small)
    _, fold = check(config)
    rng = np.random.default_rng(1)
    matrices = {d: {row: rng.integers(0, 99, (17, 17)) for row in rows_of(config)} for d in (0, 1, 2)}
    results = summarise(config, fold, matrices)
    for name, row in (("syn4seg", "syn4seg"), ("apr", "apf_apr")):
        each = [metrics(matrices[d][row], 12, 4)["harmonic"] for d in (0, 1, 2)]
        assert results["rows"][name]["harmonic"] == {
            "mean": pytest.approx(np.mean(each)),
            "std": pytest.approx(np.std(each, ddof=1)),
            "n": 3,
        }


def folder_of(root, classes):
    """A data set of two images and two folds, one class each."""
    from PIL import Image

    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for sample in ("a", "b"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(root / "images" / f"{sample}.png")
        Image.fromarray(np.ones((32, 32), np.uint8)).save(root / "masks" / f"{sample}.png")
    (root / "train.txt").write_text("a\n")
    (root / "val.txt").write_text("b\n")
    (root / "classes.json").write_text(json.dumps({"classes": classes, "folds_novel": [[name] for name in classes]}))
    return load(None, ["data.source=folder", f"data.root={root}", "base.checkpoint=train"])


def test_a_class_name_that_would_leave_the_run_directory_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"class '\.\./\.\./x': cannot be part of a file name"):
        check(folder_of(tmp_path / "data", ["../../x", "y"]))


def test_a_generator_of_the_embedded_world_is_not_asked_for_other_classes(tmp_path):
    with pytest.raises(UserError, match=r"synthesis\.model=renderer: cannot draw 'dog'"):
        check(folder_of(tmp_path / "data", ["dog", "cat"]))


def test_a_base_checkpoint_of_another_fold_is_refused_before_anything_loads(small):
    path = shipped_base(1)
    with pytest.raises(UserError, match=r"made for another fold: its novel classes are .*set data\.fold"):
        check(load(None, [*small, f"base.checkpoint={path}"]))
    check(load(None, [*small, f"base.checkpoint={path}", "data.fold=1"]))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_that_is_no_checkpoint_is_refused_before_anything_loads(small, tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"base\.checkpoint=.*no checkpoint of ours"):
        check(load(None, [*small, f"base.checkpoint={tmp_path / 'x.safetensors'}"]))


def test_other_files_under_the_same_name_are_refused_on_resume_and_not_reused(small, tmp_path):
    own = tmp_path / "own.safetensors"
    own.write_bytes(shipped_base(0).read_bytes())
    config = load(None, [*small, f"base.checkpoint={own}"])
    run, later = RunDir(tmp_path / "run"), RunDir(tmp_path / "later")
    run.open(config)
    run.write_inputs(digest_inputs(config))
    run.check_inputs(digest_inputs(config))
    write_json(run.base_facts, {})
    later.open(config)
    later.write_inputs(digest_inputs(config))
    assert "base" in reuse(run, later, config)
    own.write_bytes(shipped_base(1).read_bytes())
    with pytest.raises(UserError, match=r"base\.checkpoint: other files are there"):
        run.check_inputs(digest_inputs(config))
    other = RunDir(tmp_path / "other")
    other.open(config)
    other.write_inputs(digest_inputs(config))
    assert "base" not in reuse(run, other, config)


def test_images_are_not_reused_under_another_plan(fresh, small, tmp_path):
    run, _ = fresh
    config = load(None, small)
    write_image(run.image("ball", "hdig-ball-00000"), np.zeros((4, 4, 3), np.uint8))
    same, other = RunDir(tmp_path / "same"), RunDir(tmp_path / "other")
    for new in (same, other):
        new.open(config)
    write_atomically(other.plan, b"another plan, as a language model might make it")
    assert "images" in reuse(run, same, config) and same.image("ball", "hdig-ball-00000").is_file()
    assert "images" not in reuse(run, other, config) and not other.image("ball", "hdig-ball-00000").exists()


def test_a_gpu_that_is_not_there_is_refused_inline_too(small):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"placement\.labeling\.gpus=1.*no usable GPU"):
        check_placement(load(None, [*small, "placement.labeling.gpus=1"]))
