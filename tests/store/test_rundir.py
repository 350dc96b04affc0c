"""The run directory: atomic files, refusals, reuse, digests."""

from __future__ import annotations

import errno
import json
import os
import re
import time

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.errors import DamagedError, StoreError, UserError
from syn4seg.seeds import noise_seed
from syn4seg.stages.plan import make_plan
from syn4seg.stages.reuse import reuse
from syn4seg.store import files
from syn4seg.store.files import exists, remove, write_atomically, write_json
from syn4seg.store.images import pixel_digest, read_image, write_image
from syn4seg.store.rundir import RunDir, open_run, run_digest


def test_images_and_labels_come_back_pixel_for_pixel(tmp_path):
    rng = np.random.default_rng(0)
    for shape in ((5, 7, 3), (9, 4)):
        pixels = rng.integers(0, 256, shape).astype(np.uint8)
        write_image(tmp_path / "a" / "x.png", pixels)
        assert np.array_equal(read_image(tmp_path / "a" / "x.png"), pixels)


def test_a_place_without_config_is_no_run(tmp_path):
    RunDir(tmp_path / "run").open(load(None))
    assert open_run(str(tmp_path / "run")).root == tmp_path / "run"
    for place in (str(tmp_path), str(tmp_path / "none"), "memory://nowhere/run"):
        with pytest.raises(UserError, match=r"^" + re.escape(place) + r": not a run \(no config.yaml\); give the directory"):
            open_run(place)


@pytest.mark.parametrize("text", [b"a: [", b"\xff", b"- 1", b"bogus: 1", b"name: [1]", b""])
def test_a_config_of_a_run_that_is_damaged_or_of_another_version_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(DamagedError, match=r"config\.yaml: damaged, or of another version"):
        RunDir(tmp_path).stored()


