"""The grammar agent: deterministic, never repeats, correct English, words of the embedded world."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.config.class_words import ClassWords
from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.prompts.english import mentions
from syn4seg.prompts.grammar import GrammarAgent, plain_prompt
from syn4seg.prompts.words import KINDS

NAMES = (
    "aeroplane",
    "bicycle",
    "diningtable",
    "pottedplant",
    "tvmonitor",
    "person",
    "sheep",
    "umbrella",
    "scissors",
    "knife",
    "wine glass",
    "bus",
    "skis",
    "broccoli",
    "unicorn",
    "hourglass",
    "mouse",
    "teddy bear",
)


FIRST_OF_DOG = [
    "a candid photo of a black dog running on a beach, seen from above, bright midday sun",
    "a detailed photo of an old dog lying down on a hill, from the side, backlit",
]
"""As commit f613532 proposed them: the bytes of a run hang on them."""


def everything(agent: GrammarAgent, name: str, rounds: int) -> list[str]:
    return [p for r in range(rounds) for p in agent.propose(name, r, [], [])]


def test_a_round_depends_on_nothing_but_seed_class_and_round():
    agent = GrammarAgent("natural", seed=3)
    one = agent.propose("bicycle", 2, [], [])
    again = GrammarAgent("natural", seed=3).propose("bicycle", 2, ["x"], [("y", "near duplicate")])
    assert one == again
    assert one != GrammarAgent("natural", seed=4).propose("bicycle", 2, [], [])
    assert one != agent.propose("bicycle", 3, [], [])


def test_classes_do_not_share_their_order_of_sentences():
    agent = GrammarAgent("embedded", seed=0)
    assert [p.replace("moon", "star") for p in agent.propose("moon", 0, [], [])] != agent.propose("star", 0, [], [])


def test_round_size_only_cuts_the_same_sequence_differently():
    assert everything(GrammarAgent("natural", 1, 10), "dog", 6) == everything(GrammarAgent("natural", 1, 20), "dog", 3)


def test_the_embedded_grammar_names_every_sentence_of_the_world_once_then_falls_silent():
    agent = GrammarAgent("embedded", seed=0, per_round=400)
    prompts = everything(agent, "hourglass", 3)
    assert len(prompts) == len(set(prompts)) == 2 * 2 * 8 * 3 * 2 * 6
    assert agent.propose("hourglass", 3, [], []) == []
    assert {w for p in prompts for w in p.split()} <= set(embedded.vocabulary())


@pytest.mark.parametrize("name", NAMES)
def test_the_natural_grammar_has_over_5000_distinct_prompts_that_all_name_the_class(name):
    prompts = GrammarAgent("natural", 0, 6000).propose(name, 0, [], [])
    assert len(set(prompts)) == 6000
    assert all(mentions(p, name) for p in prompts)
    assert all("  " not in p and "a a" not in p.split(" of ") for p in prompts)


@pytest.mark.parametrize(
    "name, one, two",
    [
        ("bicycle", "a photo of a bicycle", "bicycles"),
        ("umbrella", "a photo of an umbrella", "umbrellas"),
        ("hourglass", "a photo of an hourglass", "hourglasses"),
        ("unicorn", "a photo of a unicorn", "unicorns"),
        ("person", "a photo of a person", "people"),
        ("knife", "a photo of a knife", "knives"),
        ("wine glass", "a photo of a wine glass", "wine glasses"),
        ("diningtable", "a photo of a dining table", "dining tables"),
        ("scissors", "a photo of a pair of scissors", "pairs of scissors"),
        ("bus", "a photo of a bus", "buses"),
        ("berry", "a photo of a berry", "berries"),
        ("toy", "a photo of a toy", "toys"),
        ("bench", "a photo of a bench", "benches"),
    ],
)
def test_articles_and_plurals_are_english(name, one, two):
    assert plain_prompt(name, "natural") == one
    prompts = GrammarAgent("natural", 0, 300).propose(name, 0, [], [])
    assert any(f" {two} " in p for p in prompts if "of two" in p)
    for p in prompts:
        words = p.split()
        for word, following in itertools.pairwise(words):
            if word in ("a", "an") and following not in ("unicorn", "hourglass"):
                assert (word == "an") == (following[0] in "aeiou"), p


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 2**31), st.integers(0, 40))
def test_every_round_is_full_of_fresh_prompts(name, seed, round_index):
    agent = GrammarAgent("natural", seed, 8)
    here, there = agent.propose(name, round_index, [], []), agent.propose(name, round_index + 1, [], [])
    assert len({*here, *there}) == 16


def test_words_of_a_round_are_spread_over_the_grammar():
    prompts = GrammarAgent("natural", 0, 1000).propose("dog", 0, [], [])
    nights = np.mean([p.endswith("at night") for p in prompts])
    assert 0.06 < nights < 0.20  # one of eight lights


def test_synonyms_take_turns_with_the_name_and_a_class_without_any_keeps_its_sentences():
    words = {"mouse": ClassWords(name="mouse", synonyms=("pc mouse", "trackball"))}
    plain, rich = GrammarAgent("natural", 3, 600), GrammarAgent("natural", 3, 600, words)
    prompts = rich.propose("mouse", 0, [], [])
    assert prompts == GrammarAgent("natural", 3, 600, words).propose("mouse", 0, [], []) != plain.propose("mouse", 0, [], [])
    shares = [
        np.mean([mentions(p, name) and (name != "mouse" or not mentions(p, "pc mouse")) for p in prompts])
        for name in ("mouse", "pc mouse", "trackball")
    ]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0.25, "every sentence has one name, each as often"
    assert any(" two " in p and "trackballs" in p for p in prompts)
    assert rich.propose("dog", 1, [], []) == plain.propose("dog", 1, [], [])
    assert GrammarAgent("embedded", 3, words={"star": words["mouse"]}).propose("star", 0, [], []) == GrammarAgent(
        "embedded", 3
    ).propose("star", 0, [], [])


def test_the_first_sentences_of_a_class_stay_what_they_were():
    assert GrammarAgent("natural", 0, 2).propose("dog", 0, [], []) == FIRST_OF_DOG


def test_a_thing_of_an_unknown_name_is_of_the_kind_of_its_synonym():
    prompts = GrammarAgent("natural", 0, 200, {"moggy": ClassWords(name="moggy", synonyms=("cat",))}).propose("moggy", 0, [], [])
    kind = next(kind for kind in KINDS if "cat" in kind.names)
    assert all(any(state in p for state in kind.states) for p in prompts)


def test_the_class_name_prompt_of_each_world():
    assert plain_prompt("star", "embedded") == "a star"
    assert plain_prompt("arrow", "embedded") == "an arrow"
    for seed in range(20):  # other objects may stand behind it or before it
        assert "arrow" in [thing.name for thing in embedded.scene_of_prompt(plain_prompt("arrow", "embedded"), seed).things]


def test_a_class_outside_the_embedded_world_is_an_error_that_lists_the_classes():
    with pytest.raises(UserError, match=r"'dog'.*ball, donut.*natural"):
        GrammarAgent("embedded", 0).propose("dog", 0, [], [])
    with pytest.raises(UserError, match=r"'marsian'.*embedded.*natural"):
        plain_prompt("star", "marsian")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="empty"):
        plain_prompt(" ", "natural")
