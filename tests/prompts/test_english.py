"""English for prompts: names as they are said, counted phrases, and class names found as whole words."""

from __future__ import annotations

import pytest

from syn4seg.prompts.english import counted_phrase, mentions, spoken


def test_mentions_asks_for_whole_words():
    assert mentions("Two CARS in the rain", "car") and mentions("a dining-table", "diningtable")
    assert mentions("the diningtable", "diningtable") and mentions("some people", "person")
    assert mentions("two children", "child") and mentions("two pairs of jeans", "jeans") and mentions("his glasses", "glasses")
    assert not mentions("a cartoon of a scarf", "car") and not mentions("", "car")


def test_a_class_is_spoken_as_words():
    said = {"diningtable": "dining table", "tv": "TV", "wine_glass": "wine glass", "dog": "dog"}
    assert {name: spoken(name) for name in said} == said


@pytest.mark.parametrize(
    "count, adjective, name, phrase",
    [
        ("a", "old", "bicycle", "an old bicycle"),
        ("two", "old", "bicycle", "two old bicycles"),
        ("three", "small", "scissors", "three small pairs of scissors"),
        ("two", "fresh", "broccoli", "two fresh heads of broccoli"),
        ("two", "new", "tv", "two new TVs"),
        ("a", "", "skis", "a pair of skis"),
        *[("two", "", one, f"two {many}") for one, many in (("leaf", "leaves"), ("wolf", "wolves"), ("child", "children"))],
        *[("two", "", one, f"two {many}") for one, many in (("man", "men"), ("potato", "potatoes"), ("person", "people"))],
        *[("two", "", one, f"two {many}") for one, many in (("mouse", "mice"), ("bus", "buses"), ("teddy bear", "teddy bears"))],
        ("two", "", "glasses", "two pairs of glasses"),
        ("a", "", "jeans", "a pair of jeans"),
        ("a", "", "SUV", "an SUV"),
        ("a", "", "unicorn", "a unicorn"),
        ("a", "", "hourglass", "an hourglass"),
        ("a", "", "日本語", "a 日本語"),
    ],
)
def test_a_phrase_counts_things_in_their_own_units(count, adjective, name, phrase):
    assert counted_phrase(count, adjective, name).replace("  ", " ") == phrase
