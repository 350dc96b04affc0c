"""Exports that are stopped, repeated, aimed at the wrong place, or made of a damaged or unfinished run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from syn4seg.errors import StoreError, UserError
from syn4seg.exports.choosing import Choice
from syn4seg.exports.target import Target
from syn4seg.exports.writing import FORMATS, write
from syn4seg.store.rundir import opened
from tests.shared_exports import REJECTED, contents, made_run, silent


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("made"))


def export(run, config, to, format="voc", note=silent, warn=silent, shard_mb=None, name=None, **choice):
    return write(
        run, config, Choice(**choice), str(to), format, shard_mb=shard_mb, name=name, note=note, warn=warn, progress=silent
    )


def syn4seg(*words):
    command = [sys.executable, "-m", "syn4seg.cli", "export", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# -------------------------------------------------------------------------------------- stopped and repeated
@pytest.mark.parametrize("format", FORMATS)
def test_an_export_stopped_anywhere_is_made_whole_by_the_same_command(made, tmp_path, monkeypatch, format):
    run, config, _ = made
    export(run, config, tmp_path / "whole", format, only="all")
    whole = contents(tmp_path / "whole")
    assert "export.json" in whole and "unfinished.json" not in whole
    for step in ("parts", "write", "end"):
        calls, to = iter(range(100)), tmp_path / step
        place = Target if step != "parts" else __import__("syn4seg.exports.choosing", fromlist=["Chosen"]).Chosen
        name = "_part" if step == "parts" else step
        original = getattr(place, name)

        def stop(*words, calls=calls, original=original, last=0 if step != "parts" else 1):
            if next(calls) >= last:
                raise KeyboardInterrupt
            return original(*words)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, stop)
            with pytest.raises(KeyboardInterrupt):
                export(run, config, to, format, only="all")
        assert (to / "unfinished.json").is_file() and not (to / "export.json").exists()
        (to / ".left.tar.1234.partial").write_bytes(b"by a crash")
        (to / "data").mkdir(exist_ok=True)
        (to / "data" / "train-00099.parquet").write_bytes(b"of the first try, when more samples were sound")
        assert export(run, config, to, format, only="all") == {"accepted": 12, "rejected": 1, "fault": 1}
        assert contents(to) == whole


def test_a_finished_export_is_left_alone_and_anything_else_is_refused(made, tmp_path):
    run, config, _ = made
    export(run, config, tmp_path / "out")
    before, times = contents(tmp_path / "out"), {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    said = []
    assert export(run, config, tmp_path / "out", note=said.append) == {"accepted": 12}
    assert said == [f"{tmp_path / 'out'}: already holds this export; nothing was written"]
    for changed in ({"only": "all"}, {"format": "mmseg"}, {"by_class": True}, {"classes": ("bird.x",)}, {"name": "other"}):
        with pytest.raises(ValueError, match=f"another export.*{next(iter(changed))} .*instead of.*choose another folder"):
            export(run, config, tmp_path / "out", **changed)
    assert contents(tmp_path / "out") == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == times


def test_a_run_that_went_on_does_not_mix_with_its_earlier_export(tmp_path):
    run, config, _ = made_run(tmp_path / "a", samples=10, planned=14, manifest=False, data=tmp_path / "data")
    export(run, config, tmp_path / "out")
    other, config, _ = made_run(tmp_path / "b", data=tmp_path / "data")
    with pytest.raises(UserError, match="other samples, or another state of the run"):
        export(other, config, tmp_path / "out")


def test_files_of_others_are_never_touched(made, tmp_path):
    run, config, _ = made
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"mine")
    for place, said in (
        (tmp_path / "mine", "holds 1 files and is no export"),
        (tmp_path / "mine/photo.png", "is a file"),
        (run.root / "export", "lies in the run"),
    ):
        with pytest.raises(UserError, match=said):
            export(run, config, place)
    assert contents(tmp_path) == {"mine/photo.png": b"mine"}
    assert not (run.root / "export").exists()


# ----------------------------------------------------------------------------------- damaged and unfinished runs
def test_damaged_samples_are_named_left_out_and_end_in_exit_code_1(made, tmp_path):
    original, config, truth = made
    shutil.copytree(original.root, tmp_path / "run")
    run = opened(str(tmp_path / "run"))
    cut, swapped, lost = "hdig-bird.x-00000", "hdig-toy_car-00001", "hdig-bird.x-00002"
    path = run.image("bird.x", cut)
    path.write_bytes(path.read_bytes()[:200])
    shutil.copy(run.draw(0).label("label", "toy car", "hdig-toy_car-00007"), run.draw(0).label("label", "toy car", swapped))
    run.draw(0).label("label", "bird.x", lost).unlink()
    for format in FORMATS:
        done = syn4seg(run.root, "--format", format, "--to", tmp_path / format) if format == "voc" else None
        if done is None:
            assert export(opened(str(run.root)), config, tmp_path / format, format) == {"accepted": 9, "damaged": 3}
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
    assert export(opened(str(run.root)), config, tmp_path / "out", "parquet", warn=lines.append) == {"damaged": 12}
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
        ({"format": "yolo"}, "--format yolo: expected one of voc, coco"),
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


# ---------------------------------------------------------------------------------------------- other disks
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_full_disk_of_temporary_files_is_told_from_that_of_the_export(made, tmp_path, monkeypatch):
    run, config, _ = made
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", Path("/dev/full").open)
    with pytest.raises(StoreError) as caught:
        export(run, config, tmp_path / "out", "coco")
    assert str(caught.value).startswith(f"{tmp_path / 'a temporary file'}") and "No space left" in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_an_object_store_gets_the_same_bytes_as_a_folder(made, tmp_path, format):
    import fsspec

    run, config, _ = made
    export(run, config, tmp_path / "out", format, only="all")
    export(run, config, f"memory://bucket/{format}", format, only="all")
    store = fsspec.filesystem("memory")
    names = store.find(f"/bucket/{format}")
    assert {n.removeprefix(f"/bucket/{format}/"): store.cat(n) for n in names} == contents(tmp_path / "out")


@pytest.mark.parametrize(("options", "said"), [("size=48k", "No space left"), ("size=1m,ro", "Read-only")])
def test_a_full_or_read_only_disk_is_one_sentence(made, tmp_path, options, said):
    run, config, _ = made
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        with pytest.raises(StoreError, match=said):
            export(run, config, place / "out")
        if "ro" not in options:
            subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
            assert export(run, config, place / "out") == {"accepted": 12}
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
