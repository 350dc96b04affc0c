"""How the words of a command become a configuration."""

from __future__ import annotations

import pytest

from syn4seg.errors import UserError
from syn4seg.options import reach_run, read_config
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
    with pytest.raises(UserError, match=r"config embeded: no such file or run; .*coco20i, embedded, embedded-5x4, pascal5i"):
        read_config(["embeded"])


def test_a_run_may_not_exist_yet(tmp_path):
    assert reach_run(str(tmp_path / "absent")).root == tmp_path / "absent"
