"""English for prompts: names as they are said, counted phrases, and class names found as whole words."""

from __future__ import annotations

import pytest

from syn4seg.prompts.english import counted_phrase, mentions, spoken


def test_mentions_asks_for_whole_words():
    assert mentions("Two CARS in the rain", "car") and mentions("a dining-table", "diningtable")
    assert mentions("the diningtable", "diningtable") and mentions("some people", "person")
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
    ],
)
def test_a_phrase_counts_things_in_their_own_units(count, adjective, name, phrase):
    assert counted_phrase(count, adjective, name) == phrase
