"""English for prompts: class names as they are said, plurals, articles, and whether a prompt names a class."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_SPOKEN = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "TV monitor", "tv": "TV"}
_PAIRS = (
    "binoculars, earrings, eyeglasses, glasses, goggles, headphones, jeans, leggings, pants, pliers, pyjamas, scissors, shorts, "
    "skis, sunglasses, tights, tongs, trousers, tweezers"
)
_MEASURES = {name: ("pair", "pairs") for name in _PAIRS.split(", ")} | {"broccoli": ("head", "heads")}
"""Nouns that are counted by another one."""


def spoken(class_name: str) -> str:
    """Return a class name as one says it: "dining table" for "diningtable"."""
    name = " ".join(class_name.replace("_", " ").split())
    return _SPOKEN.get(name.lower(), name)


@lru_cache
def _inflect() -> Any:
    import inflect

    return inflect.engine()


@lru_cache(maxsize=4096)
def _plural(noun: str) -> str:
    head, _, last = noun.rpartition(" ")
    if not last or last.lower() in _MEASURES:
        return noun
    plural = f"{last}s" if _is_acronym(last) else _inflect().plural_noun(last) or last
    return f"{head} {plural}".strip()


@lru_cache(maxsize=4096)
def _article(words: str) -> str:
    """Prefix "a" or "an", by sound."""
    first = words.partition(" ")[0]
    if _is_acronym(first):
        return f"{'an' if first[0] in 'AEFHILMNORSX' else 'a'} {words}"
    return _inflect().a(words) if first[:1].isascii() and first[:1].isalnum() else f"a {words}"


def _is_acronym(word: str) -> bool:
    return len(word) > 1 and word.isascii() and word.isalpha() and word.isupper()


def counted_phrase(count: str, adjective: str, class_name: str) -> str:
    """Return a counted noun phrase: "an old bicycle", "two old bicycles", "three small pairs of scissors"."""
    noun = spoken(class_name)
    if noun.lower() in _MEASURES:
        one, many = (f"{unit} of {noun}" for unit in _MEASURES[noun.lower()])
    else:
        one, many = noun, _plural(noun)
    return _article(f"{adjective} {one}".strip()) if count == "a" else f"{count} {adjective} {many}"


def mentions(prompt: str, class_name: str) -> bool:
    """Return whether a prompt names the class: its name as stored or as spoken, or the plural, as whole words in any case."""
    noun = spoken(class_name)
    for form in (class_name, noun, _plural(noun)):
        words = r"[\s-]+".join(map(re.escape, form.split()))
        if words and re.search(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE):
            return True
    return False
