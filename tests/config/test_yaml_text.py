"""Text and YAML of strangers: plain values as YAML's own loader reads them, everything else one line."""

from __future__ import annotations

import pytest
import yaml

from syn4seg.config.yaml_text import MAX_BYTES, decode_text, parse_yaml

BOMB = (
    "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    + "seed: *a8\n"
)


@pytest.mark.parametrize(
    "text", ["a: 1\nb: [1, 2.5, {c: x}]", "x", "", "~", "a: &x {q: 1}\nb: {<<: *x, q: 2, z: no}", "- 1\n- '2'", "a: .inf", "{}"]
)
def test_plain_values_are_those_of_the_safe_loader(text):
    assert parse_yaml(text) == yaml.safe_load(text)


def test_a_date_stays_text():
    assert parse_yaml("a: 2026-11-29") == {"a": "2026-11-29"}


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "!!bool foo",
        "!!int ''",
        "!!timestamp foo",
        "[" * 500,
        "{a: " * 500,
        "a: &a [*a]",
        "a: 1\na: 2",
        "!!python/object:os.system x",
        "!!binary aGk=",
        "? [1]\n: 2",
        "9" * 5000,
        "!!map x",
        "!!seq x",
        "!!float x",
        "'\\x",
        "a: *b",
        "---\na\n---\nb",
        "\t- x",
        "!!set {a}",
        "%YAML 9.9\n---\na",
        "- &a\n- !!int *a",
    ],
)
def test_what_is_no_plain_value_is_one_line(text):
    with pytest.raises(ValueError, match=r"\w") as error:
        parse_yaml(text)
    assert type(error.value) is ValueError and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_texts_are_bounded_and_of_a_known_encoding():
    assert decode_text(b"\xef\xbb\xbfa") == "a" == decode_text("a".encode("utf-16"))
    for data in (b"x" * (MAX_BYTES + 1), b"\xff\xfe\x00", b"\xe4", b"a\x00b\x00"):
        with pytest.raises(ValueError, match=r"expected a text|save it as UTF-8"):
            decode_text(data)
