"""Names that are safe as parts of a path, and those that are refused."""

from __future__ import annotations

import pytest

from syn4seg.errors import UserError
from syn4seg.store.samples import checked_name


@pytest.mark.parametrize("name", ["../../x", "", ".hidden", "a/b", "a\\b", "x\n", "-x" * 60, "\x00"])
def test_names_that_could_leave_the_directory_are_refused(name):
    with pytest.raises(UserError, match="cannot be part of a file name"):
        checked_name(name, "class")


def test_ordinary_class_names_are_accepted():
    assert [checked_name(n, "class") for n in ("dog", "t-shirt", "dining table", "tv.monitor")]
