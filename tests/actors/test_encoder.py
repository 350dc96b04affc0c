"""The text encoders in their own short life: the same numbers in an actor as inline, one-line errors, and gone afterwards."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from actors import encoder as encoder_module
from actors.encoder import RemoteTextModels, TextModels, prompt_agent, text_encoder
from syn4seg.config.class_words import ClassWords
from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.errors import UserError, WorkerError
from syn4seg.models.generators import load_text_encoder
from syn4seg.prompts.grammar import GrammarAgent

PROMPTS = ["a big red star on sand", "two small blue moons on fog", "a big red star on sand"]
INLINE, RAY = "placement.runner=inline", "placement.runner=ray"


def config(*keys: str) -> Config:
    return load(None, ["synthesis.model=embedded-sd3", *keys])


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def one_line(call: Any, *args: Any, kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as caught:
        call(*args)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


def opened(chosen: Config) -> None:
    with text_encoder(chosen):
        pass


def test_inline_it_is_the_text_encoder_itself_and_lets_go_of_it_at_the_end():
    with text_encoder(config(INLINE)) as encoder:
        assert isinstance(encoder, TextModels)
        assert same(encoder.encode(PROMPTS), load_text_encoder("embedded-sd3", device="cpu").encode(PROMPTS))
    assert encoder.encoder is None and encoder.agent is None


def test_it_lets_go_also_when_the_block_fails():
    with pytest.raises(KeyboardInterrupt), text_encoder(config(INLINE)) as encoder:
        raise KeyboardInterrupt
    assert isinstance(encoder, TextModels) and encoder.encoder is None


def test_a_bag_of_words_needs_no_actor_and_starts_no_cluster():
    with text_encoder(load(None, [RAY, "synthesis.model=renderer"])) as encoder:
        assert isinstance(encoder, TextModels)
        assert same(encoder.encode(PROMPTS), load_text_encoder("renderer").encode(PROMPTS))


def test_a_model_that_is_not_there_is_the_same_line_inline(tmp_path):
    said = one_line(opened, config(INLINE, f"synthesis.model={tmp_path}"))
    assert "has no model_index.json (found: nothing)" in said


def test_the_grammar_proposes_in_this_process_and_a_local_language_model_beside_the_encoder():
    chosen = config(INLINE)
    models = TextModels(chosen)
    agent = prompt_agent(chosen, models)
    assert isinstance(agent, GrammarAgent)
    assert agent.propose("star", 0, [], []) == GrammarAgent(world="embedded", seed=0).propose("star", 0, [], [])
    local = config(INLINE, "prompts.agent=transformers", "prompts.llm=some/model")
    assert prompt_agent(local, models) is models


def test_the_agent_knows_the_words_of_a_class_by_the_name_under_which_it_is_asked(monkeypatch):
    source = encoder_module.generator_source
    told = config(INLINE, "prompts.names={ball: {name: round thing, synonyms: [sphere]}, moon: {definition: a crescent}}")
    assert prompt_agent(told, TextModels(told)).words == {}, "the embedded world has its own names"
    monkeypatch.setattr(encoder_module, "generator_source", lambda name: dataclasses.replace(source(name), world="natural"))
    assert prompt_agent(told, TextModels(told)).words == {
        "round thing": ClassWords(name="round thing", synonyms=("sphere",)),
        "moon": ClassWords(name="moon", definition="a crescent"),
    }


def test_a_proposal_reaches_the_agent_with_everything_that_it_may_see():
    class Echo:
        """Proposes what it was told."""

        def propose(self, *told):
            return [repr(told)]

    models = TextModels(config(INLINE))
    models.agent = Echo()
    assert models.propose("star", 3, ["a"], [("b", "why")]) == ["('star', 3, ['a'], [('b', 'why')])"]


@pytest.mark.slow
def test_in_an_actor_it_gives_the_same_bits_and_is_dead_afterwards(ray_cluster):
    import ray

    before = ray.available_resources()["CPU"]
    with text_encoder(config(RAY)) as encoder:
        assert isinstance(encoder, RemoteTextModels)
        made = encoder.encode(PROMPTS)
        assert same(made, load_text_encoder("embedded-sd3", device="cpu").encode(PROMPTS))
        assert "no attribute 'propose'" in one_line(encoder.propose, "star", 0, [], [], kind=WorkerError)
        assert same(encoder.encode(PROMPTS), made), "an error must not cost the actor"
        assert ray.available_resources()["CPU"] < before
    assert "the text encoders: a process was lost" in one_line(encoder.encode, PROMPTS)


@pytest.mark.slow
def test_the_actor_asks_for_the_resources_that_its_pool_names(ray_cluster):
    import ray

    own = next(key for key in ray.cluster_resources() if key.startswith("node:127"))
    with text_encoder(config(RAY, f"placement.encoding.resources={{{own!r}: 0.5}}")):
        assert ray.available_resources()[own] <= 0.5


@pytest.mark.slow
def test_in_an_actor_too_a_model_that_is_not_there_is_the_same_line(tmp_path, ray_cluster):
    said = one_line(opened, config(RAY, f"synthesis.model={tmp_path}"))
    assert said == one_line(opened, config(INLINE, f"synthesis.model={tmp_path}"))


@pytest.mark.slow
def test_an_actor_that_fits_on_no_node_is_refused_before_it_is_asked_for(ray_cluster):
    said = one_line(opened, config(RAY, "placement.encoding.gpus=3"))
    assert "placement.encoding.gpus=3: one actor needs more GPUs than the largest node has" in said
    assert "placement.encoding.cpus=999" in one_line(opened, config(RAY, "placement.encoding.cpus=999"))
