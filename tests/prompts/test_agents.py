"""Prompt agents are loaded by name; what cannot be one is refused before anything loads."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from syn4seg.config.class_words import ClassWords
from syn4seg.errors import UserError
from syn4seg.prompts.agents import check_agent, load_agent
from syn4seg.prompts.chat import ChatAgent
from syn4seg.prompts.grammar import GrammarAgent

WORDS = {"mouse": ClassWords(name="mouse", synonyms=("trackball",))}


def test_the_grammar_is_loaded_by_name_and_needs_neither_model_nor_key():
    check_agent("grammar", llm=None, base_url="nonsense", key_variable="")
    assert load_agent("grammar", world="natural", seed=3, per_round=2) == GrammarAgent("natural", 3)
    assert load_agent("grammar", world="natural", seed=3, words=WORDS) == GrammarAgent("natural", 3, words=WORDS)


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
        agent = load_agent(
            "chat",
            world="natural",
            seed=3,
            llm="gpt",
            base_url=url,
            key_variable="NO_SUCH_KEY",
            per_round=5,
            temperature=0.5,
            timeout=7,
            words=WORDS,
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert isinstance(agent, ChatAgent) and agent.client.place == (url, True, "")
    settings = (agent.model, agent.world, agent.seed, agent.per_round, agent.temperature, agent.client.timeout)
    assert settings == ("gpt", "natural", 3, 5, 0.5, 7) and agent.words == WORDS
