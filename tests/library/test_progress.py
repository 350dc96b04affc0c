"""Progress of the library's functions: nothing, a bar on standard error, or what the caller does with the numbers."""

from __future__ import annotations

from syn4seg.library.progress import reporting


def test_without_progress_nothing_is_said(capsys):
    with reporting(False, "prompts") as report:
        report(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_on_standard_error_with_its_title(capsys):
    with reporting(True, "prompts") as report:
        report(2, 2)
    said = capsys.readouterr()
    assert said.out == "" and "prompts" in said.err and "100%" in said.err


def test_a_function_of_the_caller_gets_the_numbers_as_they_are():
    told = []
    with reporting(lambda *numbers: told.append(numbers), "prompts") as report:
        report(1, None)
        report(3, 3)
    assert told == [(1, None), (3, 3)]
