"""Shards: cut at their size, never mixed, never empty."""

from __future__ import annotations

import pytest

from syn4seg.exports.sharded import split_shards
from tests.shared_exports import READERS, compare, export, made_run, noise


@pytest.mark.parametrize("format", ["hf", "webdataset", "parquet"])
def test_shards_are_cut_at_their_size_and_hold_every_sample_once(tmp_path, format):
    run, config, truth = made_run(tmp_path, samples=9, side=(250, 300), reasons={})
    export(run, config, tmp_path / "out", format, shard_mb=1)
    files = sorted(p for p in (tmp_path / "out").rglob("train-*"))
    assert [p.stem for p in files] == ["train-00000", "train-00001"]
    assert all(p.stat().st_size < 1.5e6 for p in files)
    compare(READERS[format](tmp_path / "out", "train"), truth)


def test_a_shard_never_mixes_splits_and_is_never_empty():
    from syn4seg.exports.samples import ExportSample

    items = [
        ExportSample({"split": split, "sample_id": f"{split}{i}"}, noise(i, 4, 4, 3), noise(i, 4, 4))
        for split in "ab"
        for i in range(3)
    ]
    found = [
        (name, [s.row["sample_id"] for s in samples])
        for name, samples in split_shards(iter([("a", items[:3]), ("b", items[3:])]), 1)
    ]
    assert found == [(f"{split}-{i:05d}", [f"{split}{i}"]) for split in "ab" for i in range(3)]
