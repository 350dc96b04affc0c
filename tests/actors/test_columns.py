"""Columns of a batch, and the rule that a bad row costs one row."""

from __future__ import annotations

import numpy as np
import pytest

from actors.columns import array_column, map_rows, summarize_error
from syn4seg.errors import DamagedError, StoreError


def batch(*reasons: str) -> dict[str, np.ndarray]:
    return {"reason": np.array(reasons, object), "traceback": np.array(["earlier" if r else "" for r in reasons], object)}


def test_a_row_that_raises_is_quarantined_with_stage_and_reason_and_its_batch_mates_go_on():
    batch = {"reason": np.array(["", "", "early"], object), "traceback": np.array(["", "", "as it was"], object)}

    def work(i):
        if i == 1:
            raise MemoryError("no room")
        return 10 + i, ""

    values, reasons, traces = map_rows(batch, "labeling", work, lambda _: (-1,))
    assert values == [10, -1, -1]
    assert reasons[0] == ""
    assert reasons[1].startswith("fault: labeling: MemoryError: no room")
    assert reasons[2] == "early"
    assert "no room" in traces[1] and "in work" in traces[1]
    assert traces[::2] == ["", "as it was"]


def test_columns_of_equal_and_of_different_shapes():
    same, mixed = array_column([np.zeros((2, 3)), np.ones((2, 3))]), array_column([np.zeros((2, 3)), np.ones((4, 1))])
    assert same.shape == (2, 2, 3)
    assert mixed.dtype == object
    assert [a.shape for a in mixed] == [(2, 3), (4, 1)]


def test_a_damaged_file_costs_its_row_and_a_store_that_fails_stops_the_stream():
    def damaged(i):
        raise DamagedError("image.png: damaged")

    def full(i):
        raise StoreError("disk full")

    _, reasons, _ = map_rows(batch("", ""), "import", damaged, lambda _: (0,))
    assert all(reason.startswith("fault: import: DamagedError: image.png: damaged (damaged:") for reason in reasons)
    with pytest.raises(StoreError, match="disk full"):
        map_rows(batch("", ""), "import", full, lambda _: (0,))
    assert map_rows(batch("early"), "import", full, lambda _: (0,)) == [[0], ["early"], ["earlier"]]


def test_the_summary_of_an_error_is_one_line_that_names_where_it_was_raised():
    try:
        {}["two\nlines"]
    except KeyError as error:
        line, trace = summarize_error(error)
    assert line.startswith("KeyError: 'two") and "\n" not in line and "(test_the_summary_of_an_error" in line
    assert trace.startswith("Traceback") and "KeyError" in trace
