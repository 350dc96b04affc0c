"""Prompt agents: who proposes the candidate prompts of a class. The grammar agent needs no language model.

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


def _singular(class_name: str) -> str:
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
    noun = _singular(class_name)
    if noun.lower() in _MEASURES:
        one, many = (f"{unit} of {noun}" for unit in _MEASURES[noun.lower()])
    else:
        one, many = noun, _plural(noun)
    return _article(f"{adjective} {one}".strip()) if count == "a" else f"{count} {adjective} {many}"


def mentions(prompt: str, class_name: str) -> bool:
    """Whether a prompt names the class: its name as stored or as spoken, or the plural, as whole words in any case."""
    noun = _singular(class_name)
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
    if not _singular(class_name):
        raise ValueError("class name is empty; expected the name of the novel class, such as 'bicycle'")
    if world == "embedded" and class_name not in embedded.CLASSES:
        raise ValueError(f"class {class_name!r} is unknown to the embedded world; expected one of "
                         f'{", ".join(embedded.CLASSES)}, or world="natural"')  # fmt: skip


# ---------------------------------------------------------------------------------------- the word lists
_OPENINGS = ("a photo of", "a candid photo of", "a detailed photo of")
_COUNTS = ("a", "two", "three", "a group of")
_VIEWS = ("seen from above", "seen from below", "at eye level", "from a distance", "in close-up", "from behind",
          "from the side", "cut off by the edge of the frame")  # fmt: skip
_LIGHTS = ("overcast light", "bright midday sun", "golden evening light", "soft morning light", "at night",
           "backlit", "deep shadows", "dim warm light")  # fmt: skip
_OUTDOORS = ("in a meadow", "on a gravel path", "beside a river", "at the edge of a forest", "in fresh snow",
             "on a beach", "in front of a brick wall", "in a garden", "in tall grass", "under a tree", "on a hill",
             "in the rain")  # fmt: skip
_STREETS = ("on a city street", "in a narrow alley", "beside a brick wall", "on a country road", "in a car park",
            "at a crossing", "in front of a shop", "on a bridge", "beside a field", "in the snow", "under trees",
            "on cobblestones")  # fmt: skip
_INDOORS = ("on a wooden table", "in a kitchen", "in a living room", "near a window", "in an office",
            "on a tiled floor", "on a carpet", "in a workshop", "on a terrace", "against a plain wall", "in a cafe",
            "in a crowded shop")  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """Words that suit one kind of thing."""

    names: frozenset[str]
    adjectives: tuple[str, ...]
    states: tuple[str, ...]
    places: tuple[str, ...]


def _kind(names: str, adjectives: str, states: str, places: tuple[str, ...]) -> _Kind:
    adjective, state = (tuple(w.strip() for w in words.split(",")) for words in (adjectives, states))
    return _Kind(frozenset(n.strip() for n in names.split(",")), adjective, state, places)


_THING = _kind("", "old, new, red, blue, white, dark, small, large, worn, patterned, shiny, handmade",
               "standing alone, partly hidden, half in shadow, among other things, slightly tilted, in the corner, "
               "well in view, beside a box", _INDOORS)  # fmt: skip
_KINDS = (
    _kind("person",
          "young, elderly, tall, smiling, tired, bearded, curly-haired, elegant, athletic, serious, cheerful, busy",
          "standing, sitting, walking, running, waiting, talking, laughing, carrying a bag",
          _OUTDOORS + _STREETS),
    _kind("bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, fish",
          "young, old, large, small, brown, black, white, spotted, wet, dusty, slender, sturdy",
          "standing, lying down, walking, running, resting, turning away, facing the camera, partly hidden",
          _OUTDOORS),
    _kind("bicycle, car, bus, truck, motorbike, motorcycle",
          "weathered, new, red, blue, white, black, yellow, green, muddy, vintage, silver, small",
          "parked, moving, waiting, turning, partly hidden, slowing down, seen through a fence, behind a puddle",
          _STREETS),
    _kind("train", "red, blue, yellow, green, silver, old, modern, long, short, dusty, empty, painted",
          "arriving, waiting, passing, slowing down, standing still, leaving, partly hidden, crossing",
          ("at a station", "on a bridge", "in a valley", "near a tunnel", "in a depot", "beside a road", "in snow",
           "along a coast", "between houses", "in open country", "at a level crossing", "in the mountains")),
    _kind("boat", "wooden, white, blue, red, old, new, small, large, rusty, painted, narrow, heavy",
          "moored, drifting, moving, turning, partly hidden, leaning, leaving, arriving",
          ("in a harbour", "on a calm lake", "on a rough sea", "at a pier", "on a river", "near rocks", "on a beach",
           "in a canal", "in the fog", "below a bridge", "beside a lighthouse", "in a marina")),
    _kind("aeroplane, airplane, kite",
          "white, red, blue, silver, small, large, old, new, striped, yellow, bright, dark",
          "flying, landing, climbing, turning, on the ground, passing, low, partly hidden",
          ("in a clear sky", "among clouds", "above a field", "over the sea", "above mountains", "over a city",
           "near trees", "above a runway", "in the haze", "against the sun", "over a beach", "in a stormy sky")),
    _kind("banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
          "fresh, large, small, sliced, whole, ripe, colourful, half-eaten, home-made, glossy, organic, plain",
          "on a plate, in a bowl, on paper, being served, on a board, in a basket, beside a knife, in a hand",
          ("in a kitchen", "in a cafe", "at a market", "on a wooden table", "on a picnic blanket", "in a bakery",
           "on a marble counter", "near a window", "in a garden", "on a tray", "at a party", "in a fridge")),
    _kind("traffic light, fire hydrant, stop sign, parking meter, bench",
          "old, new, red, green, yellow, painted, rusty, wet, snowy, tilted, scratched, small",
          "standing alone, partly hidden, among people, behind a car, with stickers, in shadow, beside a bin, in a row",
          _STREETS),
)  # fmt: skip


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
    noun = _singular(class_name).lower()
    kind = next((k for k in _KINDS if noun in k.names), _THING)
    return (_OPENINGS, _COUNTS, kind.adjectives, kind.states, kind.places, _VIEWS, _LIGHTS)


def _sentence(class_name: str, pick: list[str]) -> str:
    opening, count, adjective, state, place, view, light = pick
    return f"{opening} {_group(count, adjective, class_name)} {state} {place}, {view}, {light}"
