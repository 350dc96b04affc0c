"""`syn4seg cache`: what it holds is counted stage by stage, and a stage can be deleted alone."""

from __future__ import annotations

import numpy as np

from syn4seg.trials.cache import StageCache


def test_entries_are_counted_by_stage_and_one_stage_can_be_pruned_alone(tmp_path, syn4seg):
    assert "empty" in "".join(syn4seg("cache", "ls", "--cache", tmp_path)[1:])
    for stage, count in (("label", 3), ("draft", 1)):
        for key in range(count):
            StageCache(tmp_path).get(stage, key, lambda: {"x": np.zeros(4)})
    code, *told = syn4seg("cache", "ls", "--cache", tmp_path)
    rows = dict(words[:2] for line in "".join(told).splitlines() if len(words := line.replace("│", " ").split()) > 2)
    assert code == 0 and (rows["label"], rows["draft"], rows["all"]) == ("3", "1", "4")
    code, *told = syn4seg("cache", "prune", "--cache", tmp_path, "--stage", "label")
    assert code == 0 and "deleted 3 entries" in "".join(told)
    assert {use.kind: use.entries for use in StageCache(tmp_path).uses()} == {"draft": 1}


def test_pruning_without_a_bound_is_refused_and_deletes_nothing(tmp_path, syn4seg):
    StageCache(tmp_path).put("label", {"n": 1}, {"x": np.zeros(3)})
    before = sorted(p.name for p in tmp_path.rglob("*"))
    code, _, complaint = syn4seg("cache", "prune", "--cache", tmp_path)
    assert code == 2 and "--max-gib is not given" in complaint and sorted(p.name for p in tmp_path.rglob("*")) == before
    code, said, _ = syn4seg("cache", "prune", "--cache", tmp_path, "--max-gib", "0", "--dry-run")
    assert code == 0 and "would delete 1 entries" in said and sorted(p.name for p in tmp_path.rglob("*")) == before
    code, _, complaint = syn4seg("cache", "prune", "--cache", tmp_path, "--stage", "lable")
    assert code == 2 and "did you mean label?" in complaint
    assert syn4seg("cache", "prune", "--cache", tmp_path, "--max-gib", "0")[0] == 0
    assert not list(tmp_path.rglob("*.bin"))
