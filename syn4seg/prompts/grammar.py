"""The grammar agent: prompts without a language model, from a product of word lists.

A seeded permutation of that product is cut into rounds, so the proposals of a round are a pure function of (seed, class,
round), and no sentence ever comes twice. There are two grammars: the sentences of the embedded world, and natural English
for any class name, with words that suit the kind of thing (an animal runs, a pizza does not).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from syn4seg.config.class_words import ClassWords
from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.models.protocols import PromptWorld
from syn4seg.prompts.english import counted_phrase, spoken
from syn4seg.prompts.words import COUNTS, KINDS, LIGHTS, OPENINGS, THING, VIEWS


def plain_prompt(class_name: str, world: PromptWorld) -> str:
    """Return the class-name prompt of the ablation: "a star" in the embedded world, "a photo of a star" in the natural one."""
    _check_world(class_name, world)
    phrase = counted_phrase("a", "", class_name)
    return phrase if world == "embedded" else f"a photo of {phrase}"


def _check_world(class_name: str, world: PromptWorld) -> None:
    if world not in ("embedded", "natural"):
        raise UserError(f'world is {world!r}; expected "embedded" or "natural"')
    if not spoken(class_name):
        raise UserError("class name is empty; expected the name of the novel class, such as 'bicycle'")
    if world == "embedded" and class_name not in embedded.CLASSES:
        raise UserError(
            f"class {class_name!r} is unknown to the embedded world; expected one of "
            f'{", ".join(embedded.CLASSES)}, or world="natural"'
        )


@dataclass(frozen=True)
class GrammarAgent:
    """Draws from a grammar: attributes x states x places x views x lights x counts.

    Attributes:
        world: "embedded" for `embedded.prompt_of`'s sentences (1,152 per class, half of them with company), "natural" for English
            (over 500,000).
        seed: names the order in which the sentences come.
        per_round: prompts per round, at least 1.
        words: synonyms, by the name under which a class is asked for: natural sentences use all names of a class alike often. A
            class without synonyms has the same sentences in the same order as without this.
    """

    world: PromptWorld
    seed: int
    per_round: int = 64
    words: Mapping[str, ClassWords] = field(default_factory=dict, hash=False)

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        """Return prompts `per_round * round_index` onwards of the class; fewer, then none, once the grammar is exhausted.

        `accepted` and `refused` are the interface's: a grammar that never repeats a sentence has no use for them.

        Raises:
            UserError: `class_name` is not of this world.
        """
        _check_world(class_name, self.world)
        names = (class_name, *self.words.get(class_name, ClassWords()).synonyms)
        words = _embedded_words() if self.world == "embedded" else _natural_words(names)
        shape = tuple(map(len, words))
        order = _order(self.seed, self.world, class_name, math.prod(shape))
        part = order[round_index * self.per_round : (round_index + 1) * self.per_round]
        picks = [[w[d] for w, d in zip(words, digits, strict=True)] for digits in zip(*np.unravel_index(part, shape), strict=True)]
        if self.world == "natural":
            return [_sentence(p) for p in picks]
        return [_embedded_sentence(class_name, p, embedded.seeded("company", self.seed, class_name, *p)) for p in picks]


@lru_cache(maxsize=2)  # a permutation of a million takes 30 ms, and an agent serves one class after another
def _order(seed: int, world: PromptWorld, class_name: str, count: int) -> np.ndarray:
    return embedded.seeded("prompts", seed, world, class_name).permutation(count)


def _embedded_words() -> tuple[tuple[str, ...], ...]:
    return (
        tuple(embedded.COUNTS),
        embedded.SIZES,
        tuple(embedded.COLOURS),
        embedded.PATTERNS,
        embedded.POSES,
        tuple(embedded.BACKGROUNDS),
    )


def _embedded_sentence(class_name: str, pick: list[str], rng: np.random.Generator) -> str:
    """Return the sentence of some words; a share of them asks for company, which the generator draws."""
    count, size, colour, pattern, pose, background = pick
    words: dict[str, str] = dict(colour=colour, pattern=pattern, size=size, pose=pose, background=background, count=count)
    if rng.random() < embedded.COMPANY:
        pattern, colour = (choices[int(rng.integers(len(choices)))] for choices in (embedded.PATTERNS, tuple(embedded.COLOURS)))
        words["beside"] = f"a {pattern} {colour} {embedded.draw_company(rng, class_name)}"
    return embedded.prompt_of(class_name, **words)


def _natural_words(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the word lists for a class; its kind is that of the first of its names which is listed."""
    nouns = [spoken(name).lower() for name in names]
    kind = next((k for noun in nouns for k in KINDS if noun in k.names), THING)
    return (OPENINGS, COUNTS, kind.adjectives, kind.states, kind.places, VIEWS, LIGHTS, names)


def _sentence(pick: list[str]) -> str:
    opening, count, adjective, state, place, view, light, class_name = pick
    return f"{opening} {counted_phrase(count, adjective, class_name)} {state} {place}, {view}, {light}"
