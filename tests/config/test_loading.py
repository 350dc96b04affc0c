"""The configuration tree: loading, errors that teach, fingerprints."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from syn4seg.config.fingerprint import UPSTREAM, config_digest, fingerprint
from syn4seg.config.loading import load
from syn4seg.config.tree import Config, annotated, differences, keys
from syn4seg.errors import UserError

STAGES = tuple(UPSTREAM)


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


def test_the_annotated_tree_loads_back_to_the_same_config():
    for config in (Config(), load(None, ["labeling.lambda_keep={support_quantile: 0.2}", "data.fold=2"])):
        assert Config.model_validate(yaml.safe_load(annotated(config))) == config


def test_every_key_is_documented():
    undocumented = [key for key, field in keys().items() if not field.description]
    assert undocumented == []


def test_placement_changes_no_fingerprint_and_no_digest():
    moved = load(None, ["placement.runner=inline", "placement.synthesis.size=3", "placement.refinement.batch=5", "name=other"])
    assert config_digest(moved) == config_digest(Config())
    assert [fingerprint(moved, s) for s in STAGES] == [fingerprint(Config(), s) for s in STAGES]


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("refinement.band_width=9", {"labels", "scores"}),
        ("labeling.beta=0.1", {"labels", "scores"}),
        ("synthesis.steps=3", {"images", "labels", "scores"}),
        ("prompts.lambda_prompt=0.2", {"prompts", "images", "labels", "scores"}),
        ("base.epochs=1", {"base", "labels", "scores"}),
        ("data.shots=5", {"labels", "scores"}),
        ("evaluation.space=canvas", {"scores"}),
        ("seed=9", {"prompts", "images", "base", "labels", "scores"}),
    ],
)
def test_a_key_changes_the_fingerprint_of_exactly_the_stages_behind_it(override, changed):
    other = load(None, [override])
    assert {s for s in STAGES if fingerprint(other, s) != fingerprint(Config(), s)} == changed


def _changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return value[::-1]
    if isinstance(value, int):
        return value + 16
    return value / 2 + 0.01 if isinstance(value, float) else value + "x"


def test_every_science_key_is_in_some_fingerprint():
    samples = {
        "data.source": "folder",
        "data.root": "x",
        "synthesis.source": "folder",
        "synthesis.root": "y",
        "segmenter.weights": "w",
        "base.checkpoint": "train",
        "base.crop": 32,
        "base.optimizer": "sgd",
        "data.train_images": 9,
        "data.val_images": 9,
        "data.base_in_support": "kept",
        "labeling.lambda_keep": 0.123,
        "protocol": "pop",
        "data.train_list": "trainaug",
        "data.masks": "crowd255",
        "data.support_from": "val",
        "data.support_draw": "pop",
        "data.support_reserve": 0.5,
        "base.images": "with_base",
        "segmenter.canvas": "diam",
        "synthesis.weights": "nf4",
        "evaluation.space": "canvas",
        "evaluation.mean": "all_classes",
        "evaluation.queries": 7,
        "evaluation.baselines": ["bcm"],
        "prompts.llm": "m",
        "prompts.base_url": "u",
    }
    free = {"name", "layout", "data.draws", "data.first_draw", "data.val_images", "prompts.agent"}
    tree = Config().model_dump(mode="json")
    for key in keys():
        if key in free or key.startswith("placement."):
            continue
        section, _, name = key.rpartition(".")
        value = tree[section][name] if section else tree[name]
        other = samples.get(key)
        if other is None:
            other = _changed(value)
        extra = {"data": {"root": "x"}, "synthesis": {"root": "y"}, "base": {"checkpoint": "train"}}
        before = Config.model_validate({k: dict(v) for k, v in extra.items()})
        changed = {k: dict(v) for k, v in extra.items()}
        if section:
            changed.setdefault(section, {})[name] = other
        else:
            changed[name] = other
        after = Config.model_validate(changed)
        if before.science() != after.science():
            assert [fingerprint(before, s) for s in STAGES] != [fingerprint(after, s) for s in STAGES], key


def test_differences_name_each_changed_key():
    assert differences(Config().science(), load(None, ["labeling.beta=0.1"]).science()) == ["labeling.beta: 0.5 -> 0.1"]


def test_the_method_is_imported_without_ray():
    code = (
        "import sys, syn4seg.config.tree, syn4seg.store.rundir, syn4seg.stages.labels, syn4seg.stages.novel, syn4seg.stages.plan,"
        "syn4seg.stages.results, syn4seg.data.folder; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", "import sys, ray; sys.exit('ray' in sys.modules)"], check=False).returncode == 1
