"""Hostile and damaged inputs: none may end in a traceback, a hang, or a file outside. `make hostile` hands out many more."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.inputs import cases, outcome


def test_every_hostile_input_is_taken_or_refused_with_one_message(finished, tmp_path):
    root, _ = finished
    defects, kinds = [], set()
    for number, (kind, case) in enumerate(cases(20261129, 240, Path(root))):
        folder = tmp_path / str(number)
        folder.mkdir()
        result = outcome(case, folder)
        kinds.add(kind)
        if result not in ("taken", "refused"):
            defects.append(f"{number} {kind}: {case[0]}: {result}")
    assert defects == [] and len(kinds) == 7


def test_a_defect_is_seen(tmp_path):
    def leaves_a_file(folder):
        (folder.parent / "beside").touch()

    def fails(_):
        raise KeyError("x")

    for number, (case, word) in enumerate(((leaves_a_file, "files outside"), (fails, "KeyError"), (lambda _: None, "taken"))):
        (tmp_path / str(number)).mkdir()
        assert outcome(("case", case), tmp_path / str(number)).startswith(word)
