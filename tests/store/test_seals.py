"""Seals: a file of a run that was changed is noticed by whoever reads it and by verify; crashes between two writes cost nothing."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from syn4seg.errors import DamagedError
from syn4seg.stages.results import verify_run
from syn4seg.store import seals
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import broken_seals, check_seal, copy_seal, write_sealed


def _stop(*_):
    raise OSError("stopped")


def test_a_file_passes_as_it_was_written_and_as_it_was_before_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    for data in (b"one", b"two", b"two", b"three"):
        write_sealed(path, data)
        check_seal(path)
    path.write_bytes(b"two")  # the seal was written, and then the machine stopped
    check_seal(path)
    for other in (b"one", b"", b"three "):
        path.write_bytes(other)
        with pytest.raises(DamagedError, match=r"a\.bin: its content is not what was written"):
            check_seal(path)
    path.write_bytes(b"two")
    for _ in range(3):  # and again, each time between the seal and the file
        with monkeypatch.context() as patch, pytest.raises(OSError, match="stopped"):
            patch.setattr(seals, "write_atomically", _stop)
            write_sealed(path, b"three")
        check_seal(path)
    (tmp_path / ".seals" / "a.bin.json").write_text("{")  # a damaged seal holds nobody up
    write_sealed(path, b"three")
    path.write_bytes(b"three ")
    copy_seal(path, tmp_path / "b.bin")
    (tmp_path / "b.bin").write_bytes(b"three")
    check_seal(tmp_path / "b.bin")
    assert broken_seals(tmp_path) == [str(e) for e in [_error(path)]]
    (tmp_path / "b.bin").unlink()
    check_seal(tmp_path / "b.bin")
    assert [line.split(": ")[1] for line in broken_seals(tmp_path)][
        1
    ] == "missing; put it back, or run the same command again to make it anew"
    assert len(broken_seals(tmp_path, missing=False)) == 1
    (tmp_path / ".seals" / "a.bin.json").write_text("{}")
    with pytest.raises(DamagedError, match="damaged"):
        check_seal(path)


def _error(path):
    try:
        check_seal(path)
    except DamagedError as error:
        return error
    raise AssertionError("no error")


@pytest.fixture
def copied(finished, tmp_path):
    root, _ = finished
    shutil.copytree(root, tmp_path / "run")
    return RunDir(tmp_path / "run")


def _sealed(run):
    return sorted(p for p in run.root.rglob(".seals/*.json"))


def test_verify_names_every_file_of_a_run_that_was_changed(copied):
    digest, problems = verify_run(copied)
    assert problems == []
    names = {p.relative_to(copied.root).as_posix().replace(".seals/", "").removesuffix(".json") for p in _sealed(copied)}
    assert names >= {"config.yaml", "plan.parquet", "prompts.parquet", "embeddings.safetensors", "provenance.json", "results.json"}
    assert names >= {
        "checkpoints/base.safetensors",
        "draws/0/manifest.parquet",
        "draws/0/support.json",
        "draws/0/support.safetensors",
    }
    assert "draws/0/checkpoints/syn4seg.safetensors" in names and "draws/0/queries.json" in names
    for name in sorted(names):
        path = copied.root / name
        whole = path.read_bytes()
        spot = len(whole) // 2
        path.write_bytes(whole[:spot] + bytes([whole[spot] ^ 1]) + whole[spot + 1 :])
        try:
            assert any(str(path) in line for line in verify_run(copied)[1]), name
        except Exception as error:  # noqa: BLE001 - a table that cannot be parsed any more is named by its reader
            assert isinstance(error, DamagedError) and name.rpartition("/")[2] in str(error)
        path.write_bytes(whole)
    assert verify_run(copied) == (digest, [])


@pytest.mark.parametrize("key", ["reason", "class_id", "prompt", "noise_seed"])
def test_a_manifest_that_was_written_anew_differs_from_the_records(copied, key):
    from syn4seg.store.tables import write_parquet

    manifest = copied.draw(0).manifest
    table = pq.read_table(manifest)
    column = table[key].to_pylist()
    column[0] = "target_too_small" if key == "reason" else "another" if key == "prompt" else 99
    at = table.column_names.index(key)
    write_parquet(manifest, table.set_column(at, table.schema.field(key), pa.array(column, table.schema.field(key).type)))
    problems = verify_run(copied)[1]
    assert any(line.startswith(f"draw 0: {key} of {table['sample_id'][0]} is another one") for line in problems), problems


def test_a_changed_checkpoint_is_named_before_it_scores(copied):
    from syn4seg.stages.classifiers import load_classifier

    path = copied.draw(0).checkpoint("syn4seg")
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DamagedError, match=r"syn4seg\.safetensors: its content"):
        load_classifier(path)


def test_a_run_without_seals_is_read_as_before(copied):
    for path in _sealed(copied):
        path.unlink()
    assert verify_run(copied)[1] == []
    assert json.loads(copied.results.read_text())["rows"]
