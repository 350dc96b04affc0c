"""The options of an export: which bank, which recorded figures, which split, whose ids."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from syn4seg.errors import UserError
from syn4seg.exports.choice import ExportOptions, agreement_of, similarity_of
from tests.shared_exports import REJECTED, audit_of, export, made_run, read_parquet

CONTROL = (2, 3, 6)


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("banks"), control=CONTROL)


def exported(made, to, **options) -> dict[int, dict]:
    """Rows of the samples in an export, by their number."""
    run, config, _ = made
    export(run, config, to, "parquet", **options)
    return {int(row["sample_id"][-5:]): row for row in pq.read_table(to / "lineage.parquet").to_pylist()}


@pytest.mark.parametrize(
    ("bank", "numbers"), [("hdig", {0, 1, 4, *range(7, 14)}), ("control", {2, 6}), ("all", {*range(14)} - {3, 5})]
)
def test_a_default_export_is_of_the_diverse_prompts_and_the_bank_stands_in_every_row(banks, tmp_path, bank, numbers):
    found = exported(banks, tmp_path / "out", **({} if bank == "hdig" else {"bank": bank}))
    assert set(found) == numbers
    assert all(row["bank"] == ("class_name" if number in CONTROL else "hdig") for number, row in found.items())
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["export"]["bank"] == bank and facts["planned"] == {"hdig": 11, "control": 3, "all": 14}[bank]


def test_the_manifest_has_the_bank_of_every_sample(banks):
    rows = pq.read_table(banks[0].draw(0).manifest).to_pylist()
    assert {int(row["sample_id"][-5:]) for row in rows if row["bank"] == "class_name"} == {*CONTROL}


def test_filters_compare_the_recorded_figures_and_leave_out_what_has_none(plain, tmp_path):
    assert agreement_of(audit_of(6, 4)) == pytest.approx(0.3) and similarity_of(audit_of(6, 4), 4) == 0.3
    assert agreement_of(audit_of(1, 3)) is None and similarity_of(audit_of(1, 3), 3) is None
    notes = []
    assert set(exported(plain, tmp_path / "a", min_iou=0.31, note=notes.append)) == {*range(7, 14)}
    assert "5 samples do not reach --min-iou or --min-similarity" in notes[0]
    assert set(exported(plain, tmp_path / "b", min_similarity=0.5, only="all")) == {5, *range(10, 14)}, "a fault has no figure"
    assert set(exported(plain, tmp_path / "c", reasons=(REJECTED,))) == {3}
    assert set(exported(plain, tmp_path / "d", reasons=(REJECTED, "accepted"), min_iou=0.55)) == {11, 12, 13}


def test_the_split_goes_by_the_id_alone_and_stays_when_more_samples_come(tmp_path):
    found = []
    for samples in (8, 14):
        run = made_run(tmp_path / f"{samples}", samples=samples, planned=14, manifest=False, data=tmp_path / "data", reasons={})
        found.append({n: row["split"] for n, row in exported(run, tmp_path / f"{samples}" / "out", split=0.5).items()})
    assert found[0] == {n: split for n, split in found[1].items() if n < 8}
    assert set(found[0].values()) == {"train", "val"}
    shares = [[ExportOptions(split=0.9, split_seed=seed).part_of(f"s{i}") for i in range(2000)] for seed in (0, 1)]
    assert all(0.88 < s.count("train") / 2000 < 0.92 for s in shares) and shares[0] != shares[1]
    run = made_run(tmp_path / "classes", data=tmp_path / "data")
    splits = {row["split"] for row in exported(run, tmp_path / "by", split=0.5, by_class=True).values()}
    assert splits == {"003_toy_car", "003_toy_car_val", "004_bird_x", "004_bird_x_val"}


def test_the_data_sets_own_ids_are_written_on_request(tmp_path):
    run, config, truth = made_run(tmp_path)
    table = json.loads((tmp_path / "data/classes.json").read_text())
    config = config.model_copy(update={"data": config.data.model_copy(update={"fold": "turned"})})
    (tmp_path / "data/classes.json").write_text(
        json.dumps({"classes": ["bird.x", *table["classes"][:3]], "folds_novel": {"turned": ["toy car", "bird.x"]}})
    )
    values = np.arange(256)
    values[1:5] = [2, 3, 1, 4]  # base cat, dog; novel by ascending id: bird.x, toy car
    run.results.write_text(json.dumps({"classes": ["background", "cat", "dog", "toy car", "bird.x"]}))
    export(run, config, tmp_path / "out", "parquet", ids="dataset")
    assert json.loads((tmp_path / "out/classes.json").read_text())["classes"] == ["background", "bird.x", "cat", "dog", "toy car"]
    for name, _, label in read_parquet(tmp_path / "out", "train"):
        np.testing.assert_array_equal(label, values[truth[name].label])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bank": "both"}, "--bank both: expected hdig, control or all"),
        ({"ids": "own"}, "--ids own: expected index or dataset"),
        ({"split": 1.0}, "--split 1: expected the share of train, between 0 and 1"),
        ({"min_iou": 2.0}, "--min-iou 2: expected a number from 0 to 1"),
        ({"min_similarity": float("nan")}, "--min-similarity nan: expected a number from -1 to 1"),
        ({"reasons": ("dull",)}, "--reason dull: no sample of draw 0 has it; expected some of accepted, target_too_small"),
        ({"min_iou": 0.9}, "no sample to export .*lower --min-iou or --min-similarity"),
        ({"bank": "control"}, "no sample to export .none is finished.; choose another --bank"),
        ({"merge": "run", "by_class": True}, "--merge with --by-class"),
        ({"merge": "nowhere"}, "--merge nowhere: data folder 'nowhere' does not exist"),
    ],
)
def test_a_wrong_choice_is_one_sentence_and_nothing_is_written(plain, tmp_path, options, said):
    run, config, _ = plain
    with pytest.raises(UserError, match=said):
        export(run, config, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
