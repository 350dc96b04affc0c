"""How the words of a command become a configuration."""

from __future__ import annotations

import pytest

from syn4seg.errors import UserError
from syn4seg.options import complete_config, complete_study, reach_run, read_config
from syn4seg.store.rundir import RunDir


@pytest.fixture
def run(tmp_path):
    """A run directory that holds nothing but its configuration."""
    run = RunDir(tmp_path / "run")
    run.open(read_config(["data.fold=2"]))
    return run


def test_a_packaged_name_a_file_and_a_run_are_configurations_and_keys_follow(run):
    assert read_config(None).name == "embedded"
    assert read_config(["pascal5i", "data.fold=3"]).data.source == "pascal"
    for words in ([str(run.root)], [str(run.config)]):
        assert read_config([*words, "data.shots=2"]).data.fold == 2


def test_the_configuration_of_the_run_directory_is_taken_where_none_is_named(run, tmp_path):
    assert read_config(["data.shots=2"], str(run.root)).data.fold == 2
    assert read_config(["embedded"], str(run.root)).data.fold == 0
    assert read_config(None, str(tmp_path / "absent")).data.fold == 0


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(
        UserError,
        match=r"config embeded: no such file or run; .*coco20i, embedded, embedded-5x4, pascal5i; did you mean embedded\?",
    ):
        read_config(["embeded"])


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["data.source=pascl", "base.checkpoint=train"], "pascal"),
        (["refinement.band_widht=2"], "refinement.band_width"),
        (["novel.trains=decodr"], "decoder"),
        (["evaluation.baselines=[bmc]"], "bcm"),
    ],
)
def test_a_misspelled_value_is_answered_with_the_nearest_one(words, near):
    from syn4seg.stages.checks import check

    with pytest.raises(UserError, match=rf"did you mean {near}\?"):
        check(read_config(words))


def test_misspelled_formats_studies_and_stages_are_answered_with_the_nearest_one(tmp_path, syn4seg, run):
    for words, near in (
        (["export", run.root, "--format", "coc", "--to", tmp_path / "x"], "coco"),
        (["sweep", "--study", "lables"], "labels"),
        (["model", run.root, "--to", tmp_path / "x", "--format", "onx"], "onnx"),
        (["prepare", "pascl", tmp_path], "pascal"),
        (["run", "embeded"], "embedded"),
        (["verify", run.root.with_name("rum")], "run"),
    ):
        code, _, complaint = syn4seg(*words)
        assert code == 2 and f"did you mean {near}?" in complaint, words


def test_a_shell_completes_configurations_and_studies():
    assert complete_config("emb") == ["embedded", "embedded-5x4"] and complete_study("lab") == ["labels"]


def test_a_run_may_not_exist_yet(tmp_path):
    assert reach_run(str(tmp_path / "absent")).root == tmp_path / "absent"
