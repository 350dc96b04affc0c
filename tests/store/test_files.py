"""Disks that are full, read-only or taken away: the stream stops with one sentence, and the same command finishes the run."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from actors.graph import stream
from syn4seg.config.loading import load
from syn4seg.config.tree import annotated
from syn4seg.errors import DamagedError, StoreError, UserError
from syn4seg.stages.results import verify_run
from syn4seg.store.files import atomic_file, check_writable, explain_errors, read_bytes
from syn4seg.store.listing import count_partial_files
from syn4seg.store.rundir import RunDir, open_run
from syn4seg.store.seals import write_sealed
from syn4seg.store.tables import write_parquet


def quiet(*_):
    return None


@pytest.fixture
def disk(tmp_path):
    """A file system of 8 MB, mounted for the test, with a run that is ready to be streamed in `fill`."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    free = shutil.disk_usage(disk).free
    (disk / "other").write_bytes(bytes(max(0, free - leave)))
    return disk / "other"


@pytest.mark.parametrize("layout", ["files", "sharded"])
@pytest.mark.parametrize("leave", [0, 40_000, 150_000])
def test_a_full_disk_stops_the_stream_and_the_same_command_goes_on(finish, prepared, small, reference, disk, layout, leave):
    original, names = prepared
    shutil.copytree(original.root, disk / "run")
    config = load(None, [*small, f"layout={layout}", "placement.synthesis.batch=5"])
    write_sealed(disk / "run" / "config.yaml", annotated(config).encode())
    other = fill(disk, leave)
    with pytest.raises(
        StoreError, match=r"cannot be written \(No space left on device; [\d.,]+ MiB free\).*same command"
    ) as caught:
        stream(config, RunDir(disk / "run"), names, 0, quiet)
    assert str(disk / "run") in str(caught.value) and "\n" not in str(caught.value)
    run = RunDir(disk / "run")
    assert run.quarantined_ids() == [], "a full disk is no fault of any row"
    done = run.draw(0).done()
    assert len(done) < 24 and all(r["reason"].startswith("fault") is False for r in run.draw(0).records())
    other.unlink()
    assert finish(config, run, names) == reference[0]


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_from_an_actor_too_and_quarantines_nothing(
    finish, prepared, small, reference, disk, ray_cluster
):
    original, names = prepared
    shutil.copytree(original.root, disk / "run")
    config = load(None, [*small, "placement.runner=ray", "placement.synthesis.batch=5"])
    other = fill(disk, 40_000)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device.*same command") as caught:
        stream(config, RunDir(disk / "run"), names, 0, quiet)
    assert "\n" not in str(caught.value)
    assert RunDir(disk / "run").quarantined_ids() == []
    other.unlink()
    assert finish(config, RunDir(disk / "run"), names) == reference[0]


