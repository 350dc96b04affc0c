"""Finished samples as they appear in a run, and the cache of their features."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from syn4seg.errors import DamagedError
from syn4seg.stages import arrivals
from syn4seg.stages.arrivals import Arrivals, FeatureCache


class FakeRun:
    """A run with one draw, whose finished and damaged samples a test sets."""

    def __init__(self):
        self.done: set[str] = set()
        self.damaged: set[str] = set()
        self.polls = 0
        self.samples = self

    def draw(self, number: int):
        return self

    def finished(self, ids):
        self.polls += 1
        return self.done & set(ids)

    def images(self):
        return pa.table({"sample_id": pa.chunked_array([["a", "b"]]), "image_at": pa.chunked_array([["shard-a", "shard-b"]])})

    def locations(self, number: int):
        return pa.table({"sample_id": pa.chunked_array([["b"]]), "label_at": pa.chunked_array([["label-b"]])})

    def read(self, rows):
        if broken := self.damaged & {row["sample_id"] for row in rows}:
            raise DamagedError(min(broken))
        return [(f"record of {row['sample_id']}", np.zeros(1)) for row in rows]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(arrivals, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(arrivals, "POLL_SHARE", 1e9)
    return FakeRun()


def three(run) -> Arrivals:
    return Arrivals(run, 0, pa.table({"sample_id": ["a", "b", "c"], "class": ["x"] * 3, "bank": ["hdig"] * 3}))


def names(taken) -> list[str]:
    return [row["sample_id"] for row, _, _ in taken]


def test_every_sample_is_taken_once_in_the_order_of_the_plan_with_its_places(run):
    coming = three(run)
    assert coming.take(9, final=False) == [] and coming.remaining == 3
    run.done = {"c", "a", "b"}
    first = coming.take(2, final=False)
    assert names(first) == ["a", "b"] and coming.remaining == 1
    assert [(row["image_at"], row["label_at"]) for row, _, _ in first] == [("shard-a", ""), ("shard-b", "label-b")]
    assert first[0][1] == "record of a"
    assert names(coming.take(2, final=False)) == ["c"] and coming.remaining == 0
    assert coming.take(2, final=True) == []


def test_the_run_is_not_polled_while_samples_wait_to_be_taken_or_before_the_pause_is_over(run, monkeypatch):
    coming = three(run)
    run.done = {"a", "b"}
    coming.take(1, final=False)
    coming.take(1, final=False)
    assert run.polls == 1
    monkeypatch.setattr(arrivals, "POLL_SECONDS", 3600.0)
    coming.poll()
    run.done = {"a", "b", "c"}
    assert coming.take(1, final=False) == [] and run.polls == 2
    assert names(coming.take(1, final=True)) == ["c"], "what is final is looked at now"


def test_damaged_files_are_waited_for_unless_nothing_will_mend_them(run):
    coming = three(run)
    run.done, run.damaged = {"a", "b"}, {"b"}
    assert coming.take(9, final=False) == [] and coming.remaining == 3
    run.damaged = set()
    assert sorted(names(coming.take(9, final=False))) == ["a", "b"]
    run.done, run.damaged = {"c"}, {"c"}
    with pytest.raises(DamagedError, match="c"):
        coming.take(9, final=True)


def test_features_beyond_the_limit_are_kept_in_a_folder_of_this_machine_and_are_the_same():
    cache = FeatureCache(limit=100)
    features = {str(i): torch.rand(2, 3, 4).half() for i in range(4)}
    for name, tensor in features.items():
        cache.put(name, tensor)
    assert cache.folder is not None and "0" in cache and "4" not in cache
    assert all(torch.equal(cache[name], tensor) for name, tensor in features.items())
