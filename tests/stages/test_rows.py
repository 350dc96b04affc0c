"""The rows of the ablation: what they train on, and which of them a configuration has."""

from __future__ import annotations

from syn4seg.config.loading import load
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.stages.rows import CLASS_NAME, HDIG, IMAGE_LABEL, NAMED, RESULT_NAMES, ROWS, SWAPPED, TRUTH, rows_of


def test_every_row_but_the_first_names_a_bank_and_a_label_column():
    assert ROWS["support_only"] == ("", "")
    banks, columns = zip(*(ROWS[row] for row in ROWS if row != "support_only"), strict=True)
    assert set(banks) == {CLASS_NAME, HDIG} and set(columns) == {*LABEL_COLUMNS, IMAGE_LABEL, SWAPPED, NAMED, TRUTH}
    assert len(set(RESULT_NAMES.values())) == len(ROWS)


def test_chosen_rows_come_beside_the_support_set_alone_and_controls():
    words = ["evaluation.rows=[apr]", "synthesis.model=renderer"]
    assert rows_of(load(None, words)) == ["support_only", "apf_apr"]
    controls = ["control_image_label", "control_swapped", "oracle"]
    assert rows_of(load(None, [*words, "evaluation.controls=true"])) == ["support_only", "apf_apr", *controls]


def test_imported_runs_have_no_class_name_row(small, tmp_path):
    assert "class_name_raw" in rows_of(load(None, small))
    assert "class_name_raw" not in rows_of(load(None, [*small, "synthesis.class_name_bank=false"]))
    assert "class_name_raw" not in rows_of(load(None, [*small, "synthesis.source=folder", f"synthesis.root={tmp_path}"]))
