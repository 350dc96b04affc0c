"""What a language model is asked, how its reply is read, and the record that makes a run with one repeatable.

A reply is never trusted: whatever it is, `parsed` returns at most as many short texts as were asked for, and the bank
refuses those that are no use, at the cost of patience.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from syn4seg.config.class_words import ClassWords
from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.models.protocols import PromptWorld
from syn4seg.prompts.bank import EMPTY, LONGEST, NEAR, OFF_CLASS, REPEATED, TOO_LONG
from syn4seg.prompts.english import spoken
from syn4seg.prompts.protocol import PromptAgent
from syn4seg.store.files import append_line, exists, read_bytes, write_atomically
from syn4seg.store.samples import escape_name

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

SHOWN = 30  # accepted and refused prompts that a language model is shown, the latest of each
MAX_REPLY = 64_000  # characters of a reply that are read
_REASONS = {
    NEAR: "too similar to an accepted prompt",
    OFF_CLASS: "does not name the class",
    TOO_LONG: "too long",
    REPEATED: "proposed before",
}


def build_messages(
    class_name: str,
    world: PromptWorld,
    count: int,
    accepted: list[str],
    refused: list[tuple[str, str]],
    shown: int = SHOWN,
    words: ClassWords | None = None,
) -> list[dict[str, str]]:
    """Return the system and the user message that ask for `count` prompts of a class.

    Args:
        accepted: the bank so far.
        refused: (prompt, why) so far.
        shown: how many of the latest of each are in the message.
        words: synonyms and the definition of the class, where there are any.
    """
    name, words = spoken(class_name), words or ClassWords()
    allowed = "".join(f' or "{spoken(synonym)}"' for synonym in words.synonyms)
    system = (
        "You write prompts for a text-to-image model. Its images will train a network that finds one kind of object in "
        "photos, so together they must show that object in as many different ways as real photos do. Reply with a JSON "
        "array of strings and nothing else."
    )
    lines = [
        f'Write {count} prompts for images of "{name}"{f" ({words.definition})" if words.definition else ""}. Every prompt:',
        f'- names "{name}"{allowed} (or its plural) in these words, as the main thing in the image;',
        f"- is one English phrase of 5 to 30 words (at most {LONGEST} characters);",
        "- describes a realistic photo, not a drawing, a logo or a text.",
        "Make the prompts as different from each other as you can: vary scene and background, viewpoint, distance and size in "
        "the frame, number of objects, their colour, material, age and state, what else is there or hides a part of them, "
        "light, weather and time of day.",
    ]
    if world == "embedded":
        lines[3:] = [
            f"- is made of these words alone: {' '.join(embedded.vocabulary())}.",
            "Make the prompts as different from each other as you can.",
        ]
    if accepted and shown:
        lines += ["", "Accepted so far; write nothing that is close to one of them:", *_quoted(accepted[-shown:])]
    refusals = [(text, _REASONS.get(why, why)) for text, why in refused if why != EMPTY]
    if refusals and shown:
        lines += ["", "Refused, and why; do not make these mistakes again:"]
        lines += [f"{json.dumps(text, ensure_ascii=False)}: {why}" for text, why in refusals[-shown:]]
    lines += ["", f"A JSON array of {count} strings:"]
    return [{"role": "system", "content": system}, {"role": "user", "content": "\n".join(lines)}]


def _quoted(texts: list[str]) -> Iterator[str]:
    return (json.dumps(text, ensure_ascii=False) for text in texts)


def parse_reply(reply: str, count: int) -> list[str]:
    """Return the prompts in a language model's reply: at most `count`, each at most `LONGEST` + 1 characters.

    Read are a JSON array, or an object with one inside, also behind a code fence, amid chatter or cut short; else numbered or
    bulleted lines; else all lines. A longer text is cut where the bank sees that it was too long.
    """
    text = _answer_of(reply)[:MAX_REPLY]
    for texts in (_in_json(text), _in_cut_json(text), _in_lines(text)):
        if texts:
            return [_clean(item) for item in texts[:count]]
    return []


_TAGS = "think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad|seed:think"
_END_OF_DRAFT = re.compile(
    rf"</\s*(?:{_TAGS})\s*>|\[/(?:{_TAGS})\]|\u25c1/think\u25b7|<\|end_of_thought\|>|<\|channel\|>\s*final\s*<\|message\|>",
    re.IGNORECASE,
)
_START_OF_DRAFT = re.compile(
    rf"<\s*(?:{_TAGS})\b[^<>]*>|\[(?:{_TAGS})\]|\u25c1think\u25b7|<\|begin_of_thought\|>|<\|channel\|>\s*analysis", re.IGNORECASE
)


def _answer_of(reply: str) -> str:
    """Return a reply without the draft of a reasoning model: what follows the last end of one, up to a start without an end."""
    ends = list(_END_OF_DRAFT.finditer(reply))
    answer = reply[ends[-1].end() :] if ends else reply
    start = _START_OF_DRAFT.search(answer)
    return answer[: start.start()] if start else answer


def _clean(text: str) -> str:
    plain = " ".join(text.encode("utf-8", "replace").decode().split())
    plain = "".join(c for c in plain if c.isprintable()).strip("\"'`“”„* ")
    return plain if len(plain) <= LONGEST else plain[:LONGEST] + "…"


def _in_json(text: str) -> list[str]:
    """Return the texts of the first JSON array that holds any, or of all JSON objects before it."""
    decoder, texts_, at = json.JSONDecoder(), [], 0
    for _ in range(200):  # brackets that are tried
        start = re.compile(r"[\[{]").search(text, at)
        if not start:
            break
        try:
            value, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            at = start.end()
            continue
        texts = _texts(value)
        if texts and isinstance(value, list):
            return texts
        texts_ += texts
    return texts_


def _texts(value: Any) -> list[str]:
    """Return texts of an array of strings or of objects; of the first array inside an object; else of the object's own values."""
    if isinstance(value, dict):
        inside = [item for item in value.values() if isinstance(item, list)]
        return _texts(inside[0]) if inside else [item for item in value.values() if isinstance(item, str)]
    if not isinstance(value, list):
        return []
    texts = []
    for item in value:
        if isinstance(item, dict):
            item = item.get("prompt") or next((v for v in item.values() if isinstance(v, str)), "")
        texts.append(item if isinstance(item, str) else "")
    return texts if any(texts) else []


