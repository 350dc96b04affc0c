"""Names that are safe as parts of a path, and those that are refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.errors import UserError
from syn4seg.store.samples import checked_name, escape_name, id_part


@pytest.mark.parametrize("name", ["../../x", "", ".hidden", "a/b", "a\\b", "x\n", "-x" * 60, "\x00"])
def test_names_that_could_leave_the_directory_are_refused(name):
    with pytest.raises(UserError, match="cannot be part of a file name"):
        checked_name(name, "class")


def test_ordinary_class_names_are_accepted():
    assert [checked_name(n, "class") for n in ("dog", "t-shirt", "dining table", "tv.monitor")]


@settings(max_examples=200)
@given(st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=2, unique=True))
def test_different_names_have_different_parts_of_paths_and_of_ids(pair):
    for part in (escape_name, id_part):
        a, b = map(part, pair)
        assert a != b and re.fullmatch(r"[A-Za-z0-9 ._+=-]{1,140}", a) and a[0] not in " ._-" and a[-1] not in " ."


def test_names_that_are_easily_confused_stay_apart_and_plain_ones_stay_as_they_are():
    names = ["hot dog", "hot_dog", "hot=5Fdog", "rock/stone", "rock=2Fstone", "Gebäude", "x" * 200, "x" * 199, "..", "v1.2", "v1_2"]
    for part in (escape_name, id_part):
        assert len({part(name) for name in names}) == len(names)
    assert [escape_name(n) for n in ("ball", "dining table", "hot_dog")] == ["ball", "dining table", "hot_dog"]
    assert [id_part(n) for n in ("ball", "dining table", "hot_dog")] == ["ball", "dining_table", "hot=5Fdog"]
