"""Placement as data: what fits, what does not, and what the error says; columns are append-only."""

from __future__ import annotations

import pytest

from actors.graph import pools, stages, todo
from actors.placement import Stage, check_columns, preflight
from syn4seg.config import Config, load
from syn4seg.rundir import RunDir
from syn4seg.schema import PLAN
from syn4seg.sections import Pool


class Reads:
    reads = ("a",)
    adds = ("b",)


class Again:
    reads = ("b",)
    adds = ("a",)


def stage(name: str, **pool) -> Stage:
    return Stage(Reads, {}, Pool(**pool), name)


def test_a_placement_that_fits_is_accepted():
    preflight([stage("synthesis", size=2, cpus=0.5), stage("labeling", cpus=1)], [{"CPU": 3.0}])
    preflight([stage("synthesis", size=4, cpus=0, gpus=0.5)], [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}])


def test_too_many_cpus_are_refused_with_the_numbers_and_what_would_fit():
    with pytest.raises(
        ValueError, match=r"needs 6 CPUs .*\+ 1 for reading.*has 4; placement\.synthesis\.size=3 would fit"
    ):
        preflight([stage("synthesis", size=5, cpus=1)], [{"CPU": 4.0}])


def test_one_cpu_is_always_left_for_reading():
    with pytest.raises(ValueError, match=r"needs 2\.5 CPUs"):
        preflight([stage("synthesis", cpus=1.0), stage("labeling", cpus=0.5)], [{"CPU": 2.0}])


def test_too_many_gpus_and_actors_larger_than_any_node_are_refused():
    with pytest.raises(ValueError, match="needs 3 GPUs"):
        preflight([stage("synthesis", size=3, cpus=0, gpus=1)], [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}])
    with pytest.raises(ValueError, match=r"placement\.refinement\.gpus=2: one actor needs more GPUs"):
        preflight([stage("refinement", cpus=0, gpus=2)], [{"CPU": 9.0, "GPU": 1.0}, {"CPU": 9.0, "GPU": 1.0}])
    with pytest.raises(ValueError, match="largest node has"):
        preflight([stage("refinement", cpus=0, gpus=1)], [{"CPU": 9.0}])


def test_columns_are_checked_before_anything_loads():
    check_columns(["a"], [Stage(Reads, {}, Pool(), "one")])
    with pytest.raises(ValueError, match="stage one: reads a, which no stage"):
        check_columns(["x"], [Stage(Reads, {}, Pool(), "one")])
    with pytest.raises(ValueError, match="stage two: adds a, which is there already"):
        check_columns(["a"], [Stage(Reads, {}, Pool(), "one"), Stage(Again, {}, Pool(), "two")])


def test_the_real_streams_fit_together(tmp_path):
    config, names = Config(), ("background", "x")
    for draw in (None, 0):
        check_columns([*PLAN, "bank"], stages(config, RunDir(tmp_path), names, draw))
    imported = load(None, ["synthesis.source=folder", f"synthesis.root={tmp_path}"])
    check_columns([*PLAN, "bank"], stages(imported, RunDir(tmp_path), names, 0))


def test_generator_calls_take_whole_planned_batches():
    for asked, planned, got in ((1, 8, 8), (8, 8, 8), (9, 8, 16), (16, 5, 20)):
        config = load(None, [f"placement.synthesis.batch={asked}", f"synthesis.batch={planned}"])
        assert pools(config)["synthesis"].batch == got


def test_unfinished_samples_bring_their_whole_batch_and_padding_is_never_todo():
    import pyarrow as pa

    plan = pa.table({"sample_id": ["a", "b", "c", "d", "e", "e"], "batch": [0, 0, 1, 1, 2, 2],
                     "padding": [False] * 5 + [True]})  # fmt: skip
    rows = todo(plan, {"a", "b", "c"})
    assert rows["sample_id"].to_pylist() == ["c", "d", "e", "e"]
    assert rows["todo"].to_pylist() == [False, True, True, False]
    assert todo(plan, set("abcde")).num_rows == 0


def test_fractions_that_no_gpu_can_hold_are_refused():
    with pytest.raises(ValueError, match=r"only 2 actors of 0\.6 GPUs fit"):
        preflight([stage("labeling", size=3, cpus=0, gpus=0.6)], [{"CPU": 4.0, "GPU": 2.0}])
    with pytest.raises(ValueError, match="whole GPUs or a fraction"):
        preflight([stage("labeling", cpus=0, gpus=1.5)], [{"CPU": 4.0, "GPU": 2.0}])
    with pytest.raises(ValueError, match=r"only 2 actors of 2\.5 CPUs fit"):
        preflight([stage("labeling", size=3, cpus=2.5)], [{"CPU": 4.5}, {"CPU": 4.5}])


def test_one_key_of_a_pool_changes_no_other():
    assert load(None, ["placement.synthesis.size=2"]).placement.synthesis == Pool(size=2)
    assert Config().placement.labeling == Pool()