def test_a_read_only_target_is_one_sentence(prepared, small, disk):
    original, names = prepared
    shutil.copytree(original.root, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(
        StoreError, match=r"cannot be written \(Read-only file system.*choose a place that is not mounted read-only"
    ):
        stream(load(None, small), RunDir(disk / "run"), names, 0, quiet)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@pytest.mark.parametrize("layout", ["files", "sharded"])
def test_a_run_directory_that_is_taken_away_is_not_made_anew_in_its_place(fresh, small, layout):
    run, names = fresh
    config = load(None, [*small, f"layout={layout}", "placement.synthesis.batch=5"])
    write_sealed(run.config, annotated(config).encode())

    def take_away(done, *_):
        if done == 5:
            run.root.rename(run.root.with_name("elsewhere"))

    with pytest.raises(StoreError, match="removed or unmounted"):
        stream(config, RunDir(run.root), names, 0, take_away)
    assert not run.root.exists()
    run.root.with_name("elsewhere").rename(run.root)
    assert len(RunDir(run.root).draw(0).done()) == 5


def test_unfinished_files_count_for_nothing_and_are_counted(finish, fresh, small, reference):
    run, names = fresh
    config = load(None, small)
    for folder in ("images/ball", "draws/0/records/ball", "draws/0/labels/ball", "quarantined"):
        (run.root / folder).mkdir(parents=True, exist_ok=True)
        (run.root / folder / ".hdig-ball-00000.png.0011aabb.partial").write_bytes(b"half")
        (run.root / folder / ".hdig-ball-00000.json.0011aabb.partial").write_bytes(b"half")
    assert finish(config, run, names) == reference[0]
    assert count_partial_files(run.root) == 8
    assert run.quarantined_ids() == []


def test_an_empty_or_damaged_record_is_a_sample_that_is_not_done(finish, fresh, small, reference):
    run, names = fresh
    config = load(None, small)
    finish(config, run, names)
    records = sorted(run.root.glob("draws/0/records/*/*.json"))
    for path, data in zip(records, (b"", b"{", b"[]", b'{"sample_id": "other"}', b"\xff\xfe", b'{"reason": 3}'), strict=False):
        path.write_bytes(data)
    assert len(run.draw(0).done()) == 18
    assert finish(config, run, names) == reference[0]


def test_a_plan_with_a_strange_id_is_refused_before_a_path_is_made_of_it(fresh, small):
    import pyarrow as pa
    import pyarrow.parquet as pq

    run, names = fresh
    plan = pq.read_table(run.plan)
    for bad in ("../../x", "/etc/passwd", "a\x00b", ""):
        ids = [bad, *plan["sample_id"].to_pylist()[1:]]
        pq.write_table(plan.set_column(plan.column_names.index("sample_id"), "sample_id", pa.array(ids)), run.plan)
        with pytest.raises(UserError, match=r"plan\.parquet: sample .* cannot be part of a file name"):
            stream(load(None, small), RunDir(run.root), names, 0, quiet)
    run.plan.write_bytes(b"PAR1 but no table")
    with pytest.raises(UserError, match=r"plan\.parquet: damaged"):
        stream(load(None, small), RunDir(run.root), names, 0, quiet)


def test_a_manifest_that_points_elsewhere_is_refused(finish, fresh, small):
    import pyarrow as pa
    import pyarrow.parquet as pq

    run, names = fresh
    finish(load(None, small), run, names)
    good = pq.read_table(run.draw(0).manifest)
    for key, words in (("class", "printable characters"), ("sample_id", "cannot be part of a file name")):
        column = ["../../../../etc\n", *good[key].to_pylist()[1:]]
        pq.write_table(good.set_column(good.column_names.index(key), key, pa.array(column)), run.draw(0).manifest)
        with pytest.raises(UserError, match=rf"manifest\.parquet: .*{words}"):
            verify_run(run)
    pq.write_table(good.drop_columns(["image"]), run.draw(0).manifest)
    with pytest.raises(UserError, match=r"manifest\.parquet: has no column 'image'"):
        verify_run(run)
    run.draw(0).manifest.write_bytes(b"")
    with pytest.raises(UserError, match=r"manifest\.parquet: damaged"):
        verify_run(run)


def test_links_out_of_the_run_and_numbers_that_are_none_are_no_draws(fresh):
    run, _ = fresh
    for name in ("x", "-1", "1.5", "٣"):
        (run.root / "draws" / name).mkdir()
    assert [draw.number for draw in run.draws()] == [0]
    assert np.all([draw.root.name == "0" for draw in run.draws()])


@pytest.mark.parametrize("quick", [False, True])
def test_verify_names_a_sample_that_a_manifest_holds_twice(finish, fresh, small, quick):
    import pyarrow as pa
    import pyarrow.parquet as pq

    run, names = fresh
    finish(load(None, small), run, names)
    manifest = run.draw(0).manifest
    table = pq.read_table(manifest)
    write_parquet(manifest, pa.concat_tables([table, table.slice(3, 1)]))
    assert verify_run(run, quick)[1] == [f"draw 0: {table['sample_id'][3]} is in the manifest more than once"]


def test_a_destination_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "new" / "deeper", tmp_path / "file", tmp_path):
        check_writable(str(place), "--to")
    check_writable("s3://bucket/run", "--to")
    for place, words in (
        (tmp_path / "file" / "below", "is a file"),
        ("x" * 300 + "/y", "is no usable path"),
        ("a\x00b", "is no usable path"),
    ):
        with pytest.raises(UserError, match=f"--to .*{words}"):
            check_writable(str(place), "--to")
    monkeypatch.setattr("os.access", lambda *_: False)  # the superuser may write everywhere
    with pytest.raises(UserError, match=r"--to .* is not writable for you"):
        check_writable(str(tmp_path / "new"), "--to")


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "make room"), (errno.EROFS, "read-only"), (errno.EACCES, "mend the rights there")]
)
def test_the_remedy_fits_the_cause(tmp_path, code, remedy):
    with pytest.raises(StoreError, match=remedy) as refused, explain_errors(tmp_path / "x", "written"):
        raise OSError(code, os.strerror(code))
    assert ("make room" in str(refused.value)) == (code == errno.ENOSPC)


def test_files_have_the_modes_of_the_umask_whoever_made_them(tmp_path):
    with atomic_file(tmp_path / "x") as partial:
        partial.touch(mode=0o600)
    plain = tmp_path / "y"
    plain.write_text("")
    assert (tmp_path / "x").stat().st_mode == plain.stat().st_mode


def test_a_pipe_or_a_device_is_no_file_of_a_run(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(DamagedError, match="is no regular file"):
            read_bytes(tmp_path / name)


def test_the_directory_of_a_sweep_is_no_run_and_says_where_the_page_is(tmp_path):
    for name in ("config.yaml", "study.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"a sweep, not a run; its page is .*report\.html"):
        open_run(str(tmp_path))
