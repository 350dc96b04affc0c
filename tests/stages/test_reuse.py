"""`--reuse`: exactly the stages whose fingerprints, inputs and plan are the same are taken over."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.stages.reuse import reuse
from syn4seg.stages.setup import digest_inputs, shipped_base
from syn4seg.store.files import write_atomically, write_json
from syn4seg.store.images import read_image, write_image
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredImage


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


def test_files_are_links_and_an_existing_file_stays(fresh, small, tmp_path):
    run, _ = fresh
    config, new = load(None, small), RunDir(tmp_path / "new")
    new.open(config)
    write_atomically(new.base_facts, b"{}")
    assert reuse(run, new, config) == ["prompts", "images", "base"]
    assert new.plan.stat().st_ino == run.plan.stat().st_ino and new.base.stat().st_ino == run.base.stat().st_ino
    assert new.base_facts.read_bytes() == b"{}"


def test_a_stage_whose_settings_differ_is_made_again(fresh, small, tmp_path):
    run, _ = fresh
    config, new = load(None, [*small, "prompts.lambda_prompt=0.5"]), RunDir(tmp_path / "new")
    new.open(config)
    assert reuse(run, new, config) == ["base"] and not new.plan.exists()


def test_images_are_copied_into_another_layout(fresh, small, tmp_path):
    run, names = fresh
    row = run.read_plan().to_pylist()[0]
    pixels = np.full((4, 4, 3), 7, np.uint8)
    write_image(run.image(names[row["class_id"]], row["sample_id"]), pixels)
    config, new = load(None, [*small, "layout=sharded"]), RunDir(tmp_path / "new")
    new.open(config)
    assert "images" in reuse(run, new, config)
    places = {r["sample_id"]: r["image_at"] for r in new.samples.images().to_pylist()}
    assert list(places) == [row["sample_id"]]
    image = StoredImage(row["sample_id"], names[row["class_id"]], row["batch"], np.zeros(0), {}, places[row["sample_id"]])
    copy = next(iter(new.samples.read_images([image])))
    assert (
        copy is not None
        and np.array_equal(copy.pixels, pixels)
        and np.array_equal(read_image(run.image(names[row["class_id"]], row["sample_id"])), pixels)
    )


def test_what_is_no_run_cannot_be_reused(tmp_path, small):
    with pytest.raises(UserError, match=r"--reuse .*: not a run \(no config\.yaml\)"):
        reuse(RunDir(tmp_path), RunDir(tmp_path / "new"), load(None, small))


def test_images_from_other_support_images_are_neither_reused_nor_continued(fresh, small, tmp_path):
    run, _ = fresh
    keys = [*small, "synthesis.model=embedded-sd3", "synthesis.support=image_to_image"]
    old, same, other, plain = (RunDir(tmp_path / name) for name in ("old", "same", "other", "plain"))
    config = load(None, keys)
    for made in (old, same, other):
        made.open(config)
        write_atomically(made.plan, run.plan.read_bytes())
        made.write_inputs(digest_inputs(config) if made is not other else {"synthesis.support": "of a changed mask"})
    assert "images" in reuse(old, same, config) and "images" not in reuse(old, other, config)
    with pytest.raises(UserError, match=r"synthesis\.support: other files are there"):
        other.check_inputs(digest_inputs(config))
    with pytest.raises(UserError, match=r"data\.first_draw: 0 -> 1"):
        old.check(load(None, [*keys, "data.first_draw=1"]))
    plain.open(load(None, [*small, "synthesis.model=embedded-sd3"]))
    assert "images" not in reuse(old, plain, load(None, [*small, "synthesis.model=embedded-sd3"]))
