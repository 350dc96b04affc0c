"""Protocol presets: what they set, that given keys win, and that every deviation is said."""

from __future__ import annotations

import pytest
import yaml

from syn4seg.config.loading import load
from syn4seg.config.protocols import DIAM, POP, STATED
from syn4seg.config.tree import annotated, keys

PASCAL = ["data.source=pascal", "data.root=somewhere", "base.checkpoint=train"]


@pytest.mark.parametrize(("name", "values"), [("diam", DIAM), ("pop", POP)])
def test_a_preset_sets_existing_keys_and_then_nothing_deviates_but_what_no_key_removes(name, values):
    assert set(values) <= set(keys())
    config = load(None, [*PASCAL, f"protocol={name}"])
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        section, _, rest = key.partition(".")
        assert tree[section][rest] == value, key
    stated = config.deviations()
    assert stated[-len(STATED[name]) :] == list(STATED[name]) and not any(" -> " in line for line in stated)
    assert any("3-convolution stem" in line for line in stated)


def test_the_two_families_differ_in_everything_that_makes_numbers_incomparable():
    for key in (
        "data.train_list",
        "data.support_from",
        "data.base_in_support",
        "evaluation.space",
        "evaluation.background_in_base",
        "evaluation.mean",
        "data.only_one_novel",
        "base.images",
    ):
        assert DIAM[key] != POP[key]


def test_a_given_key_wins_over_the_preset_and_is_named_as_a_deviation(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("protocol: diam\ndata: {source: pascal, root: x, draws: 2}\nbase: {checkpoint: train}\n")
    config = load(file, ["segmenter.size=96"])
    assert config.data.draws == 2 and config.segmenter.size == 96 and config.evaluation.space == "canvas"
    assert config.deviations()[:2] == ["data.draws: 5 -> 2", "segmenter.size: 417 -> 96"]


def test_coco_has_its_own_queries_and_draws():
    coco = ["data.source=coco", "data.root=x", "base.checkpoint=train"]
    assert load(None, [*coco, "protocol=diam"]).evaluation.queries == 10000
    assert load(None, [*coco, "protocol=diam"]).data.masks == "first_polygon"
    assert load(None, [*coco, "protocol=pop"]).data.draws == 2
    assert load(None, [*PASCAL, "protocol=diam"]).evaluation.queries is None


def test_no_protocol_means_nothing_to_deviate_from():
    assert load(None).deviations() == [] and load(None).protocol == "none"


def test_the_written_tree_of_a_preset_reads_back_as_the_same_configuration(tmp_path):
    config = load(None, [*PASCAL, "protocol=pop", "data.shots=5"])
    (tmp_path / "c.yaml").write_text(annotated(config))
    assert load(tmp_path / "c.yaml") == config
    assert yaml.safe_load(annotated(config))["protocol"] == "pop"
