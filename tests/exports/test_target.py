"""The target of an export: stopped, repeated, aimed at the wrong place; nothing of others is touched."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from syn4seg.errors import StoreError, UserError
from syn4seg.exports.formats import FORMATS
from syn4seg.exports.target import Target
from tests.shared_exports import contents, export, made_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("made"))


# -------------------------------------------------------------------------------------- stopped and repeated
@pytest.mark.parametrize("format", FORMATS)
def test_an_export_stopped_anywhere_is_made_whole_by_the_same_command(made, tmp_path, monkeypatch, format):
    run, config, _ = made
    export(run, config, tmp_path / "whole", format, only="all")
    whole = contents(tmp_path / "whole")
    assert "export.json" in whole and "unfinished.json" not in whole
    for step in ("parts", "write", "end"):
        calls, to = iter(range(100)), tmp_path / step
        place = Target if step != "parts" else __import__("syn4seg.exports.selection", fromlist=["Selection"]).Selection
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
        with pytest.raises(UserError, match=f"another export.*{next(iter(changed))} .*instead of.*choose another folder"):
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
