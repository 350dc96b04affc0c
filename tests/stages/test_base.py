"""The base checkpoint: packaged, imported or trained here, and the record of what it saw."""

from __future__ import annotations

import json

import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.stages.base import make_base
from syn4seg.stages.checks import check
from syn4seg.stages.setup import shipped_base
from syn4seg.store.rundir import RunDir


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


def test_a_checkpoint_of_another_network_is_refused_with_the_key(small):
    with pytest.raises(UserError, match=r"checkpoint=shipped: the checkpoint has channels=128, but segmenter\.channels is 64"):
        made_base(load(None, [*small, "segmenter.channels=64"]), None)


def made_base(config, root, **options) -> RunDir:
    """A run with nothing but its base checkpoint."""
    run = RunDir(root or "unused")
    make_base(config, run, *check(config), lambda *_: None, **options)
    return run


def test_the_packaged_checkpoint_is_copied_and_its_record_says_what_it_saw(small, tmp_path):
    run = made_base(load(None, small), tmp_path / "run")
    assert run.base.read_bytes() == shipped_base(0).read_bytes()
    facts = json.loads(run.base_facts.read_text())
    assert (facts["origin"], facts["rule"], len(facts["images"]), facts["label_pixels"]) == ("packaged", "all", 6000, None)
    assert facts["chosen"] == "the last epoch"


def test_an_imported_checkpoint_is_recorded_by_its_digest_and_its_classes(small, tmp_path):
    run = made_base(load(None, [*small, f"base.checkpoint={shipped_base(0)}"]), tmp_path / "run")
    facts = json.loads(run.base_facts.read_text())
    assert facts["origin"] == "imported" and facts["images"] is None and len(facts["sha256"]) == 64
    assert facts["chosen"] == "by whoever trained it"
    again = made_base(load(None, [*small, f"base.checkpoint={run.base}"]), tmp_path / "again")
    assert json.loads(again.base_facts.read_text())["family"] == "syn4seg"
    with pytest.raises(UserError, match="made for another fold"):
        check(load(None, [*small, f"base.checkpoint={run.base}", "data.fold=1"]))


def test_a_checkpoint_that_exists_is_not_made_again(small, tmp_path):
    config = load(None, [*small, "base.checkpoint=train"])

    def train(report):
        report({"epoch": 1, "epochs": 2, "loss": 0.5, "lr": 0.1})
        run.base.parent.mkdir(parents=True, exist_ok=True)
        run.base.write_bytes(b"x")
        run.base_facts.write_text("{}")

    run, steps = RunDir(tmp_path / "run"), []
    run.root.mkdir()
    make_base(config, run, *check(config), lambda *step: steps.append(step), train)
    assert steps == [(1, 2)] and json.loads(run.metrics.read_text())["loss"] == 0.5
    make_base(config, run, *check(config), lambda *_: None, lambda _: pytest.fail("it is there"))
