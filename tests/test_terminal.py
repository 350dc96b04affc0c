"""Tables and progress lines: columns follow the protocol, and where there is no terminal a line now and then is enough."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from rich.console import Console

from syn4seg import terminal
from syn4seg.options import set_loudness
from syn4seg.stages.rows import RESULT_NAMES
from syn4seg.terminal import TITLES, Terminal, format_percent, format_rate, sort_rows, table_columns

OURS = {"base_mIoU": "foreground base classes", "mean": "(base + novel) / 2"}


def test_the_columns_are_those_that_the_protocol_reports():
    assert list(table_columns(OURS).values()) == ["base", "novel", "mean", "harmonic"]
    bam = OURS | {"base_mIoU": "with the background"}
    assert table_columns(bam) == {
        "base + bg": "base_with_background",
        "novel": "novel",
        "mean": "mean",
        "harmonic": "harmonic_with_background",
    }
    assert "total" in table_columns(OURS | {"mean": "over all classes (total)"})


def test_rows_are_listed_from_the_simplest_to_the_whole_method_and_all_have_a_title():
    joint = {f"{row}_{part}" for row in RESULT_NAMES.values() for part in ("decoder", "all")}
    assert [row for row in TITLES if row not in joint] == list(RESULT_NAMES.values()) and joint <= set(TITLES)
    assert sort_rows(["zzz", *sorted(TITLES)]) == [*TITLES, "zzz"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"mean": 0.5, "std": 0.0, "n": 1}, "50.0"),
        ({"mean": 0.1234, "std": 0.01, "n": 5}, "12.3 ± 1.0"),
        ({"mean": None, "std": None, "n": 0}, "-"),
    ],
)
def test_a_spread_is_shown_in_percent(value, text):
    assert format_percent(value) == text


def test_progress_without_a_terminal_is_the_first_and_the_last_line_and_some_between(capsys, monkeypatch):
    times = iter([100.0, 100.0, 104.0, 111.0, 112.0])  # start, then one per call
    monkeypatch.setattr(terminal.time, "time", lambda: next(times))
    with Terminal().bar("labels") as update:
        update(2, 12)
        update(6, 12)
        update(9, 12, Counter({"": 7, "target_too_small": 2}))
        update(12, 12)
    assert capsys.readouterr().out.splitlines() == [
        "labels: 2/12, 0 s",
        "labels: 9/12, 0.636/s, 11 s, 5 s left 2 rejected",
        "labels: 12/12, 0.833/s, 12 s",
    ]


def test_no_rate_is_shown_as_nought():
    assert [format_rate(rate) for rate in (0.00123, 0.5, 12.34, 2000.4)] == ["0.00123", "0.5", "12.3", "2000"]


@pytest.mark.parametrize(("width", "bars"), [(80, True), (60, False)])
def test_on_a_narrow_terminal_bars_are_dropped_and_numbers_stay(width, bars):
    shown = Terminal()
    shown.console = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)
    with shown.bar("labels, draw 0") as update:
        update(3, 5000)
    text = shown.console.file.getvalue()
    assert "3/5000" in text and ("━" in text) == bars


def test_q_leaves_warnings_and_answers_and_v_says_when(capsys):
    try:
        for level in (-1, 1):
            set_loudness(level)
            shown = Terminal()
            shown.note("note")
            shown.note("warning: a photo is small")
            shown.answer("answer")
            with shown.bar("labels") as update:
                update(1, 1)
            said = capsys.readouterr().out.splitlines()
            assert said == ["warning: a photo is small", "answer"] if level < 0 else said[0] == "[0.0 s] note" and len(said) == 4
    finally:
        set_loudness(0)


def test_the_funnel_counts_every_reason(capsys):
    Terminal().funnel(1, Counter({"": 7, "b": 2, "a": 1}))
    assert capsys.readouterr().out == "draw 1: 7 of 10 samples accepted; 1 a, 2 b\n"


@pytest.mark.parametrize(("console", "widgets", "bars"), [("terminal", 0, 1), ("jupyter", 1, 1), ("jupyter", 0, 0), ("file", 1, 0)])
def test_a_notebook_with_widgets_shows_bars_and_one_without_lines(monkeypatch, console, widgets, bars):
    monkeypatch.setattr(terminal, "find_spec", lambda name: object() if widgets else None)
    assert terminal.shows_bars(Console(force_terminal=console == "terminal", force_jupyter=console == "jupyter")) == bool(bars)
