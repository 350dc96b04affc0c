"""How a class is called in prompts (`prompts.names`): the name that one says, other names for it, and what it is.

    {mouse: computer mouse}
    {mouse: {name: computer mouse, synonyms: [pc mouse], definition: the hand-held device that moves a pointer}}

Both forms are the same where nothing but the name is given: they are stored alike and have the same fingerprint.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_serializer

LONGEST = {"name": 100, "synonyms": 100, "definition": 400}
"""Characters of each text: a prompt has at most 300, and a definition is a sentence."""
MOST_SYNONYMS = 20
EXPECTED = "a name, or {name: ..., synonyms: [...], definition: ...}"


class ClassWords(BaseModel):
    """Words for one class.

    Attributes:
        name: as one says it; "" for the name in the data set.
        synonyms: other names that a prompt may use for it.
        definition: what it is; language models are told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    synonyms: tuple[str, ...] = ()
    definition: str = ""

    @property
    def all_names(self) -> tuple[str, ...]:
        """The name, then the synonyms."""
        return (self.name, *self.synonyms)

    @model_serializer
    def _shortest(self) -> str | dict[str, Any]:
        given = {"name": self.name, "synonyms": list(self.synonyms), "definition": self.definition}
        given = {key: value for key, value in given.items() if value}
        return self.name if given.keys() == {"name"} else given


def read_names(value: Any) -> Any:
    """Return a table class -> `ClassWords` of what a person wrote; anything but a mapping is returned as it is.

    Raises:
        ValueError: one line: the key, the value, what was expected, the remedy.
    """
    if not isinstance(value, Mapping):
        return value
    table = {str(key): _words(f"prompts.names.{key}", words) for key, words in value.items()}
    owners: dict[str, str] = {}
    for key, words in table.items():
        for text in filter(None, words.all_names):
            owner = owners.setdefault(text.casefold(), key)
            if owner != key:
                raise ValueError(f"prompts.names: {text!r} names both {owner!r} and {key!r}; give each class words of its own")
    return table


def clash(names: Mapping[str, ClassWords], classes: Iterable[str]) -> str:
    """Say which word for a class is the name of another class; "" if none is.

    Args:
        names: the table of `prompts.names`.
        classes: every class of the data set. One that `names` calls by another name is not known by its own.
    """
    others = {name.casefold(): name for name in classes if not (name in names and names[name].name)}
    for key, words in names.items():
        for text in filter(None, words.all_names):
            other = others.get(text.casefold(), key)
            if other != key:
                return f"prompts.names.{key}: {text!r} is another class of the data set; give {key!r} words of its own"
    return ""


def _words(key: str, value: Any) -> ClassWords:
    if isinstance(value, ClassWords):
        return value
    if not isinstance(value, Mapping):
        return ClassWords(name=_text(key, "name", value))
    if not value:
        raise ValueError(f"{key}={{}}: expected {EXPECTED}; leave the class out if its own name will do")
    for part in value:
        if part not in LONGEST:
            near = difflib.get_close_matches(str(part), LONGEST, n=1)
            raise ValueError(f"{key}.{part}: unknown key{f'; did you mean {near[0]}?' if near else ''}; expected {EXPECTED}")
    name = _text(f"{key}.name", "name", value["name"]) if "name" in value else ""
    synonyms = _synonyms(f"{key}.synonyms", value["synonyms"]) if "synonyms" in value else ()
    folded = [text.casefold() for text in (name, *synonyms)]
    if twice := next((text for text in synonyms if folded.count(text.casefold()) > 1), ""):
        raise ValueError(f"{key}.synonyms: {twice!r} stands there twice, or is the name itself; name it once")
    definition = _text(f"{key}.definition", "definition", value["definition"]) if "definition" in value else ""
    return ClassWords(name=name, synonyms=synonyms, definition=definition)


def _synonyms(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > MOST_SYNONYMS:
        raise ValueError(f"{key}={_show(value)}: expected a list of at most {MOST_SYNONYMS} names, such as [pc mouse]")
    return tuple(_text(key, "synonyms", item) for item in value)


def _text(key: str, part: str, value: Any) -> str:
    """Return a text in one line."""
    if not isinstance(value, str):
        expected = EXPECTED if part == "name" else "a text"
        raise ValueError(f"{key}={_show(value)}: expected {expected}; quote a text that YAML takes for something else")
    text = " ".join(value.split())
    if not text or len(text) > LONGEST[part] or not text.isprintable():
        raise ValueError(f"{key}={_show(value)}: expected 1 to {LONGEST[part]} printable characters; shorten it, or leave it out")
    return text


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
