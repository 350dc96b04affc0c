"""Fingerprints: every key of the configuration changes exactly the stages that depend on it, and only those."""

from __future__ import annotations

import re
import sys
from typing import Any, get_args

import pytest

from syn4seg.config.fingerprint import NOT_READ, SECTIONS, UPSTREAM, config_digest, fingerprint, section_values, source_digest
from syn4seg.config.tree import NOT_SCIENCE, Config, keys

STAGES = tuple(UPSTREAM)
FIRST = {
    "seed": {"prompts", "base"},
    "protocol": {"scores"},
    "data": {"labels"},
    "prompts": {"prompts"},
    "synthesis": {"images"},
    "segmenter": {"base"},
    "base": {"base"},
    "labeling": {"labels"},
    "refinement": {"labels"},
    "novel": {"labels"},
    "joint": {"scores"},
    "evaluation": {"scores"},
    "name": set(),
    "layout": set(),
    "placement": set(),
    "logging": set(),
}
"""Section -> the first stages that change with it, written down independently of the code."""
EXCEPTIONS = {
    **{key: {"prompts", "base"} for key in ["data.source", "data.root", "data.fold"]},
    **{key: {"base"} for key in ["data.train_images", "data.train_list", "data.masks", "data.exif", "data.support_reserve"]},
    **{key: set() for key in ["data.draws", "data.first_draw", "prompts.timeout", "prompts.base_url", "prompts.key_variable"]},
    **{f"synthesis.{k}": set() for k in ("timeout", "base_url", "key_variable", "max_images")},
    **{f"synthesis.{k}": {"labels"} for k in ("check", "check_margin")},
    "synthesis.support_strength": set(),  # no image starts from a support image
    **{
        key: {"prompts"}
        for key in [f"synthesis.{k}" for k in ("source", "root", "model", "images_per_class", "class_name_bank", "batch")]
    },
}
BEHIND = {
    "prompts": {"prompts", "images", "labels", "scores"},
    "images": {"images", "labels", "scores"},
    "base": {"base", "labels", "scores"},
    "labels": {"labels", "scores"},
    "scores": {"scores"},
}
BEFORE = {"data": {"root": "folder"}, "synthesis": {"root": "folder"}, "base": {"checkpoint": "train"}, "prompts": {"llm": "m"}}
"""What some other values need to be valid."""


SHORT_LISTS = {"base.classes": ["cat"], "evaluation.baselines": ["bcm"], "evaluation.rows": ["apr"], "refinement.hints": ["point"]}
"""Values of keys whose lists have no item by default, or one."""


def other_value(key, value, field):
    """A valid value of a key that differs from the one it has."""
    choices = [c for c in get_args(field.annotation) if isinstance(c, str)]
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 16
    if isinstance(value, float):
        return value / 2 + 0.013
    if bool in get_args(field.annotation):  # or a word, such as auto
        return True
    if isinstance(value, str):
        return f"{value}_x"
    if isinstance(value, list):
        return value[::-1] if len(set(map(str, value))) > 1 else SHORT_LISTS.get(key, [])
    if isinstance(value, dict):
        return {"more": "1"}
    assert value is None, (key, value)
    return 99 if re.search(r"int|float", str(field.annotation)) else "x"


def with_value(key, value):
    tree = {section: dict(values) for section, values in BEFORE.items()}
    *sections, name = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value
    return Config.model_validate(tree)


@pytest.mark.parametrize("key", keys())
def test_a_key_changes_exactly_the_stages_behind_it(key):
    before = Config.model_validate(BEFORE)
    value = before.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    after = with_value(key, other_value(key, value, keys()[key]))
    changed = {stage for stage in STAGES if fingerprint(before, stage) != fingerprint(after, stage)}
    first = EXCEPTIONS.get(key, FIRST[key.partition(".")[0]])
    assert changed == set().union(*(BEHIND[stage] for stage in first))
    assert (config_digest(before) != config_digest(after)) == bool(first)


