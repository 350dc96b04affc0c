"""Words for classes in prompts: a name, or a name with synonyms and a definition; what is wrong is named with its remedy."""

from __future__ import annotations

import pytest
import yaml

from syn4seg.config.class_words import ClassWords, clash, read_names
from syn4seg.config.fingerprint import config_digest, fingerprint
from syn4seg.config.loading import load
from syn4seg.config.tree import Config, annotated
from syn4seg.errors import UserError

MOUSE = {"name": "computer mouse", "synonyms": ["pc mouse", "trackball"], "definition": "the hand-held device that moves a pointer"}


def with_names(names) -> Config:
    return Config.model_validate({"prompts": {"names": names}})


def test_a_text_is_the_name_and_a_mapping_may_have_every_part():
    names = with_names({"mouse": MOUSE, "tv": "television", "bank": {"definition": "the edge of a river"}}).prompts.names
    assert names["mouse"] == ClassWords(name="computer mouse", synonyms=("pc mouse", "trackball"), definition=MOUSE["definition"])
    assert names["mouse"].all_names == ("computer mouse", "pc mouse", "trackball")
    assert names["tv"] == ClassWords(name="television")
    assert names["bank"] == ClassWords(definition="the edge of a river")


def test_a_class_without_a_name_of_its_own_keeps_that_of_the_data_set():
    prompts = with_names({"bank": {"synonyms": ["shore"]}, "tv": "television"}).prompts
    assert prompts.words("bank") == ClassWords(name="bank", synonyms=("shore",))
    assert prompts.words("tv").name == "television" and prompts.words("cat") == ClassWords(name="cat")


def test_white_space_and_line_ends_of_a_folded_text_become_one_space():
    text = "prompts:\n  names:\n    mouse:\n      definition: >\n        the device\n        that points\n"
    assert Config.model_validate(yaml.safe_load(text)).prompts.names["mouse"].definition == "the device that points"


def test_the_command_line_takes_both_forms(tmp_path):
    given = load(None, ["prompts.names={mouse: {name: computer mouse, synonyms: [pc mouse]}}", "prompts.names.tv=television"])
    assert given.prompts.names == {
        "mouse": ClassWords(name="computer mouse", synonyms=("pc mouse",)),
        "tv": ClassWords(name="television"),
    }
    file = tmp_path / "config.yaml"
    file.write_text(annotated(given))
    assert load(file) == given


def test_names_are_stored_as_shortly_as_they_can_be_written():
    names = {
        "mouse": MOUSE,
        "tv": {"name": "television"},
        "cat": {"name": "cat", "synonyms": []},
        "bank": {"definition": "a shore"},
    }
    stored = with_names(names).science()["prompts"]["names"]
    assert stored == {"mouse": MOUSE, "tv": "television", "cat": "cat", "bank": {"definition": "a shore"}}


def test_runs_without_synonyms_and_definitions_keep_their_fingerprints():
    """As the table was stored when it held texts alone."""
    assert Config().science()["prompts"]["names"] == {}
    short, long = with_names({"tv": "television"}), with_names({"tv": {"name": "television"}})
    assert short.science()["prompts"]["names"] == {"tv": "television"}
    assert config_digest(short) == config_digest(long)


def test_every_word_counts_for_the_prompts_and_for_nothing_that_reads_none():
    variants = [
        {},
        {"mouse": "computer mouse"},
        {"mouse": {"name": "computer mouse", "synonyms": ["pc mouse"]}},
        {"mouse": {"name": "computer mouse", "synonyms": ["pc mouse", "trackball"]}},
        {"mouse": {"name": "computer mouse", "synonyms": ["trackball", "pc mouse"]}},
        {"mouse": {"name": "computer mouse", "definition": "points"}},
    ]
    configs = [with_names(names) for names in variants]
    assert len({fingerprint(config, "prompts") for config in configs}) == len({config_digest(c) for c in configs}) == len(variants)
    assert len({fingerprint(config, "base") for config in configs}) == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{mouse: {nmae: a}}", "prompts.names.mouse.nmae: unknown key; did you mean name?; expected a name, or {name: ..."),
        ("{mouse: {}}", "prompts.names.mouse={}: expected a name, or {name: ..., synonyms: [...], definition: ...}; leave"),
        ("{mouse: no}", "prompts.names.mouse=False: expected a name, or {name: ..., synonyms: [...], definition: ...}; quote"),
        ("{mouse: [pc mouse]}", "prompts.names.mouse=['pc mouse']: expected a name, or"),
        ("{mouse: ''}", "prompts.names.mouse='': expected 1 to 100 printable characters; shorten it, or leave it out"),
        ("{mouse: {name: 3}}", "prompts.names.mouse.name=3: expected a name"),
        ("{mouse: {synonyms: pc mouse}}", "prompts.names.mouse.synonyms='pc mouse': expected a list of at most 20 names"),
        ("{mouse: {synonyms: [1]}}", "prompts.names.mouse.synonyms=1: expected a text; quote"),
        ("{mouse: {name: a, synonyms: [b, A]}}", "prompts.names.mouse.synonyms: 'A' stands there twice, or is the name itself"),
        ("{mouse: {synonyms: [b, B]}}", "prompts.names.mouse.synonyms: 'b' stands there twice"),
        (f"{{mouse: {{definition: {'x' * 401}}}}}", "expected 1 to 400 printable characters"),
        ('{mouse: "a\\0b"}', "expected 1 to 100 printable characters"),
        (
            "{mouse: rat, rat: {synonyms: [Rat]}}",
            "prompts.names: 'Rat' names both 'mouse' and 'rat'; give each class words of its own",
        ),
        ("3", "prompts.names=3: input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_is_named_with_key_value_and_remedy(value, said):
    with pytest.raises(UserError) as error:
        load(None, [f"prompts.names={value}"])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_word_for_one_class_is_not_the_name_of_another_one():
    classes = ("mouse", "rat", "cat")
    assert clash(read_names({"mouse": "computer mouse", "rat": {"synonyms": ["rodent"]}}), classes) == ""
    assert "prompts.names.mouse: 'Rat' is another class of the data set" in clash(read_names({"mouse": "Rat"}), classes)
    assert "'cat'" in clash(read_names({"mouse": {"synonyms": ["cat"]}}), classes)
    assert clash(read_names({"mouse": "rat", "rat": "brown rat"}), classes) == ""  # nobody calls the rat "rat" any more
    assert clash(read_names({"mouse": {"name": "mouse"}}), classes) == ""