def test_a_failed_write_leaves_the_old_file_and_no_partial(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"x\.json: cannot be written \(No space left on device; [\d,.]+ MiB free\).*goes on"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_json_has_null_for_nan_and_plain_numbers(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": np.int64(3), "c": np.array([1.5, np.nan]), "d": np.bool_(True)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": 3, "c": [1.5, None], "d": True}


def test_every_line_has_its_time(tmp_path):
    run, before = RunDir(tmp_path), time.time()
    run.log(stage="x", values={"b": float("nan")})
    line = json.loads(run.metrics.read_text())
    assert before - 1e-3 <= line.pop("time") <= time.time() + 1e-3
    assert line == {"stage": "x", "values": {"b": None}}


def test_a_damaged_image_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "x.png"
    for data in (b"", b"\x89PNG not really"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"x\.png: missing or damaged"):
            read_image(path)


def test_noise_seeds_depend_on_seed_and_id_alone_and_differ():
    seeds = [noise_seed(s, f"hdig-star-{i:05d}") for s in (0, 1) for i in range(500)]
    assert len(set(seeds)) == 1000
    assert all(0 <= s < 2**62 for s in seeds)
    assert noise_seed(0, "hdig-star-00000") == seeds[0]


def test_pixel_digest_sees_shape_and_every_pixel():
    a = np.zeros((4, 6), np.uint8)
    b = a.copy()
    b[3, 5] = 1
    assert len({pixel_digest(a), pixel_digest(b), pixel_digest(a.T), pixel_digest(a.reshape(2, 12))}) == 4
    assert pixel_digest(np.asfortranarray(b)) == pixel_digest(b)


def test_the_run_digest_ignores_order_and_sees_every_field():
    rows = [("a", "1", "2"), ("b", "3", "")]
    assert run_digest(rows) == run_digest(rows[::-1])
    assert run_digest(rows) != run_digest([("a", "1", "2"), ("b", "", "3")])


def test_another_science_is_refused_with_the_difference_and_placement_is_not(tmp_path):
    run = RunDir(tmp_path / "r")
    run.open(Config())
    run.open(load(None, ["placement.runner=inline"]))
    before = run.config.read_bytes()
    with pytest.raises(UserError, match=r"labeling\.beta: 0\.5 -> 0\.25"):
        run.open(load(None, ["labeling.beta=0.25"]))
    assert run.config.read_bytes() == before


def test_a_folder_that_is_not_a_run_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and not a run"):
        RunDir(tmp_path).open(Config())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_reuse_takes_exactly_the_stages_that_fit(tmp_path):
    old = RunDir(tmp_path / "old")
    old.open(Config())
    for path in (old.prompts, old.embeddings, old.plan, old.base, old.image("star", "a")):
        write_atomically(path, b"x")
    for override, taken in (
        ("refinement.band_width=7", ["prompts", "images", "base"]),
        ("synthesis.steps=3", ["prompts", "base"]),
        ("base.epochs=2", ["prompts", "images"]),
        ("seed=4", []),
    ):
        config = load(None, [override])
        new = RunDir(tmp_path / override)
        new.open(config)
        assert reuse(old, new, config) == taken
        there = {"prompts": new.plan, "images": new.image("star", "a"), "base": new.base}
        assert [s for s, path in there.items() if path.exists()] == taken
    with pytest.raises(UserError, match="not a run"):
        reuse(RunDir(tmp_path), new, config)


@pytest.mark.parametrize("place", ["sftp://host/run", "hdfs://host/run", "smb://host/run", "simplecache::s3://b/run", "x://y"])
def test_a_place_that_writes_files_in_place_is_refused(place):
    with pytest.raises(UserError, match=r"is not supported.*expected a folder"):
        RunDir(place)


@pytest.mark.parametrize(
    "place",
    [
        "s3://me:hunter2@bucket/run",
        "s3://me:hun/ter2@bucket/run",
        "gs://hunter2@bucket/run",
        "sftp://me:hunter2@host/run",
        "file://me:hunter2@host/run",
    ],
)
def test_a_password_in_the_place_of_a_run_is_refused_and_not_repeated(place):
    with pytest.raises(UserError, match="user name or password") as refused:
        RunDir(place)
    assert "ter2" not in str(refused.value)


def test_names_with_at_signs_below_a_bucket_are_no_passwords():
    assert RunDir("memory://bucket/me@home:1/run").root.name == "run"


def test_what_a_store_says_is_one_sentence_whatever_is_asked_of_it(monkeypatch):
    run = RunDir("memory://broken/run")

    class ClientError(Exception):  # as botocore's, which is no OSError
        pass

    def no(*_, **__):
        raise ClientError("the key has expired")

    for name in ("info", "isfile", "isdir", "exists", "ls", "rm_file", "rm", "find", "cat_file", "pipe_file", "open"):
        monkeypatch.setattr(type(run.root.fs), name, no)
    for ask in (
        run.stored,
        run.has_images,
        run.draws,
        run.quarantined_ids,
        lambda: run.log(a=1),
        lambda: exists(run.plan),
        lambda: remove(run.plan),
        lambda: run.check_inputs({}),
        lambda: make_plan(Config(), run, *[None] * 4),
    ):
        with pytest.raises(StoreError, match=r"the key has expired.*the connection"):
            ask()


class Stalling:
    """A read that finds its file stale a few times, as NFS says of one that was replaced."""

    def __init__(self, read, times):
        self.read, self.left = read, times

    def __call__(self, *given, **named):
        if self.left:
            self.left -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self.read(*given, **named)


def test_a_file_that_went_stale_is_looked_up_again_and_in_the_end_said_to_be_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAITS", (0, 0, 0))
    path = tmp_path / "x.json"
    write_json(path, 7)
    for times in (1, 3):
        stalling = Stalling(lambda: b"7", times)
        monkeypatch.setattr(type(path), "read_bytes", lambda _, read=stalling: read())
        assert files.read_json(path) == 7
    stalling = Stalling(lambda: b"7", 9)
    monkeypatch.setattr(type(path), "read_bytes", lambda _, read=stalling: read())
    with pytest.raises(StoreError, match=r"x\.json: cannot be read \(Stale"):
        files.read_json(path)
