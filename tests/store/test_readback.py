"""The forms of the JSON files of a run: what was written is read back as it is, anything else is one line that says where."""

from __future__ import annotations

import json
import shutil

import pytest

from syn4seg.errors import DamagedError
from syn4seg.store import readback
from syn4seg.store.readback import BaseFacts, ClassNames, Facts, Inputs, Names, Provenance, Results, SupportFacts, read_checked

FORMS = {
    "results.json": Results,
    "provenance.json": Provenance,
    "checkpoints/base.json": BaseFacts,
    "draws/0/support.json": SupportFacts,
    "draws/0/queries.json": Names,
    "inputs.json": Inputs,
}


@pytest.mark.parametrize("name", FORMS)
def test_the_files_of_a_finished_run_have_their_form_and_come_back_as_they_are(finished, name):
    root, _ = finished
    assert read_checked(root / name, FORMS[name]) == json.loads((root / name).read_text())


@pytest.mark.parametrize("text", ["[3]", "3", "null", '"text"', "[[1]]", '{"a": {"b": 1.5}}'])
@pytest.mark.parametrize("name", FORMS)
def test_a_value_of_another_form_is_one_line_with_a_remedy(tmp_path, name, text):
    path = tmp_path / name.rpartition("/")[2]
    path.write_text(text)
    with pytest.raises(DamagedError) as error:
        read_checked(path, FORMS[name])
    said = str(error.value)
    assert said.startswith(f"{path}: ") and said.endswith("; put the old file back, or delete it and run again")
    assert "\n" not in said and len(said) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"classes": "abc"}, "classes: input should be a valid list"),
        ({"classes": ["a", 1]}, r"classes\.1: input should be a valid string"),
        ({"funnel": {"planned": "3", "draws": {}}}, r"funnel\.planned: input should be a valid integer"),
        ({"rows": {"syn4seg": {"mean": {"mean": True, "std": 0.0, "n": 1}}}}, r"rows\.syn4seg\.mean\.mean: input should be"),
    ],
)
def test_the_place_of_the_first_wrong_value_is_named(finished, tmp_path, change, place):
    shutil.copy(finished[0] / "results.json", tmp_path)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DamagedError, match=place):
        read_checked(path, Results)


def test_other_keys_may_stand_beside_those_that_must_be_there(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"classes": ["a"], "rows": 3}')
    assert read_checked(path, ClassNames) == {"classes": ["a"], "rows": 3}
    with pytest.raises(DamagedError, match=r"results\.json"):
        read_checked(path, Results)


def test_a_file_that_is_not_there_is_told_apart_from_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checked(tmp_path / "none.json", Facts)
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(DamagedError, match=r"cut\.json"):
        read_checked(tmp_path / "cut.json", Facts)
    assert readback._adapter(Facts) is readback._adapter(Facts), "a form is built once"
