"""The control by name: labels from another network's masks, made once, and a row beside the others that leaves them as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.models import sam_named
from syn4seg.schema import UNLABELED
from syn4seg.stages import draw_training
from syn4seg.stages.checks import check
from syn4seg.stages.draw_training import train_draw
from syn4seg.stages.gains import paired_gains
from syn4seg.stages.named import NamedLabels
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.results import protocol
from syn4seg.stages.rows import NAMED, WITHOUT_VERDICT, rows_of
from syn4seg.store.rundir import RunDir
from syn4seg.terminal import TITLES
from tests.shared_planning import FACTS, lines
from tests.shared_sams import saved_named_sam
from tests.stages.test_gains import figures

KEYS = ("evaluation.rows=[syn4seg]", "novel.steps=3", "novel.replay_images=4", "labeling.base_prototype_images=4")


@pytest.fixture(scope="module")
def model(prepared, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sam3")
    saved_named_sam(path, "sam3", [name for name in prepared[1] if name.isalpha()])
    return path


class Killed(BaseException):
    """A kill at a known moment."""


def trained(run: RunDir, words: list[str], kill: int = 0) -> dict[str, bytes]:
    def tell(done: int, total: int) -> None:
        if done == kill:
            raise Killed

    config = load(None, words)
    train_draw(NovelStage(config, run, *check(config)), 0, tell)
    return {row: run.draw(0).checkpoint(row).read_bytes() for row in rows_of(config)}


def test_the_row_is_there_where_its_key_is_with_controls_or_without(small):
    off, on = load(None, small), load(None, [*small, "evaluation.by_name=facebook/sam3"])
    assert [row for row in rows_of(on) if row not in rows_of(off)] == ["control_by_name"]
    assert "control_by_name" not in rows_of(load(None, [*small, "evaluation.controls=true"]))
    assert "control_by_name" in TITLES and NAMED in WITHOUT_VERDICT
    fold = check(off)[1]
    assert protocol(on, fold) == protocol(off, fold) | {"by_name": "facebook/sam3"}


def test_a_label_is_the_target_inside_the_mask_and_an_image_is_looked_at_once(small, model, monkeypatch):
    config = load(None, [*small, f"evaluation.by_name={model}"])
    fold, asked = check(config)[1], []

    def mask(self, image, name):
        asked.append(name)
        if not image.any():
            raise FloatingPointError
        return image[..., 0] > 200

    monkeypatch.setattr(sam_named.NamedSam, "mask", mask)
    image = np.random.default_rng(0).integers(0, 255, (37, 51, 3)).astype(np.uint8)
    labels, target = NamedLabels(config, fold), fold.novel_indices[1]
    for _ in range(2):
        assert np.array_equal(labels.of("a", image, target), np.where(image[..., 0] > 200, np.uint8(target), np.uint8(0)))
    assert asked == [fold.index_names[target]]
    for name, value in (("not finite", 0), ("nothing there", 1)):
        nothing = labels.of(name, np.full((8, 9, 3), value, np.uint8), target)
        assert nothing.dtype == np.uint8 and nothing.shape == (8, 9) and (nothing == UNLABELED).all()


def test_the_row_trains_beside_the_others_and_anew_where_another_network_is_asked(reference, small, model, tmp_path, monkeypatch):
    monkeypatch.setattr(draw_training, "CHECKPOINT_STEPS", 1)
    runs = [RunDir(shutil.copytree(reference[1], tmp_path / name)) for name in ("off", "on", "stopped")]
    words = [*small, *KEYS]
    first, second = [*words, f"evaluation.by_name={model}"], [*words, f"evaluation.by_name={tmp_path / 'sam3'}"]
    saved_named_sam(tmp_path / "sam3", "sam3", [name for name in check(load(None, words))[1].index_names if name.isalpha()], seed=1)
    plain, named = trained(runs[0], words), trained(runs[1], first)
    assert {row: named[row] for row in plain} == plain and set(named) - set(plain) == {"control_by_name"}
    with pytest.raises(Killed):
        trained(runs[2], first, kill=5)
    again = trained(runs[1], second)
    assert again["control_by_name"] != named["control_by_name"] and again == trained(runs[2], second)


def test_the_whole_method_is_measured_over_the_control():
    rows = {"support_only": figures(0.2), "syn4seg": figures(0.5), "control_by_name": figures(0.4)}
    assert paired_gains(rows)["syn4seg"]["over_control_by_name"]["novel"]["mean"] == pytest.approx(0.1)
    assert "over_control_by_name" not in paired_gains({k: rows[k] for k in ("support_only", "syn4seg")})["syn4seg"]


def test_the_plan_counts_every_image_once_and_has_no_line_without_the_key(small, model):
    words = [*small, "data.draws=2"]
    off, on = lines(load(None, words)), lines(load(None, [*words, f"evaluation.by_name={model}"]))
    assert set(on) - set(off) == {"by_name"}
    assert all(on[name] == off[name] for name in off if name not in ("novel", "evaluation")), "which have a row more"
    line = on["by_name"]
    assert line.count == FACTS.novel * load(None, words).synthesis.images_per_class
    assert line.memory > line.weights > 0 and line.unit_seconds > 0
