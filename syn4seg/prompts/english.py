"""English for prompts: class names as they are said, plurals, articles, and whether a prompt names a class."""

from __future__ import annotations

import re

_SPOKEN = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "TV monitor", "tv": "TV"}
_PLURALS = {
    "person": "people",
    "sheep": "sheep",
    "fish": "fish",
    "mouse": "mice",
    "knife": "knives",
    "deer": "deer",
    "skis": "skis",
    "scissors": "scissors",
    "broccoli": "broccoli",
}
_MEASURES = {"skis": ("pair", "pairs"), "scissors": ("pair", "pairs"), "broccoli": ("head", "heads")}


def spoken(class_name: str) -> str:
    """Return a class name as one says it: "dining table" for "diningtable"."""
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
    """Prefix "a" or "an", by sound as far as spelling tells it."""
    silent_h, like_you = (re.match(r"(hour|honest|heir)", words, re.I), re.match(r"(uni[^nm]|us[ei]|eu|one\b)", words, re.I))
    vowel = words[:1].lower() in tuple("aeiou")
    return f"an {words}" if silent_h or (vowel and not like_you) else f"a {words}"


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
