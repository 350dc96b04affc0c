"""The configuration tree: loading, errors that teach, fingerprints."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import yaml

from syn4seg.config.loading import load
from syn4seg.config.tree import Config, annotated, differences, keys
from syn4seg.errors import UserError


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("labeling.bta=0.3", ["labeling.bta", "unknown key", "did you mean labeling.beta"]),
        ("labeling.beta=1.5", ["labeling.beta=1.5", "less than or equal to 1"]),
        ("data.shots=0", ["data.shots=0", "greater than or equal to 1"]),
        ("data.shots=two", ["data.shots='two'", "integer"]),
        ("synthesis.size=100", ["synthesis.size=100", "multiple of 16"]),
        ("placement.labeling.gpus=-1", ["placement.labeling.gpus=-1", "greater than or equal to 0"]),
        ("labeling.lambda_keep={support_quantile: 2}", ["labeling.lambda_keep", "less than or equal to 1"]),
        ("beta", ["expected section.key=value"]),
        ("seed.x=1", ["seed"]),
    ],
)
def test_a_wrong_override_is_one_error_that_names_key_value_and_expectation(override, words):
    with pytest.raises(UserError) as caught:
        load(None, [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("override", ["evaluation.mean=!!bool foo", "seed=!!int ''", "seed=!!timestamp foo", f"seed={'[' * 500}"])
def test_a_value_that_is_no_plain_yaml_is_one_line_that_names_the_key(override):
    with pytest.raises(UserError) as error:
        load(None, [override])
    key = override.partition("=")[0]
    assert str(error.value).startswith(f"{key}=") and "quote it" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_text_that_grows_behind_its_aliases_is_refused_within_a_second(tmp_path):
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join([f"a0: &a0 [{', '.join('x' * 9)}]", *levels, "seed: *a8", ""]))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"bomb\.yaml: not readable as YAML: stands for more than 50,000 values"):
        load(tmp_path / "bomb.yaml")
    assert time.monotonic() - started < 1


def test_a_wrong_file_is_explained(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not readable as YAML"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="expected `section"):
        load(tmp_path / "list.yaml")


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("labeling: {beta: 0.2, theta: 0.9}\n")
    config = load(path, ["labeling.beta=0.7", "novel.lr=1e-3"])
    assert (config.labeling.beta, config.labeling.theta, config.novel.lr) == (0.7, 0.9, 1e-3)
    assert config.labeling.tau == Config().labeling.tau


@pytest.mark.parametrize(
    ("hints", "why"),
    [
        ("[]", r"name each hint once, and a box or a point among them, such as \[box\]"),
        ("[mask]", "a box or a point among them"),
        ("[box,point,box]", r"=\[box,point,box\]: name each hint once"),
        ("[text]", "'text': input should be 'box', 'point' or 'mask'"),
    ],
)
def test_hints_that_no_sam_takes_are_refused_in_a_sentence(hints, why):
    with pytest.raises(UserError, match=rf"^refinement\.hints.*{why}") as caught:
        load(None, [f"refinement.hints={hints}"])
    assert "\n" not in str(caught.value)
    assert load(None, ["refinement.hints=[point,mask]"]).refinement.hints == ("point", "mask")
    assert Config().refinement.hints == ("box",)


def test_the_annotated_tree_loads_back_to_the_same_config():
    for config in (Config(), load(None, ["labeling.lambda_keep={support_quantile: 0.2}", "data.fold=2"])):
        assert Config.model_validate(yaml.safe_load(annotated(config))) == config


def test_every_key_is_documented():
    undocumented = [key for key, field in keys().items() if not field.description]
    assert undocumented == []


def test_differences_name_each_changed_key():
    assert differences(Config().science(), load(None, ["labeling.beta=0.1"]).science()) == ["labeling.beta: 0.5 -> 0.1"]


def test_the_method_is_imported_without_ray():
    code = (
        "import sys, syn4seg.config.tree, syn4seg.store.rundir, syn4seg.stages.labels, syn4seg.stages.novel, syn4seg.stages.plan,"
        "syn4seg.stages.results, syn4seg.data.folder; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", "import sys, ray; sys.exit('ray' in sys.modules)"], check=False).returncode == 1
