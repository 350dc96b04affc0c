"""Folders of PNG files: what other tools read of the names of the classes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.exports.folders import labelmap_names
from syn4seg.exports.info import palette
from tests.shared_exports import compare, export, made_run, read_voc


def read_labelmap(text: str) -> dict[str, tuple[int, ...]]:
    """Read labelmap.txt as datumaro does, and CVAT with it: an empty line or one that begins with # is left out, any other has four
    fields between colons, a colour of three numbers, and a name that is not there yet."""
    table = {}
    for line in text.split("\n"):
        line = line.strip()
        if not line or line[0] == "#":
            continue
        name, colour, parts, actions = line.split(":")
        assert name not in table and (parts, actions) == ("", "")
        red, green, blue = map(int, colour.split(","))
        table[name] = (red, green, blue)
    return table


def test_names_with_signs_of_the_form_are_read_by_others_and_the_user_is_told_once(tmp_path):
    names = ("ratio 1:2", "#1", "men's, shoe", "cat", "dog")  # the last two are novel
    run, config, truth = made_run(tmp_path, names=names)
    notes = []
    export(run, config, tmp_path / "out", "voc", note=notes.append)
    told = "labelmap.txt cannot hold every sign: it has 'ratio 1-2' for 'ratio 1:2', '_#1' for '#1'; classes.json has"
    assert len(notes) == 1 and notes[0].startswith(told)
    found = read_labelmap((tmp_path / "out" / "labelmap.txt").read_text(encoding="utf-8"))
    assert list(found) == ["background", "ratio 1-2", "_#1", "men's, shoe", "cat", "dog", "ignored"]
    assert list(found.values()) == [tuple(map(int, palette(256)[i])) for i in (0, 1, 2, 3, 4, 5, 255)]
    assert json.loads((tmp_path / "out" / "classes.json").read_text())["classes"] == ["background", *names]
    compare(read_voc(tmp_path / "out", "train"), {s: t for s, t in truth.items() if not t.reason})


def test_names_that_fit_are_kept_and_nothing_is_said(tmp_path):
    run, config, _ = made_run(tmp_path)
    notes = []
    export(run, config, tmp_path / "out", "voc", note=notes.append)
    assert notes == []
    found = read_labelmap((tmp_path / "out" / "labelmap.txt").read_text())
    assert list(found) == ["background", "cat", "dog", "toy car", "bird.x", "ignored"]


@pytest.mark.parametrize(
    ("names", "there"),
    [
        (["a:b"], ["a-b"]),
        (["a:b", "a-b", "a-b (2)"], ["a-b (3)", "a-b", "a-b (2)"]),
        (["#", "_#"], ["_# (2)", "_#"]),
        (["a#b", "C# :"], ["a#b", "C# -"]),
        (["two\nlines", "\u2028", ":", " a "], ["two lines", "_", "-", "a"]),
        (["a", "a"], ["a", "a (2)"]),
        (["車", "Gebäude", "rock/stone"], ["車", "Gebäude", "rock/stone"]),
    ],
)
def test_only_names_that_do_not_fit_are_changed_and_all_stay_different(names, there):
    assert labelmap_names(names) == there


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=6), st.text(alphabet=":#- ab_\n", max_size=4)), max_size=12))
def test_any_names_can_be_read_back(names):
    there = labelmap_names(names)
    assert list(read_labelmap("\n".join(["# head", *(f"{name}:1,2,3::" for name in there)]))) == there
    assert len(there) == len(names)