def _in_cut_json(text: str) -> list[str]:
    """Return the whole strings of an array that was cut short or has a slip."""
    start = re.search(r"\[\s*\"", text)
    if not start:
        return []
    strings = []
    for string in re.finditer(r'("(?:[^"\\\n]|\\.)*")(\s*:)?', text[start.start() :]):
        if string[2]:  # the name of a member
            continue
        try:
            strings.append(json.loads(string[1]))
        except ValueError:
            strings.append(string[1])
    return strings


def _in_lines(text: str) -> list[str]:
    """Return numbered or bulleted lines, without number or bullet; if there is none, every line but code fences."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("```")]
    listed = [m[1] for m in (re.match(r"(?:\(?\d{1,4}\s*[.):]|[-*•–])\s+(.*)", line) for line in lines) if m]
    return [line.strip(" ,[]") for line in listed or lines]


class RecordedAgent:
    """An agent whose proposals are kept in a file per class, and are read from there before it is asked again.

    Language models do not repeat themselves; with the record a prompt stage that was stopped goes on where it was, and ends
    with the same bank. One line per round, appended and synced; a line that was cut by a crash counts as not written.
    """

    def __init__(self, agent: PromptAgent, folder: AnyPath):
        """Record in `folder`, which holds CLASS.jsonl for every class and is made with the first round."""
        self.agent, self.folder = agent, folder
        self.rounds: dict[str, list[list[str]]] = {}

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        """Return the recorded round, or a new one of the agent, which is recorded before it is returned.

        Raises:
            UserError: the record is damaged, or the agent fails.
        """
        path = self.folder / f"{escape_name(class_name)}.jsonl"
        if class_name not in self.rounds:
            self.rounds[class_name] = _read_rounds(path, class_name)
        rounds = self.rounds[class_name]
        if round_index < len(rounds):
            return list(rounds[round_index])
        assert round_index == len(rounds), "rounds are asked for in order"
        texts = self.agent.propose(class_name, round_index, accepted, refused)
        append_line(path, json.dumps({"class": class_name, "round": round_index, "prompts": texts}))
        rounds.append(list(texts))
        return texts


def _read_rounds(path: AnyPath, class_name: str) -> list[list[str]]:
    """Return the rounds in the record of a class; a last line without its end is cut off the file."""
    if not exists(path):
        return []
    data = read_bytes(path)
    whole = data[: data.rfind(b"\n") + 1]
    rounds = []
    for number, line in enumerate(whole.splitlines()):
        try:
            entry = json.loads(line)
            named = entry["class"] == class_name and entry["round"] == number
            right = named and isinstance(entry["prompts"], list) and all(isinstance(t, str) for t in entry["prompts"])
        except (ValueError, TypeError, KeyError, RecursionError):
            right = False
        if not right:
            raise UserError(
                f"{path}: line {number + 1} is no record of round {number} of {class_name!r}; delete the file, and "
                "the language model is asked again for this class"
            )
        rounds.append(entry["prompts"])
    if len(whole) < len(data):
        write_atomically(path, whole)
    return rounds
