"""What is settled before a sweep starts: images that nothing else uses, and that a study goes on only as it was begun."""

from __future__ import annotations

import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from tests.shared_study import study_of
from tune.records import SweepDir
from tune.space import Study
from tune.validation import open_sweep, validation_images


def test_validation_images_are_annotated_train_images_that_nothing_else_uses():
    from syn4seg.stages.base_data import shuffled_base_images
    from syn4seg.stages.setup import draws_of, load_dataset, support_of
    from tune.space import apply_overrides

    config = load(None, ["data.train_images=300", "data.draws=2", "novel.replay_images=20", "labeling.base_prototype_images=30"])
    study = Study.model_validate({"space": {"data.shots": [1, 5]}, "validation": {"novel_images": 4, "base_images": 10}})
    chosen = validation_images(study, config)
    dataset, fold = load_dataset(config)
    assert chosen is not None and len(chosen) == len(set(chosen)) == 4 * len(fold.novel) + 10
    assert set(chosen) <= set(dataset.train)
    for shots in (1, 5):
        given = apply_overrides(config, {"data.shots": shots})
        for draw in draws_of(given):
            assert not set(chosen) & {i for ids in support_of(given, dataset, fold, draw).values() for i in ids}
    assert not set(chosen) & set(shuffled_base_images(config, dataset, fold)[:30])
    assert validation_images(Study.model_validate({"space": {"data.shots": [1]}, "objective": ["test.novel"]}), config) is None
    greedy = Study.model_validate({"space": {"data.shots": [1]}, "validation": {"novel_images": 300}})
    with pytest.raises(UserError, match=r"validation\.novel_images=300"):
        validation_images(greedy, config)


def test_a_study_goes_on_only_as_it_was_begun(tmp_path):
    sweep, study, config = SweepDir(tmp_path / "sweep"), study_of(), load(None, [])
    with pytest.raises(UserError, match="there is no study"):
        open_sweep(sweep, study, config, resume=True)
    open_sweep(sweep, study, config, resume=False)
    with pytest.raises(UserError, match="add --resume"):
        open_sweep(sweep, study, config, resume=False)
    open_sweep(sweep, study_of(trials=500), config, resume=True)
    with pytest.raises(UserError, match=r"labeling\.theta: 0\.4 -> 0\.7"):
        open_sweep(sweep, study, load(None, ["labeling.theta=0.7"]), resume=True)
    with pytest.raises(UserError, match=r"data\.draws: 1 -> 3"):
        open_sweep(sweep, study, load(None, ["data.draws=3"]), resume=True)
    with pytest.raises(UserError, match=r"study\.pruning: none -> median"):
        open_sweep(sweep, study_of(pruning="median"), config, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not empty and not a study"):
        open_sweep(SweepDir(tmp_path / "other"), study, config, resume=False)
    sweep.study.unlink()  # as when a process dies before it is written
    open_sweep(sweep, study, config, resume=False)
    sweep.study.unlink()
    sweep.config.write_text("name: mine\n")
    with pytest.raises(UserError, match="not empty and not a study"):
        open_sweep(sweep, study, config, resume=False)
    assert sweep.config.read_text() == "name: mine\n"
