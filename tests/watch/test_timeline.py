"""The timeline of a run: restarts, rates, seconds left, and the stages of the stream."""

from __future__ import annotations

import random

from syn4seg.watch.timeline import Timeline, is_load_line, slowest_rate, starts_new_stream


def test_a_command_that_goes_on_has_its_own_times_and_keeps_what_draws_have_counted():
    timeline = Timeline()
    lines = [
        {"kind": "begin", "stage": "labels and novel", "started": 100.0, "time": 100.0},
        {"kind": "pulse", "stage": "stream", "draw": 0, "done": 0, "total": 8, "reasons": {}, "time": 101.0},
        {"kind": "pulse", "stage": "stream", "draw": 0, "done": 8, "total": 8, "reasons": {"": 8}, "time": 109.0},
        {"kind": "pulse", "stage": "stream", "draw": 1, "done": 4, "total": 8, "reasons": {"": 4}, "time": 110.0},
        {"kind": "pulse", "stage": "training", "draw": 0, "done": 4, "total": 9, "loss": None, "time": 110.0},
        {"kind": "begin", "stage": "labels and novel", "started": 9000.0, "time": 9001.0},
        {"kind": "pulse", "stage": "stream", "draw": 1, "done": 4, "total": 8, "reasons": {"": 4}, "time": 9002.0},
        {"kind": "pulse", "stage": "stream", "draw": 1, "done": 6, "total": 8, "reasons": {"": 6}, "time": 9006.0},
    ]
    timeline.add_lines(lines)
    assert timeline.started == 9000.0
    assert timeline.funnel() == {0: {"": 8}, 1: {"": 6}}
    (item,) = [item for item in timeline.items.values() if item.current]
    assert (item.title, item.rate(), item.seconds_left(9006.0)) == ("labels of draw 1", 0.5, 4.0)
    assert timeline.phase_title() == "labels of draw 1"


def test_the_pace_is_that_of_the_slowest_window_in_which_something_was_done():
    rng = random.Random(0)
    for _ in range(200):
        marks = [(0.0, 0.0)]
        for _ in range(rng.randrange(7)):
            marks.append((marks[-1][0] + rng.choice([1.0, 10.0, 30.0]), marks[-1][1] + rng.choice([0, 0, 1, 8])))
        now, slowest = marks[-1][0] + rng.choice([0, 5.0]), None
        for moment, done in marks:
            if marks[-1][1] - done > 0 and now - moment > 0:
                rate = (marks[-1][1] - done) / (now - moment)
                slowest = rate if slowest is None else min(slowest, rate)
        assert slowest_rate(marks, now) == slowest
    assert slowest_rate([], 3.0) is None


def load_line(seconds: float, draw: int | None, **rows: int) -> dict:
    ahead, stages = 64, {}
    for name in ("synthesis", "labeling", "refinement", "writing"):
        done = rows.get(name, 0)
        stages[name] = {"rows": done, "queued": ahead - done, "actors": 1, "busy_share": 0.5, "rows_per_second": 1.5}
        ahead = done
    return {"kind": "load", "draw": draw, "seconds": seconds, "object_store_gib": 0.25, "stages": stages, "time": seconds}


def test_stages_are_in_the_order_of_the_stream_with_what_is_left_of_them():
    timeline = Timeline()
    timeline.add_lines([load_line(0, 0), load_line(10, 0, synthesis=20), load_line(20, 0, synthesis=32, labeling=16)])
    stages = timeline.stage_loads()
    assert [s.name for s in stages] == ["synthesis", "labeling", "refinement", "writing"]
    assert [s.total for s in stages] == [64] * 4
    assert [s.seconds_left for s in stages] == [32 / 1.2, 48 / 0.8, None, None]
    timeline.add_lines([load_line(5, 1, synthesis=8)])  # the next draw counts from zero
    assert [s.seconds_left for s in timeline.stage_loads()] == [None] * 4
    timeline.add_lines([load_line(6, None, synthesis=8), load_line(7, 0)])  # images alone, which have no draw


def test_a_line_is_of_another_stream_if_its_draw_is_another_or_it_counts_anew():
    assert not starts_new_stream(load_line(10, 0), load_line(10, 0))
    assert starts_new_stream(load_line(10, 0), load_line(20, 1)) and starts_new_stream(load_line(10, 0), load_line(20, None))
    assert starts_new_stream(load_line(10, 0), load_line(9, 0)) and starts_new_stream(load_line(10, 0), {"draw": 0, "seconds": "x"})
    assert is_load_line(load_line(1, 0)) and not any(map(is_load_line, ({}, {"stages": 3}, {"stages": {"labeling": None}})))
