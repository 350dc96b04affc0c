"""What a language model is asked, how any reply at all is read, and the record of its proposals."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.config.class_words import ClassWords
from syn4seg.data import embedded
from syn4seg.errors import StoreError, UserError
from syn4seg.prompts.bank import EMPTY, LONGEST, NEAR, OFF_CLASS, REPEATED, TOO_LONG, build_bank
from syn4seg.prompts.proposals import SHOWN, RecordedAgent, build_messages, parse_reply

THREE = ["A red bus in the rain", "Two buses, seen from above", 'A bus with "Express" on it']


# ------------------------------------------------------------------------------------------------ the question
def question(**changes) -> str:
    given = {"class_name": "bus", "world": "natural", "count": 5, "accepted": [], "refused": []} | changes
    system, user = build_messages(**given)
    assert system["role"] == "system" and user["role"] == "user"
    return user["content"]


def test_the_question_asks_for_so_many_prompts_of_the_class_as_it_is_spoken():
    text = question(class_name="diningtable", count=7)
    assert 'Write 7 prompts for images of "dining table"' in text and "JSON array of 7 strings" in text
    assert "Accepted" not in text and "Refused" not in text


def test_the_question_shows_what_was_accepted_and_what_was_refused_and_why():
    refused = [("a cat", OFF_CLASS), ("", EMPTY), ("a bus in rain", NEAR), ("a bus", REPEATED), ("long", TOO_LONG)]
    text = question(accepted=THREE, refused=refused)
    for prompt in THREE:
        assert json.dumps(prompt) in text
    for prompt, why in (
        ("a cat", "does not name the class"),
        ("a bus in rain", "too similar"),
        ("a bus", "before"),
        ("long", "too long"),
    ):
        assert any(json.dumps(prompt) in line and why in line for line in text.splitlines())
    assert '"":' not in text


def test_the_question_does_not_grow_for_ever():
    many = [f"bus number {i}" for i in range(1000)]
    text = question(accepted=many, refused=[(f"a bad {p}", NEAR) for p in many])
    assert sum('"bus number' in line for line in text.splitlines()) == SHOWN
    assert sum('"a bad bus' in line for line in text.splitlines()) == SHOWN
    assert "number 999" in text and "number 969" not in text
    assert question(accepted=many, refused=[], shown=0) == question()


def test_the_question_tells_synonyms_and_definition_where_there_are_any():
    words = ClassWords(name="mouse", synonyms=("pc_mouse", "trackball"), definition="the device that moves a pointer")
    text = question(class_name="mouse", words=words)
    assert 'images of "mouse" (the device that moves a pointer). Every prompt' in text
    assert '- names "mouse" or "pc mouse" or "trackball" (or its plural) in these words' in text
    assert question(words=ClassWords(name="bus")) == question(), "a name alone changes nothing"
    assert " or " not in question().splitlines()[1]


def test_the_embedded_world_tells_its_words():
    text = question(world="embedded", class_name="star")
    assert " ".join(embedded.vocabulary()) in text and "weather" not in text


# --------------------------------------------------------------------------------------------------- the reply
@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(THREE),
        json.dumps(THREE, indent=2),
        f"Sure! Here are [some] prompts:\n\n```json\n{json.dumps(THREE, indent=1)}\n```\nTell me if you need {{more}}.",
        json.dumps({"class": "bus", "prompts": THREE}),
        json.dumps({"result": {"prompts": THREE}}),
        json.dumps([{"id": 1, "prompt": p} for p in THREE]),
        json.dumps([{"text": p} for p in THREE]),
        json.dumps({str(i): p for i, p in enumerate(THREE)}),
        "\n".join(json.dumps({"prompt": p}) for p in THREE),
        '<think>The user wants ["a", "b"]. Hm.</think>\n' + json.dumps(THREE),
        'Hm, ["a", "b"]? No.</think>' + json.dumps(THREE),  # a template that opens the draft itself
        '<thinking>["a"]</thinking>' + json.dumps(THREE),
        '<Reasoning effort="high">["a"]</Reasoning>' + json.dumps(THREE),
        '[THINK]["a"][/THINK]' + json.dumps(THREE),
        '<|channel|>analysis<|message|>["a"]<|end|><|start|>assistant<|channel|>final<|message|>' + json.dumps(THREE),
        '<think>["a"]</think>["b"]<think>["c"]</think>' + json.dumps(THREE),
        "<think>" + "x" * 100_000 + "</think>" + json.dumps(THREE),
        json.dumps(THREE) + '<think>["a"',
        json.dumps(THREE)[:-1] + ",]",  # a comma too many
        json.dumps(THREE) + ' and ["a fourth"]',
        json.dumps([*THREE, "cut in the mid"])[:-10],
        '[{"prompt": ' + '}, {"prompt": '.join(map(json.dumps, THREE)) + '}, {"prom',
        "Here you are:\n1. " + "\n2) ".join(THREE) + "\n\nEnjoy!",
        "\n".join(f"- {p}" for p in THREE),
        "\n".join(f"* **{p}**" for p in THREE),
        "\n\n".join(THREE),
        "\n".join(f'"{p}",' for p in THREE),
    ],
)
def test_prompts_are_found_in_whatever_form_they_come(reply: str):
    assert [p.replace('\\"', '"') for p in parse_reply(reply, 16)] == THREE


@pytest.mark.parametrize("reply", ["", " \n\t", "[]", "{}", "<think>for ever and ever", "```\n```", "null\x00"[4:]])
def test_nothing_is_found_in_nothing(reply: str):
    assert [p for p in parse_reply(reply, 16) if p not in ("", "{}", "[]")] == []


def test_members_that_are_no_text_cost_their_place():
    assert parse_reply('["a bus", 3, null, ["x"], {"n": 1}, "two buses"]', 16) == ["a bus", "", "", "", "", "two buses"]


def test_no_more_prompts_are_read_than_were_asked_for_and_long_ones_are_cut_where_the_bank_sees_it():
    assert parse_reply(json.dumps([f"bus {i}" for i in range(500)]), 16) == [f"bus {i}" for i in range(16)]
    (long,) = parse_reply(json.dumps(["a bus " * 1000]), 16)
    assert len(long) == LONGEST + 1 and long.startswith("a bus a bus")
    (fits,) = parse_reply(json.dumps(["b" * LONGEST]), 16)
    assert fits == "b" * LONGEST


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet='[]{}",:\\ab1.-\n` '),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
        ).map(json.dumps),
    ),
    st.integers(1, 20),
)
def test_any_reply_becomes_a_few_short_texts_that_can_be_written(reply: str, count: int):
    texts = parse_reply(reply, count)
    assert len(texts) <= count
    for text in texts:
        assert len(text) <= LONGEST + 1 and text == text.strip() and text.isprintable()
        text.encode()


@pytest.mark.parametrize(
    "reply", ["[" * 60_000, '{"a":' * 20_000, '["' + "\\" * 60_000, "[" + "9" * 60_000, "1. " * 30_000, '["\ud800"]']
)
def test_hostile_replies_are_read_quickly_and_without_a_crash(reply: str):
    assert len(parse_reply(reply, 16)) <= 16


# -------------------------------------------------------------------------------------------------- the record
class Counting:
    """Numbers its proposals over all classes, so that no round can be had twice."""

    def __init__(self):
        self.asked = 0

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        self.asked += 1
        return [f'{class_name} {self.asked} "ü"\n', ""][: 1 + self.asked % 2]


def ask(agent: RecordedAgent, rounds: int, name: str = "wine glass") -> list[list[str]]:
    return [agent.propose(name, i, [], []) for i in range(rounds)]


def test_recorded_rounds_come_back_and_the_next_ones_are_asked(tmp_path: Path):
    first = ask(RecordedAgent(Counting(), tmp_path), 3)
    again, inner = RecordedAgent(later := Counting(), tmp_path), later
    assert ask(again, 3) == first and inner.asked == 0
    assert ask(again, 5)[:3] == first and inner.asked == 2
    assert (tmp_path / "wine glass.jsonl").read_bytes().count(b"\n") == 5


def test_classes_have_their_own_files(tmp_path: Path):
    agent = RecordedAgent(Counting(), tmp_path)
    for name in ("bus", "car", "bus"):
        ask(agent, 2, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bus.jsonl", "car.jsonl"]


def test_a_line_cut_at_any_byte_is_asked_again_and_the_file_stays_whole(tmp_path: Path):
    ask(RecordedAgent(Counting(), tmp_path), 3)
    file = tmp_path / "wine glass.jsonl"
    data = file.read_bytes()
    second = data.index(b"\n", data.index(b"\n") + 1) + 1
    for end in range(second, len(data)):
        file.write_bytes(data[:end])
        inner = Counting()
        inner.asked = 2
        assert len(ask(RecordedAgent(inner, tmp_path), 3)) == 3
        assert inner.asked == 3 and file.read_bytes() == data


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "nonsense",
        "[]",
        "[" * 50_000,
        '{"class": "bus", "round": 1, "prompts": []}',
        '{"round": 0, "prompts": ["a bus"]}',
        '{"class": "bus", "round": 0, "prompts": [3]}',
        '{"class": "bus", "round": 0, "prompts": "a bus"}',
        '{"class": "car", "round": 0, "prompts": ["a bus"]}',
    ],
)
def test_a_damaged_record_is_named_with_its_line(tmp_path: Path, line: str):
    (tmp_path / "bus.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"bus\.jsonl: line 1 is no record of round 0 of 'bus'; delete the file"):
        ask(RecordedAgent(Counting(), tmp_path), 1, "bus")


def test_rounds_in_another_order_or_twice_are_refused(tmp_path: Path):
    ask(RecordedAgent(Counting(), tmp_path), 3)
    file = tmp_path / "wine glass.jsonl"
    first, second, third = file.read_bytes().splitlines(keepends=True)
    for lines, number in (([second, first, third], 1), ([first, third], 2), ([first, first, second], 2)):
        file.write_bytes(b"".join(lines))
        with pytest.raises(UserError, match=rf"line {number} is no record of round {number - 1} of 'wine glass'"):
            ask(RecordedAgent(Counting(), tmp_path), 3)
        assert file.read_bytes() == b"".join(lines)


def test_a_disk_that_is_full_in_the_middle_of_a_line_is_an_error_and_the_run_goes_on_later(tmp_path: Path):
    whole = ask(RecordedAgent(Counting(), tmp_path / "whole"), 3)
    ask(RecordedAgent(Counting(), tmp_path), 2)
    file = tmp_path / "wine glass.jsonl"
    size, limit = file.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    inner = Counting()
    inner.asked = 2
    agent = RecordedAgent(inner, tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limit[1]))  # room for 20 bytes of the next line
    try:
        with pytest.raises(StoreError, match=r"wine glass\.jsonl: cannot be written \(No space left"):
            ask(agent, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.stat().st_size == size + 20
    inner.asked = 2
    assert ask(RecordedAgent(inner, tmp_path), 3) == whole
    assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes()


@pytest.mark.parametrize("name", ["../bus", "a/b", "/etc/bus", ".bus"])
def test_a_class_name_never_leads_out_of_the_folder(tmp_path: Path, name: str):
    ask(RecordedAgent(Counting(), tmp_path / "in"), 1, name)
    assert [path.name for path in tmp_path.iterdir()] == ["in"] and len(list((tmp_path / "in").iterdir())) == 1


def test_the_bank_refuses_what_was_cut_for_its_length_and_says_so():
    class Long:
        def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
            return parse_reply(json.dumps(["a bus " * 100, "a bus"]), 16) if round_index == 0 else []

    def never(texts):
        assert texts == ["a bus"]
        import numpy as np

        return np.eye(len(texts), 4, dtype=np.float32)

    bank = build_bank(Long(), never, "bus", size=2, lambda_prompt=0.9, patience=2)
    assert [c.text for c in bank.accepted] == ["a bus"] and [c.why for c in bank.refused] == [TOO_LONG]
