"""Exports that are stopped, repeated, aimed at the wrong place, or made of a damaged or unfinished run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from syn4seg.errors import UserError
from syn4seg.exports.formats import FORMATS
from syn4seg.store.rundir import open_run
from tests.shared_exports import REJECTED, export, made_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("made"))


def syn4seg(*words):
    command = [sys.executable, "-m", "syn4seg.cli", "export", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ----------------------------------------------------------------------------------- damaged and unfinished runs
def test_damaged_samples_are_named_left_out_and_end_in_exit_code_1(made, tmp_path):
    original, config, truth = made
    shutil.copytree(original.root, tmp_path / "run")
    run = open_run(str(tmp_path / "run"))
    cut, swapped, lost = "hdig-bird.x-00000", "hdig-toy_car-00001", "hdig-bird.x-00002"
    path = run.image("bird.x", cut)
    path.write_bytes(path.read_bytes()[:200])
    shutil.copy(run.draw(0).label("label", "toy car", "hdig-toy_car-00007"), run.draw(0).label("label", "toy car", swapped))
    run.draw(0).label("label", "bird.x", lost).unlink()
    for format in FORMATS:
        done = syn4seg(run.root, "--format", format, "--to", tmp_path / format) if format == "voc" else None
        if done is None:
            assert export(open_run(str(run.root)), config, tmp_path / format, format) == {"accepted": 9, "damaged": 3}
        else:
            assert done.returncode == 1 and "Traceback" not in done.stderr
            assert all(sample in done.stderr for sample in (cut, swapped, lost)) and "3 damaged samples" in done.stderr
            assert done.stdout.strip().endswith("9 accepted, 3 damaged")
    ids = (tmp_path / "voc/ImageSets/Segmentation/train.txt").read_text().split()
    assert set(ids) == {s for s, t in truth.items() if not t.reason} - {cut, swapped, lost}
    rows = pq.read_table(tmp_path / "voc" / "lineage.parquet").to_pylist()
    assert {r["sample_id"] for r in rows if (r["verdict"], r["split"]) == ("damaged", "")} == {cut, swapped, lost}
    assert len(rows) == 12


def test_a_damaged_part_of_a_sharded_run_costs_its_samples_and_is_counted(tmp_path):
    run, config, _ = made_run(tmp_path, "sharded")
    part = next((run.root / "draws/0/labels").glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    lines = []
    assert export(open_run(str(run.root)), config, tmp_path / "out", "parquet", warn=lines.append) == {"damaged": 12}
    assert len(lines) == 12


def test_of_an_unfinished_run_what_is_finished_is_exported_and_said(tmp_path):
    run, config, _ = made_run(tmp_path, samples=12, planned=24, manifest=False)
    said = []
    assert export(run, config, tmp_path / "out", note=said.append) == {"accepted": 10}
    assert said == ["12 of 24 samples of draw 0 are finished; the others are not exported"]
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (facts["finished"], facts["planned"]) == (12, 24)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": ("dog",)}, "--classes dog: not a novel class of this run; expected some of toy car, bird.x"),
        ({"draw": 7}, "--draw 7: .* has no such support draw; it has: 0"),
        ({"only": "some"}, "--only some: expected accepted or all"),
        ({"format": "tfds"}, "--format tfds: expected one of voc, coco"),
        ({"shard_mb": 5}, "--shard-mb 5: voc is a folder"),
        ({"name": "../x"}, "--name '../x'"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(made, tmp_path, options, said):
    run, config, _ = made
    with pytest.raises(UserError, match=said):
        export(run, config, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_run_without_accepted_samples_says_why_and_what_to_do(tmp_path):
    run, config, _ = made_run(tmp_path, samples=4, reasons=dict.fromkeys(range(4), REJECTED))
    with pytest.raises(UserError, match=r"draw 0 has no sample to export \(4 rejected\); use --only all"):
        export(run, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(run, config, tmp_path / "out", only="all") == {"rejected": 4}


def test_no_run_is_one_message_and_exit_code_2(tmp_path):
    done = syn4seg(tmp_path, "--format", "voc", "--to", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "not a run" in done.stderr


def test_names_of_classes_are_never_made_up(tmp_path):
    run, config, _ = made_run(tmp_path)
    novel = pa.table({"class_id": pa.array([3, 4], pa.int32()), "class": ["toy car", "bird.x"]})
    pq.write_table(novel, run.prompts)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match="data"):
        export(run, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run.results.write_text(json.dumps({"classes": ["background", "cat", "dog", "toy car", "bird.x"]}))
    assert export(run, config, tmp_path / "out") == {"accepted": 12}
