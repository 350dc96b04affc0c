"""The stage cache: everything is made once, damage is noticed, room is made, nothing depends on an entry being there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from syn4seg.errors import UserError
from syn4seg.trials.cache import RUNS, SUFFIX, StageCache, decode, encode, key_hash

SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
KINDS = st.sampled_from([np.uint8, np.int64, np.float32, np.float16, np.float64])
ARRAYS = KINDS.flatmap(lambda kind: arrays_of.arrays(kind, SHAPES))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text("abc.1", min_size=1, max_size=6), ARRAYS, max_size=4))
def test_an_entry_is_read_as_it_was_written(made):
    found = decode(encode(made))
    assert found is not None and found.keys() == made.keys()
    for name, array in made.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed_wherever_it_is(place, change):
    data = bytearray(encode({"label": np.arange(300, dtype=np.uint8), "x": np.ones(3, np.float32)}))
    data[place % len(data)] ^= change
    assert decode(bytes(data)) is None
    assert decode(bytes(data[: place % len(data)])) is None


def made_by(counts):
    def make():
        counts.append(1)
        return {"x": np.arange(4)}

    return make


def test_an_entry_is_made_once_and_found_by_later_processes(tmp_path):
    counts: list[int] = []
    first = StageCache(tmp_path)
    for _ in range(3):
        np.testing.assert_array_equal(first.get("label", {"k": 1}, made_by(counts))["x"], np.arange(4))
    later = StageCache(tmp_path)
    later.get("label", {"k": 1}, made_by(counts))
    later.get("label", {"k": 2}, made_by(counts))
    later.get("draft", {"k": 1}, made_by(counts))
    assert len(counts) == 3
    assert first.counts["label", "memory"] == 2 and later.counts["label", "read"] == 1
    assert key_hash({"a": 1, "b": 2}) == key_hash({"b": 2, "a": 1}) != key_hash({"a": 1, "b": 3})


def test_nobody_writes_into_what_others_share(tmp_path):
    found = StageCache(tmp_path).get("label", 1, lambda: {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="read-only"):
        found["x"][0] = 1


def test_a_damaged_entry_is_made_again(tmp_path):
    counts: list[int] = []
    StageCache(tmp_path).get("label", 1, made_by(counts))
    path = StageCache(tmp_path).path("label", 1)
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    again = StageCache(tmp_path)
    np.testing.assert_array_equal(again.get("label", 1, made_by(counts))["x"], np.arange(4))
    assert len(counts) == 2 and again.counts["label", "damaged"] == 1
    StageCache(tmp_path).get("label", 1, made_by(counts))
    assert len(counts) == 2


def _ask(root, notes, start):
    start.wait(30)
    cache = StageCache(root)

    def make():
        time.sleep(0.05)
        with open(notes, "a") as file:
            file.write("made\n")
        return {"x": np.arange(4)}

    for key in range(3):
        cache.get("label", key, make)


def test_processes_that_ask_at_the_same_time_make_an_entry_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [context.Process(target=_ask, args=(tmp_path / "cache", tmp_path / "notes", start)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "notes").read_text().splitlines() == ["made"] * 3


def die_while_writing(root):
    def die(self: Path, target: object) -> Path:
        os.kill(os.getpid(), signal.SIGKILL)
        return self

    Path.replace = die
    StageCache(root).get("label", {"k": 1}, lambda: {"x": np.arange(4)})


def test_what_killed_processes_left_of_an_entry_does_not_pile_up(tmp_path):
    for _ in range(2):
        process = multiprocessing.get_context("spawn").Process(target=die_while_writing, args=(tmp_path,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert StageCache(tmp_path).find("label", {"k": 1}) is None
        assert len(list((tmp_path / "label").iterdir())) == 1
    counts: list[int] = []
    StageCache(tmp_path).get("label", {"k": 1}, made_by(counts))
    assert len(counts) == 1
    assert [path.suffix for path in (tmp_path / "label").iterdir()] == [SUFFIX]


def test_the_least_recently_used_entries_make_room_and_runs_go_last(tmp_path):
    cache = StageCache(tmp_path, memory=0)
    for key in range(6):
        cache.get("label", key, lambda: {"x": np.random.default_rng(0).integers(0, 255, 4000, dtype=np.uint8)})
        os.utime(cache.path("label", key), (1000 + key, 1000 + key))
    run = tmp_path / RUNS / "abc"
    run.mkdir(parents=True)
    (run / "image.png").write_bytes(bytes(4000))
    os.utime(run, (1, 1))
    cache.get("label", 0, lambda: {})  # now the youngest
    size = cache.path("label", 1).stat().st_size
    cache.prune(4 * size + 4000)
    there = [key for key in range(6) if cache.path("label", key).exists()]
    assert 0 in there and there[1:] == sorted(there[1:]) and 1 not in there and 5 in there and run.is_dir()
    assert {use.kind: use.entries for use in cache.uses()} == {"label": len(there), RUNS: 1}
    gone, _ = cache.prune(0)
    assert gone == len(there) + 1 and not run.exists() and cache.uses() == []


def test_a_run_that_is_being_made_is_not_deleted(tmp_path):
    cache = StageCache(tmp_path)
    run = tmp_path / RUNS / "abc"
    run.mkdir(parents=True)
    (run / "image.png").write_bytes(bytes(100))
    with cache.lock(run):
        assert StageCache(tmp_path).prune(0) == (0, 0) and run.is_dir()


def test_the_bound_holds_while_entries_are_written(tmp_path):
    limit = 200_000
    cache = StageCache(tmp_path, limit=limit, memory=0)
    for key in range(40):
        noise = np.random.default_rng(key).integers(0, 255, 20_000, dtype=np.uint8)
        cache.get("label", key, lambda noise=noise: {"x": noise})
        assert sum(path.stat().st_size for path in (tmp_path / "label").glob(f"*{SUFFIX}")) <= 1.2 * limit


def test_memory_is_bounded_too(tmp_path):
    cache = StageCache(tmp_path, memory=10_000)
    for key in range(20):
        cache.get("label", key, lambda: {"x": np.zeros(1000, np.uint8)})
        assert sum(a.nbytes for entry in cache.recent.values() for a in entry.values()) == cache.used <= 10_000
    cache.get("label", 0, lambda: {"x": np.zeros(1)})
    assert cache.counts["label", "read"] == 1


def test_a_url_is_no_place_for_a_cache():
    with pytest.raises(UserError, match="folder of this machine or a network mount"):
        StageCache("s3://bucket/cache")
