"""The grammar agent: deterministic, never repeats, correct English, obeyed by the embedded world."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.prompts.agents import check_agent, load_agent
from syn4seg.prompts.chat import ChatAgent
from syn4seg.prompts.english import mentions, spoken
from syn4seg.prompts.grammar import GrammarAgent, plain_prompt

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


def test_the_embedded_world_draws_what_the_agent_asks_for():
    for name in embedded.CLASSES:
        for i, prompt in enumerate(GrammarAgent("embedded", 0, 12).propose(name, 0, [], [])):
            scene = embedded.scene_of_prompt(prompt, i)
            thing, words = scene.things[0], prompt.split()
            assert {t.name for t in scene.things} == {name}
            assert thing.colour in words and scene.background in words
            assert len(scene.things) == embedded.COUNTS[words[0]]
            said = [w for w in words if w in embedded.PATTERNS]
            assert said in ([], [thing.pattern])


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


def test_mentions_asks_for_whole_words():
    assert mentions("Two CARS in the rain", "car") and mentions("a dining-table", "diningtable")
    assert mentions("the diningtable", "diningtable") and mentions("some people", "person")
    assert not mentions("a cartoon of a scarf", "car") and not mentions("", "car")


def test_the_class_name_prompt_of_each_world():
    assert plain_prompt("star", "embedded") == "a star"
    assert plain_prompt("arrow", "embedded") == "an arrow"
    assert embedded.scene_of_prompt(plain_prompt("arrow", "embedded"), 0).things[0].name == "arrow"


def test_a_class_outside_the_embedded_world_is_an_error_that_lists_the_classes():
    with pytest.raises(UserError, match=r"'dog'.*ball, donut.*natural"):
        GrammarAgent("embedded", 0).propose("dog", 0, [], [])
    with pytest.raises(UserError, match=r"'marsian'.*embedded.*natural"):
        plain_prompt("star", "marsian")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="empty"):
        plain_prompt(" ", "natural")


def test_the_grammar_is_loaded_by_name_and_needs_neither_model_nor_key():
    check_agent("grammar", llm=None, base_url="nonsense", key_variable="")
    assert load_agent("grammar", world="natural", seed=3, per_round=2) == GrammarAgent("natural", 3)


@pytest.mark.parametrize(
    "agent, llm, why",
    [
        ("oracle", "x", r"'oracle' is unknown; expected grammar, chat or transformers"),
        ("", "x", "expected grammar, chat or"),
        ("Grammar", None, "expected grammar, chat or"),
        ("chat", None, r"prompts\.llm is empty, but prompts\.agent is 'chat'"),
        ("chat", "", r"prompts\.llm is empty"),
        ("transformers", None, r"prompts\.llm is empty.*'transformers'"),
        ("chat", "gpt", r"prompts\.key_variable=NO_SUCH_KEY: this environment variable is not set"),
        ("transformers", "./absent/x", r"prompts\.llm=\./absent/x: neither a folder nor a hub id"),
    ],
)
def test_what_cannot_be_an_agent_is_refused_alike_by_the_check_and_by_loading(agent: str, llm: str | None, why: str):
    with pytest.raises(UserError, match=why):
        check_agent(agent, llm=llm, base_url=None, key_variable="NO_SUCH_KEY")
    with pytest.raises(UserError, match=why):
        load_agent(agent, world="natural", seed=0, llm=llm, key_variable="NO_SUCH_KEY")


def test_a_folder_without_a_model_is_refused_before_anything_loads(tmp_path: Path):
    with pytest.raises(UserError, match=r"prompts\.llm=.*no config\.json in this folder \(found: nothing\)"):
        check_agent("transformers", llm=str(tmp_path), base_url=None, key_variable="")
    check_agent("transformers", llm="someone/a-model", base_url=None, key_variable="")  # a hub id is not asked for here


def test_a_chat_agent_gets_every_setting_and_sends_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        check_agent("chat", llm="gpt", base_url=url, key_variable="NO_SUCH_KEY")
        made = load_agent(
            "chat",
            world="natural",
            seed=3,
            llm="gpt",
            base_url=url,
            key_variable="NO_SUCH_KEY",
            per_round=5,
            temperature=0.5,
            timeout=7,
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert isinstance(made, ChatAgent) and made.endpoint == (url, True, "")
    told = (made.model, made.world, made.seed, made.per_round, made.temperature, made.timeout)
    assert told == ("gpt", "natural", 3, 5, 0.5, 7)


def test_a_class_is_spoken_as_words():
    said = {"diningtable": "dining table", "tv": "TV", "wine_glass": "wine glass", "dog": "dog"}
    assert {name: spoken(name) for name in said} == said