def with_support(**changes):
    tree: dict[str, Any] = {"synthesis": {"support": "image_to_image"}}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return Config.model_validate(tree)


@pytest.mark.parametrize(
    "change",
    [
        {"synthesis__support_strength": 0.5},
        {"data__first_draw": 1},
        {"data__shots": 5},
        {"data__min_support_area": 0.1},
        {"seed": 1},
    ],
)
def test_images_from_support_images_belong_to_the_draw_that_names_these(change):
    before, after = with_support(), with_support(**change)
    assert fingerprint(before, "images") != fingerprint(after, "images") and config_digest(before) != config_digest(after)
    assert change == {"seed": 1} or all(fingerprint(before, s) == fingerprint(after, s) for s in ("prompts", "base"))


def test_without_support_images_nothing_changes_and_the_keys_are_no_science():
    plain, other = Config(), Config.model_validate({"data": {"first_draw": 3}, "synthesis": {"support_strength": 0.2}})
    assert all(fingerprint(plain, stage) == fingerprint(other, stage) for stage in STAGES)
    assert not {"support", "support_strength"} & set(plain.science()["synthesis"]) and "first_draw" not in plain.science()["data"]
    supported = with_support()
    assert all(fingerprint(plain, s) == fingerprint(supported, s) for s in ("prompts", "base"))
    assert all(fingerprint(plain, s) != fingerprint(supported, s) for s in ("images", "labels", "scores"))


def test_the_lists_of_keys_that_do_not_count_name_keys_that_exist():
    known = {*keys(), *(key.partition(".")[0] for key in keys())}
    listed = {*NOT_SCIENCE, *(key for skipped in NOT_READ.values() for key in skipped)}
    assert listed <= known
    assert {section for sections in SECTIONS.values() for section in sections} <= known


def test_a_key_that_is_added_to_a_section_counts_without_being_listed(monkeypatch):
    before, science = fingerprint(Config(), "labels"), Config.science
    monkeypatch.setattr(Config, "science", lambda self: (tree := science(self)) | {"novel": tree["novel"] | {"added": 1}})
    assert fingerprint(Config(), "labels") != before


def test_the_order_of_sections_and_keys_changes_no_fingerprint(monkeypatch):
    def fingerprints():
        return [config_digest(Config()), *(fingerprint(Config(), stage) for stage in STAGES)]

    before, science = fingerprints(), Config.science

    def turned(self):
        return {k: dict(reversed(v.items())) if isinstance(v, dict) else v for k, v in reversed(science(self).items())}

    monkeypatch.setattr(Config, "science", turned)
    assert fingerprints() == before and all(len(digest) == 16 for digest in before)


def test_the_values_of_a_section_leave_out_what_is_named_and_nothing_else():
    labeling = Config().labeling
    whole, part = section_values(labeling), section_values(labeling, without=("beta",))
    assert {**part, "beta": labeling.beta} == whole
    assert section_values(labeling, without=whole) == {}
    assert section_values(Config().segmenter)["ppm_bins"] == [1, 2, 3, 6]  # plain JSON, no tuple
    with pytest.raises(AssertionError):
        section_values(labeling, without=("gone",))


def test_the_digest_of_a_source_changes_with_a_character_of_any_module_in_it(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    for name in ("__init__", "one", "two"):
        (package / f"{name}.py").write_text(f"NAME = {name!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_package", raising=False)  # of an earlier run of this test in the same process

    def digests():
        from syn4seg.config import fingerprint as module

        module._source_of.cache_clear()
        return [source_digest(name) for name in ("some_package", "some_package.one", "some_package.two")]

    before = digests()
    (package / "one.py").write_text("NAME = 'One'\n")
    after = digests()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True] and len({*before, *after}) == 5
    (package / "two.py").write_text('"""A docstring."""\n# a comment\nNAME = (\n    "two"\n)\n')
    assert digests()[2] == before[2]
