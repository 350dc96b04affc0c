"""Texts of a run have no control characters on a page."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from syn4seg.report.html import escape_invisible


@given(st.text())
def test_escaped_texts_have_no_control_characters(text):
    assert not re.search("[\x00-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]", escape_invisible(text))
    assert escape_invisible(escape_invisible(text)) == escape_invisible(text)
