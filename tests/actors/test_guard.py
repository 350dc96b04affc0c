"""Poison rows: whatever a row does to its stage, it costs that row, and the note says which stage, why, and where."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from actors import deadline
from actors.columns import FAULT, map_rows, string_column
from actors.guard import MAX_SOLO_DEATHS, _join
from actors.placement import Operator
from actors.streaming import run_inline, run_stream
from syn4seg.config.placement import PoolConfig


class Doubler:
    """Doubles a number; what a row's `harm` says happens to its process, every time."""

    reads = ("sample_id", "number", "harm", "reason", "traceback")
    adds = ("double",)

    def __call__(self, rows):
        def work(i: int):
            hurt(str(rows["harm"][i]))
            return 2 * int(rows["number"][i]), ""

        double, reason, trace = map_rows(rows, "doubling", work, lambda _: (-1,))
        return rows | {"double": np.array(double), "reason": string_column(reason), "traceback": string_column(trace)}


class Batched(Doubler):
    """The same, as an operator whose rows belong together: it writes down the sizes of its calls that came to an end."""

    whole_attempts = 3

    def __init__(self, notes: str):
        self.notes = notes

    def __call__(self, rows):
        out = super().__call__(rows)
        with open(self.notes, "a") as f:
            f.write(f"{len(rows['sample_id'])}\n")
        return out


def hurt(harm: str) -> None:
    if harm == "exception":
        raise KeyError("no such colour")
    if harm == "memory":
        raise MemoryError("no room")
    if harm == "segfault":
        ctypes.string_at(0)
    if harm == "exit":
        os._exit(3)
    if harm == "hang":
        time.sleep(1000)
    if harm == "hang in C":
        ctypes.PyDLL(None).sleep(1000)  # keeps the interpreter's lock


def table(harms: dict[int, str], count: int) -> pa.Table:
    empty = [""] * count
    return pa.table(
        {
            "sample_id": [f"s{i:02d}" for i in range(count)],
            "number": list(range(count)),
            "reason": empty,
            "harm": [harms.get(i, "") for i in range(count)],
            "traceback": empty,
        }
    )


def by_value() -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.slow
@pytest.mark.parametrize("fused", [0, 2])
def test_rows_that_raise_crash_or_hang_cost_themselves_and_leave_stage_reason_and_traceback(ray_cluster, fused):
    by_value()
    harms = {2: "exception", 5: "segfault", 9: "hang", 13: "memory", 18: "hang in C", 21: "exit"}
    step = Operator(Doubler, {}, PoolConfig(size=2, batch=4, cpus=0.25), "doubling")
    found, reports = {}, []
    for batch in run_stream(table(harms, 24), [step], 4, deadline=2.0, fused=fused, report=reports.append):
        for i, sample in enumerate(batch["sample_id"]):
            assert sample not in found, "a row came out twice"
            found[sample] = {name: values[i] for name, values in batch.items()}
    assert len(found) == 24
    for number, row in enumerate(found[s] for s in sorted(found)):
        if number not in harms:
            assert (row["double"], row["reason"], row["traceback"]) == (2 * number, "", "")
    rows = {harm: found[f"s{i:02d}"] for i, harm in harms.items()}
    assert all(row["double"] == -1 and row["reason"].startswith(FAULT + "doubling: ") for row in rows.values())
    assert "KeyError: 'no such colour' (hurt:" in rows["exception"]["reason"]
    assert "MemoryError: no room" in rows["memory"]["reason"]
    for harm in ("segfault", "hang", "hang in C", "exit"):
        assert f"killed its process {MAX_SOLO_DEATHS} times" in rows[harm]["reason"]
        assert "row_deadline=2 s" in rows[harm]["reason"]
    for harm in ("exception", "memory", "segfault", "hang", "hang in C"):  # os._exit leaves nothing
        assert "hurt" in rows[harm]["traceback"], harm
    last = reports[-1]["doubling"]
    assert last["rows"] == 24 and last["quarantined"] == 6 and last["deaths"] == 4 * (1 + MAX_SOLO_DEATHS)


@pytest.mark.slow
def test_an_operator_whose_rows_belong_together_is_tried_whole_three_times(ray_cluster, tmp_path):
    by_value()
    step = Operator(Batched, {"notes": str(tmp_path / "calls")}, PoolConfig(batch=4, cpus=0.25), "doubling")
    reports = []
    rows = [r for b in run_stream(table({1: "exit"}, 8), [step], 4, deadline=60.0, report=reports.append) for r in b["reason"]]
    assert Counter(bool(r) for r in rows) == {False: 7, True: 1}
    assert reports[-1]["doubling"]["deaths"] == 3 + MAX_SOLO_DEATHS
    sizes = Counter(int(line) for line in (tmp_path / "calls").read_text().split())
    assert sizes[4] == 1 and set(sizes) == {1, 4}, "the other batch stays whole"


def test_without_a_guard_there_is_no_deadline_and_the_inline_loop_gives_the_same_rows():
    deadline.tick()
    step = Operator(Doubler, {}, PoolConfig(batch=4), "doubling")
    rows = [b for b in run_inline(table({2: "exception"}, 8), [step], 4)]
    assert [int(d) for b in rows for d in b["double"]] == [0, 2, -1, 6, 8, 10, 12, 14]


def test_parts_are_joined_column_by_column_whatever_they_hold():
    one = {"sample_id": string_column(["a"]), "image": np.zeros((1, 4, 4, 3), np.uint8), "n": np.array([1], np.int64)}
    other = {"sample_id": string_column(["b"]), "image": np.ones((1, 2, 4, 3), np.uint8), "n": np.array([2], np.int64)}
    none = {name: values[:0] for name, values in one.items()}
    joined = _join([one, none, other])
    assert list(joined["sample_id"]) == ["a", "b"] and joined["n"].tolist() == [1, 2] and joined["n"].dtype == np.int64
    assert [image.shape for image in joined["image"]] == [(4, 4, 3), (2, 4, 3)]
    assert len(_join([none, none])["sample_id"]) == 0
