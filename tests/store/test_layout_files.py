"""Samples as files: what a strange record costs. What both layouts promise is tested in test_layout_sharded.py."""

from __future__ import annotations

import json

import pytest

from syn4seg.store.layout_files import FileSamples

SOUND = {"sample_id": "a", "class": "star", "reason": "", "class_id": 1, "prompt": "a star", "noise_seed": 1, "batch": 0}


@pytest.mark.parametrize("key, value", [("prompt", "\ud800"), ("class_id", 2**70), ("noise_seed", 2**64), ("batch", "x")])
def test_a_record_with_a_value_that_no_column_holds_costs_itself_alone(tmp_path, key, value):
    samples = FileSamples(tmp_path)
    for sample_id, extra in (("a", {}), ("b", {key: value})):
        path = samples.record(0, "star", sample_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(SOUND | {"sample_id": sample_id} | extra))
    assert samples.records(0)["sample_id"].to_pylist() == ["a"]
