"""Everything that is refused before a model loads and before anything is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.stages.checks import check, check_models
from syn4seg.store.rundir import RunDir


def folder_config(root, classes):
    """A data set of two images and two folds, one class each."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for sample in ("a", "b"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(root / "images" / f"{sample}.png")
        Image.fromarray(np.ones((32, 32), np.uint8)).save(root / "masks" / f"{sample}.png")
    (root / "train.txt").write_text("a\n")
    (root / "val.txt").write_text("b\n")
    (root / "classes.json").write_text(json.dumps({"classes": classes, "folds_novel": [[name] for name in classes]}))
    return load(None, ["data.source=folder", f"data.root={root}", "base.checkpoint=train"])


def test_a_class_name_that_cannot_be_printed_is_refused_before_anything_is_written(tmp_path):
    for name in ("a\nb", " x", "", "y" * 201):
        with pytest.raises(UserError, match="printable characters"):
            check(folder_config(tmp_path / str(len(name)) / "data", [name, "z"]))


def test_a_generator_of_the_embedded_world_is_not_asked_for_other_classes(tmp_path):
    with pytest.raises(UserError, match=r"synthesis\.model=renderer: cannot draw 'dog'"):
        check(folder_config(tmp_path / "data", ["dog", "cat"]))


def test_the_key_and_the_value_of_a_missing_model_are_named(small):
    for key, value in (("refinement.model", "absent.pth"), ("synthesis.model", "absent/model")):
        with pytest.raises(UserError, match=f"{value}"):
            check_models(load(None, [*small, f"{key}={value}"]), None)


def test_a_baseline_that_is_not_in_the_table_is_named_with_the_nearest_one(small):
    config = load(None, [*small, "evaluation.baselines=[diam, imprintin]"])
    with pytest.raises(UserError, match=r"evaluation\.baselines=imprintin: no such baseline.*did you mean imprinting\?"):
        check(config)


def test_a_network_of_a_row_that_the_run_does_not_train_is_refused(small):
    words = [*small, "novel.trains=decoder", "novel.rows=[syn4seg, oracle]"]
    with pytest.raises(UserError, match=r"novel\.rows: 'oracle' is no row.*evaluation\.controls"):
        check(load(None, words))
    check(load(None, [*words, "evaluation.controls=true"]))


def test_models_that_the_run_needs_no_more_are_not_looked_for(fresh, small, tmp_path):
    run, _ = fresh
    config = load(None, [*small, f"base.checkpoint={tmp_path / 'absent.safetensors'}"])
    with pytest.raises(UserError, match="no such file"):
        check(config)
    check(config, run)  # its base checkpoint was made before
    with pytest.raises(UserError, match="no such file"):
        check(config, RunDir(tmp_path / "new"))


def test_a_batch_that_the_training_images_do_not_fill_is_refused_at_once(fresh, small, tmp_path):
    run, _ = fresh
    config = load(None, [*small, "base.checkpoint=train", "base.batch=121"])
    for new in (None, RunDir(tmp_path / "new")):
        with pytest.raises(UserError, match=r"base\.batch=121: only (\d+) training images .*lower it to \1 or less"):
            check(config, new)
    check(config, run)  # its base checkpoint was made before
    check(load(None, [*small, "base.checkpoint=train", "base.images=all", "base.batch=120"]))


def test_a_fold_without_a_packaged_checkpoint_is_to_be_trained(small, tmp_path, monkeypatch):
    monkeypatch.setattr("syn4seg.stages.setup.shipped_base", lambda fold: tmp_path / "absent")
    with pytest.raises(UserError, match=r"shipped: no checkpoint for fold 0 is packaged; set base\.checkpoint=train"):
        check(load(None, small))
