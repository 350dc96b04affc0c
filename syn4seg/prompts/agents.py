"""Prompt agents: who proposes the candidate prompts of a class. The grammar agent needs no language model; `load_agent` has two
more that do.

A grammar is a product of word lists; a seeded permutation of that product is cut into rounds, so the proposals of a
round are a pure function of (seed, class, round), and no sentence ever comes twice. There are two grammars: the
sentences of the embedded world, and natural English for any class name, with words that suit the kind of thing (an
animal runs, a pizza does not).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np

from syn4seg.data import embedded
from syn4seg.prompts.words import COUNTS, KINDS, LIGHTS, OPENINGS, THING, VIEWS

World = Literal["embedded", "natural"]


class PromptAgent(Protocol):
    """Proposes candidate prompts in rounds (HDIG, method.md section 1)."""

    def propose(
        self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]
    ) -> list[str]:
        """One round of candidates, in the order in which they are to be judged.

        Args:
            class_name: the novel class, as the data set spells it.
            round_index: 0, 1, 2...
            accepted: the bank so far, in order.
            refused: (prompt, why) of every candidate refused so far, in order.

        Returns:
            Any number of prompts; an empty, repeated or off-class one costs patience and nothing else.
        """
        ...


# ------------------------------------------------------------------------------------------------- English
_SPOKEN = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "TV monitor", "tv": "TV"}
_PLURALS = {"person": "people", "sheep": "sheep", "fish": "fish", "mouse": "mice", "knife": "knives", "deer": "deer",
            "skis": "skis", "scissors": "scissors", "broccoli": "broccoli"}  # fmt: skip
_MEASURES = {"skis": ("pair", "pairs"), "scissors": ("pair", "pairs"), "broccoli": ("head", "heads")}


def spoken(class_name: str) -> str:
    """A class name as one says it: "dining table" for "diningtable"."""
    name = " ".join(class_name.replace("_", " ").split())
    return _SPOKEN.get(name.lower(), name)


def _plural(noun: str) -> str:
    head, _, last = noun.rpartition(" ")
    if last.lower() in _PLURALS:
        last = _PLURALS[last.lower()]
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}".strip()


def _article(words: str) -> str:
    """Prefixes "a" or "an", by sound as far as spelling tells it."""
    silent_h, like_you = (
        re.match(r"(hour|honest|heir)", words, re.I),
        re.match(r"(uni[^nm]|us[ei]|eu|one\b)", words, re.I),
    )
    vowel = words[:1].lower() in tuple("aeiou")
    return f"an {words}" if silent_h or (vowel and not like_you) else f"a {words}"


def _group(count: str, adjective: str, class_name: str) -> str:
    """A counted noun phrase: "an old bicycle", "two old bicycles", "three small pairs of scissors"."""
    noun = spoken(class_name)
    if noun.lower() in _MEASURES:
        one, many = (f"{unit} of {noun}" for unit in _MEASURES[noun.lower()])
    else:
        one, many = noun, _plural(noun)
    return _article(f"{adjective} {one}".strip()) if count == "a" else f"{count} {adjective} {many}"


def mentions(prompt: str, class_name: str) -> bool:
    """Whether a prompt names the class: its name as stored or as spoken, or the plural, as whole words in any case."""
    noun = spoken(class_name)
    for form in (class_name, noun, _plural(noun)):
        words = r"[\s-]+".join(map(re.escape, form.split()))
        if words and re.search(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE):
            return True
    return False


def plain_prompt(class_name: str, world: World) -> str:
    """The class-name prompt of the ablation: "a star" in the embedded world, "a photo of a star" in the natural one."""
    _check_world(class_name, world)
    phrase = _group("a", "", class_name)
    return phrase if world == "embedded" else f"a photo of {phrase}"


def _check_world(class_name: str, world: World) -> None:
    if world not in ("embedded", "natural"):
        raise ValueError(f'world is {world!r}; expected "embedded" or "natural"')
    if not spoken(class_name):
        raise ValueError("class name is empty; expected the name of the novel class, such as 'bicycle'")
    if world == "embedded" and class_name not in embedded.CLASSES:
        raise ValueError(f"class {class_name!r} is unknown to the embedded world; expected one of "
                         f'{", ".join(embedded.CLASSES)}, or world="natural"')  # fmt: skip


# ------------------------------------------------------------------------------------------------ the agent
@dataclass(frozen=True)
class GrammarAgent:
    """Draws from a grammar: attributes x states x places x views x lights x counts.

    Attributes:
        world: "embedded" for `embedded.prompt_of`'s sentences (1,152 per class), "natural" for English (over 500,000).
        seed: names the order in which the sentences come.
        per_round: prompts per round, at least 1.
    """

    world: World
    seed: int
    per_round: int = 64

    def propose(
        self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]
    ) -> list[str]:
        """Prompts `per_round * round_index` onwards of the class; fewer, then none, once the grammar is exhausted.

        `accepted` and `refused` are the interface's: a grammar that never repeats a sentence has no use for them.

        Raises:
            ValueError: `class_name` is not of this world.
        """
        _check_world(class_name, self.world)
        words = _embedded_words() if self.world == "embedded" else _natural_words(class_name)
        shape = tuple(map(len, words))
        order = _order(self.seed, self.world, class_name, math.prod(shape))
        part = order[round_index * self.per_round : (round_index + 1) * self.per_round]
        picks = [
            [w[d] for w, d in zip(words, digits, strict=True)]
            for digits in zip(*np.unravel_index(part, shape), strict=True)
        ]
        return [
            _embedded_sentence(class_name, p) if self.world == "embedded" else _sentence(class_name, p) for p in picks
        ]


@lru_cache(maxsize=2)  # a permutation of a million takes 30 ms, and an agent serves one class after another
def _order(seed: int, world: World, class_name: str, count: int) -> np.ndarray:
    return embedded.seeded("prompts", seed, world, class_name).permutation(count)


def _embedded_words() -> tuple[tuple[str, ...], ...]:
    return (tuple(embedded.COUNTS), embedded.SIZES, tuple(embedded.COLOURS), embedded.PATTERNS, embedded.POSES,
            tuple(embedded.BACKGROUNDS))  # fmt: skip


def _embedded_sentence(class_name: str, pick: list[str]) -> str:
    count, size, colour, pattern, pose, background = pick
    return embedded.prompt_of(
        class_name, colour=colour, pattern=pattern, size=size, pose=pose, background=background, count=count
    )


def _natural_words(class_name: str) -> tuple[tuple[str, ...], ...]:
    noun = spoken(class_name).lower()
    kind = next((k for k in KINDS if noun in k.names), THING)
    return (OPENINGS, COUNTS, kind.adjectives, kind.states, kind.places, VIEWS, LIGHTS)


def _sentence(class_name: str, pick: list[str]) -> str:
    opening, count, adjective, state, place, view, light = pick
    return f"{opening} {_group(count, adjective, class_name)} {state} {place}, {view}, {light}"


# ------------------------------------------------------------------------------------------------- loading
def load_agent(agent: str, *, world: World, seed: int, llm: str | None = None, base_url: str | None = None,
               key_variable: str = "OPENAI_API_KEY", per_round: int = 16, temperature: float = 1.0, timeout: float = 60.0,
               device: str = "auto") -> PromptAgent:  # fmt: skip
    """The agent of a name.

    Args:
        agent: "grammar"; "chat", an OpenAI-compatible endpoint; "transformers", a causal language model on this machine.
        llm: name of the model at the endpoint; or its folder or hub id.
        base_url: address of the endpoint; None for OpenAI's own.
        key_variable: environment variable that holds the endpoint's key.
        per_round: prompts that a language model is asked for at once.
        temperature: of a language model's sampling; 0 takes the likeliest word.
        timeout: seconds to wait for the endpoint.
        device: "auto" (a GPU if there is one), "cpu" or "cuda", for "transformers".

    Raises:
        ValueError: another name, no `llm`, no key, or a model that is not there or cannot be read; says what to do.
    """
    check_agent(agent, llm=llm, base_url=base_url, key_variable=key_variable)
    if agent == "grammar":
        return GrammarAgent(world=world, seed=seed)
    assert llm is not None
    if agent == "chat":
        from syn4seg.prompts.chat import ChatAgent

        return ChatAgent(llm, world=world, seed=seed, base_url=base_url, key_variable=key_variable, per_round=per_round,
                         temperature=temperature, timeout=timeout)  # fmt: skip
    from syn4seg.prompts.language_model import LanguageModelAgent

    return LanguageModelAgent(llm, world=world, seed=seed, per_round=per_round, temperature=temperature, device=device)


def check_agent(agent: str, *, llm: str | None, base_url: str | None, key_variable: str) -> None:
    """What can be said of an agent before anything loads and without network: its name, the key, the address, the folder.

    Raises:
        ValueError: as `load_agent`.
    """
    if agent == "grammar":
        return
    if agent not in ("chat", "transformers"):
        raise ValueError(f"prompt agent {agent!r} is unknown; expected grammar, chat or transformers")
    if not llm:
        raise ValueError(f"prompts.llm is empty, but prompts.agent is {agent!r}: name the language model")
    if agent == "chat":
        from syn4seg.prompts.chat import endpoint

        endpoint(base_url, key_variable)
    else:
        from syn4seg.prompts.language_model import check_folder

        check_folder(llm)
