"""The novel stage on labels that are still coming in: the same classifiers, byte for byte, however they come and whoever dies."""

from __future__ import annotations

import random
import shutil

import pytest

from actors.graph import stream
from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.stages import arrivals, draw_training
from syn4seg.stages.checks import check
from syn4seg.stages.draw_training import train_draw
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.rows import rows_of
from syn4seg.store.files import write_json
from syn4seg.store.layout_files import FileSamples
from syn4seg.store.rundir import RunDir

KEYS = ("novel.steps=12", "novel.replay_images=6", "labeling.base_prototype_images=6")


@pytest.fixture(scope="module")
def labelled(prepared, small, tmp_path_factory):
    """A run with every label of one draw and one quarantined sample, not trained."""
    run, names = prepared
    root = tmp_path_factory.mktemp("labelled") / "run"
    shutil.copytree(run.root, root)
    made = RunDir(root)
    stream(load(None, small), made, names, 0, lambda *_: None)
    return made


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(draw_training, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(arrivals, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(arrivals, "POLL_SHARE", 1e9)
    monkeypatch.setattr(draw_training, "READ_BATCH", 3)


def copied(run, path) -> RunDir:
    shutil.copytree(run.root, path)
    return RunDir(path)


def stage_of(run, small, *keys) -> NovelStage:
    config = load(None, [*small, *KEYS, *keys])
    return NovelStage(config, run, *check(config))


def classifiers(run, config) -> dict[str, bytes]:
    return {row: run.draw(0).checkpoint(row).read_bytes() for row in rows_of(config)}


class Hidden:
    """Records taken away, and given back one after the other as somebody asks whether all labels are there."""

    def __init__(self, run, order):
        self.paths = [run.draw(0).record(name.split("-")[1], name) for name in order]
        for path in self.paths:
            path.rename(path.with_suffix(".hidden"))
        self.shown = 0

    def __call__(self, draw: int) -> bool:
        for path in self.paths[self.shown : self.shown + 2]:
            path.with_suffix(".hidden").rename(path)
        self.shown += 2
        return self.shown >= len(self.paths)


@pytest.fixture(scope="module")
def at_once(labelled, small, tmp_path_factory):
    """Bytes of every classifier by ramp, trained on finished labels without interruption."""
    found = {}
    for ramp in (0.0, 0.9):
        run = copied(labelled, tmp_path_factory.mktemp("once") / "run")
        stage = stage_of(run, small, f"novel.ramp={ramp}")
        train_draw(stage, 0, lambda *_: None)
        found[ramp] = classifiers(run, stage.config)
    return found


def ids(run) -> list[str]:
    from syn4seg.stages.plan import read_planned_samples

    return read_planned_samples(run)["sample_id"].to_pylist()


@pytest.mark.parametrize("ramp", [0.0, 0.9])
def test_labels_that_come_in_one_by_one_give_the_same_bytes_as_labels_that_are_there(labelled, small, at_once, ramp, tmp_path):
    for seed in range(2):
        run = copied(labelled, tmp_path / f"{seed}")
        order = random.Random(seed).sample(ids(run), 24) if seed else ids(run)
        coming, early = Hidden(run, order), []
        stage = stage_of(run, small, f"novel.ramp={ramp}")
        train_draw(stage, 0, lambda *_, c=coming, e=early: e.append(c.shown < 24), coming)
        assert classifiers(run, stage.config) == at_once[ramp]
        if not seed:
            assert any(early) == (ramp > 0)  # with a ramp, steps are taken before the last label is there


class Killed(BaseException):
    """A kill at a known moment."""


@pytest.mark.parametrize("ramp", [0.0, 0.9])
def test_a_training_killed_again_and_again_goes_on_from_its_checkpoints_to_the_same_bytes(
    labelled, small, at_once, ramp, tmp_path, monkeypatch
):
    monkeypatch.setattr(draw_training, "CHECKPOINT_STEPS", 3)
    run = copied(labelled, tmp_path / "run")
    stage, starts = stage_of(run, small, f"novel.ramp={ramp}"), []
    for kill in (7, 1, 18, 20, 9, None):
        taken = []

        def tell(done, total, kill=kill, taken=taken):
            taken.append(done)
            if len(taken) == kill:
                raise Killed

        try:
            train_draw(stage, 0, tell)
        except Killed:
            starts.append(taken[0])
    assert starts != sorted({1}) * len(starts)
    assert classifiers(run, stage.config) == at_once[ramp]
    assert {p.name for p in (run.draw(0).root / "checkpoints").glob("*.safetensors")} == {
        f"{row}.safetensors" for row in rows_of(stage.config)
    }


def test_a_damaged_checkpoint_of_a_training_is_as_good_as_none(labelled, small, at_once, tmp_path):
    run = copied(labelled, tmp_path / "run")
    (run.draw(0).root / "checkpoints").mkdir(exist_ok=True)
    run.draw(0).checkpoint("apf-training").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00damaged!")
    stage = stage_of(run, small, "novel.ramp=0.9")
    train_draw(stage, 0, lambda *_: None)
    assert classifiers(run, stage.config) == at_once[0.9]


def test_a_file_that_is_lost_is_waited_for_while_labels_are_made_and_an_error_afterwards(labelled, small, at_once, tmp_path):
    run = copied(labelled, tmp_path / "run")
    lost = FileSamples(run.root).label(0, "kept", "ball", "hdig-ball-00001")
    data, asked = lost.read_bytes(), []
    lost.unlink()

    def mended(draw):
        asked.append(draw)
        if len(asked) == 40:
            lost.write_bytes(data)
        return len(asked) > 40

    stage = stage_of(run, small, "novel.ramp=0.9")
    train_draw(stage, 0, lambda *_: None, mended)
    assert len(asked) > 40
    assert classifiers(run, stage.config) == at_once[0.9]
    run.draw(0).checkpoint("apf").unlink()
    lost.unlink()
    with pytest.raises(UserError, match=r"hdig-ball-00001.*missing or damaged"):
        train_draw(stage, 0, lambda *_: None)


def test_a_mended_sample_reaches_the_classifiers_and_a_lost_file_does_not_cost_them(labelled, small, at_once, tmp_path):
    run = copied(labelled, tmp_path / "run")
    record = next(r for r in run.draw(0).records() if r["sample_id"].startswith("hdig") and not r["reason"])
    path = run.draw(0).record(record["class"], record["sample_id"])
    sound = path.read_bytes()
    fault = {"sample_id": record["sample_id"], "class": record["class"], "reason": "fault: synthesis: nan image"}
    write_json(path, {key: record[key] for key in ("class_id", "prompt", "noise_seed", "batch")} | fault)
    write_json(run.quarantined(record["sample_id"]), fault)
    stage = stage_of(run, small, "novel.ramp=0.0")
    train_draw(stage, 0, lambda *_: None)
    without = classifiers(run, stage.config)
    assert without["syn4seg"] != at_once[0.0]["syn4seg"] and without["class_name_raw"] == at_once[0.0]["class_name_raw"]
    train_draw(stage_of(run, small, "novel.ramp=0.0"), 0, lambda *_: pytest.fail("nothing has changed, nothing is trained"))
    run.quarantined(record["sample_id"]).unlink()
    waiting = draw_training.DrawTraining(stage_of(run, small, "novel.ramp=0.0"), 0)
    assert set(waiting.trainings) == {"hdig_raw", "apf", "apf_apr", "syn4seg"}, "a fault whose note is gone is made again"
    path.write_bytes(sound)
    train_draw(stage_of(run, small, "novel.ramp=0.0"), 0, lambda *_: None)
    assert classifiers(run, stage.config) == at_once[0.0]
    path.unlink()
    assert draw_training.DrawTraining(stage_of(run, small, "novel.ramp=0.0"), 0).finished, "lost files come back as they were"


def test_a_failure_of_labelling_ends_training_with_its_words(labelled, small, tmp_path):
    run = copied(labelled, tmp_path / "run")
    coming = Hidden(run, ids(run))

    def failing(draw):
        if coming.shown >= 10:
            raise UserError("3 of 24 samples are quarantined")
        return coming(draw)

    with pytest.raises(UserError, match="3 of 24 samples are quarantined"):
        train_draw(stage_of(run, small, "novel.ramp=0.9"), 0, lambda *_: None, failing)


def test_labels_that_never_come_are_an_error_once_labelling_has_ended(labelled, small, tmp_path):
    run = copied(labelled, tmp_path / "run")
    run.draw(0).record("moon", "hdig-moon-00002").unlink()
    with pytest.raises(UserError, match=r"1 samples of draw 0 have no label; run `syn4seg refine`"):
        train_draw(stage_of(run, small), 0, lambda *_: None)
