"""Placement as data: what fits, what does not, and what the error says; columns are append-only."""

from __future__ import annotations

import pytest

from actors.graph import operator_pools, operators, unfinished_rows
from actors.placement import Operator, check_columns, preflight
from syn4seg.config.loading import load
from syn4seg.config.placement import PoolConfig, TrainingConfig
from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.schema import PLAN
from syn4seg.store.rundir import RunDir


class Reads:
    reads = ("a",)
    adds = ("b",)


class Again:
    reads = ("b",)
    adds = ("a",)


def stage(name: str, **pool) -> Operator:
    return Operator(Reads, {}, PoolConfig(**pool), name)


def test_a_placement_that_fits_is_accepted():
    preflight([stage("synthesis", size=2, cpus=0.5), stage("labeling", cpus=1)], [{"CPU": 3.0}])
    preflight([stage("synthesis", size=4, cpus=0, gpus=0.5)], [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}])


def test_too_many_cpus_are_refused_with_the_numbers_and_what_would_fit():
    with pytest.raises(UserError, match=r"needs 6 CPUs .*\+ 1 for reading.*has 4; placement\.synthesis\.size=3 would fit"):
        preflight([stage("synthesis", size=5, cpus=1)], [{"CPU": 4.0}])


def test_one_cpu_is_always_left_for_reading():
    with pytest.raises(UserError, match=r"needs 2\.5 CPUs"):
        preflight([stage("synthesis", cpus=1.0), stage("labeling", cpus=0.5)], [{"CPU": 2.0}])


def test_too_many_gpus_and_actors_larger_than_any_node_are_refused():
    with pytest.raises(UserError, match="needs 3 GPUs"):
        preflight([stage("synthesis", size=3, cpus=0, gpus=1)], [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}])
    with pytest.raises(UserError, match=r"placement\.refinement\.gpus=2: one actor needs more GPUs"):
        preflight([stage("refinement", cpus=0, gpus=2)], [{"CPU": 9.0, "GPU": 1.0}, {"CPU": 9.0, "GPU": 1.0}])
    with pytest.raises(UserError, match="largest node has"):
        preflight([stage("refinement", cpus=0, gpus=1)], [{"CPU": 9.0}])


def test_columns_are_checked_before_anything_loads():
    check_columns(["a"], [Operator(Reads, {}, PoolConfig(), "one")])
    with pytest.raises(ValueError, match="stage one: reads a, which no stage"):
        check_columns(["x"], [Operator(Reads, {}, PoolConfig(), "one")])
    with pytest.raises(ValueError, match="stage two: adds a, which is there already"):
        check_columns(["a"], [Operator(Reads, {}, PoolConfig(), "one"), Operator(Again, {}, PoolConfig(), "two")])


def test_the_real_streams_fit_together(tmp_path):
    config, names = Config(), ("background", "x")
    for draw in (None, 0):
        check_columns([*PLAN, "bank"], operators(config, RunDir(tmp_path), names, draw))
    imported = load(None, ["synthesis.source=folder", f"synthesis.root={tmp_path}"])
    check_columns([*PLAN, "bank"], operators(imported, RunDir(tmp_path), names, 0))


def test_generator_calls_take_whole_planned_batches():
    for asked, planned, got in ((1, 8, 8), (8, 8, 8), (9, 8, 16), (16, 5, 20)):
        config = load(None, [f"placement.synthesis.batch={asked}", f"synthesis.batch={planned}"])
        assert operator_pools(config)["synthesis"].batch == got


def test_unfinished_samples_bring_their_whole_batch_and_padding_is_never_todo():
    import pyarrow as pa

    plan = pa.table({"sample_id": ["a", "b", "c", "d", "e", "e"], "batch": [0, 0, 1, 1, 2, 2], "padding": [False] * 5 + [True]})
    rows = unfinished_rows(plan, {"a", "b", "c"})
    assert rows["sample_id"].to_pylist() == ["c", "d", "e", "e"]
    assert rows["todo"].to_pylist() == [False, True, True, False]
    assert unfinished_rows(plan, set("abcde")).num_rows == 0


def test_fractions_that_no_gpu_can_hold_are_refused():
    with pytest.raises(UserError, match=r"only 2 actors of 0\.6 GPUs fit"):
        preflight([stage("labeling", size=3, cpus=0, gpus=0.6)], [{"CPU": 4.0, "GPU": 2.0}])
    with pytest.raises(UserError, match="whole GPUs or a fraction"):
        preflight([stage("labeling", cpus=0, gpus=1.5)], [{"CPU": 4.0, "GPU": 2.0}])
    with pytest.raises(UserError, match=r"only 2 actors of 2\.5 CPUs fit"):
        preflight([stage("labeling", size=3, cpus=2.5)], [{"CPU": 4.5}, {"CPU": 4.5}])


def test_one_key_of_a_pool_changes_no_other():
    assert load(None, ["placement.synthesis.size=2"]).placement.synthesis == PoolConfig(size=2)
    assert Config().placement.labeling == PoolConfig()


LARGE, SMALL = ({"CPU": 16.0, "GPU": 8.0, "accelerator_type:A100": 1.0}, {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0})


def test_an_accelerator_or_resource_that_no_node_has_is_refused_with_what_there_is():
    with pytest.raises(UserError, match=r"synthesis\.accelerator=H100: no node has one; the nodes have A100, L4 \(2 nodes\)"):
        preflight([stage("synthesis", gpus=1, accelerator="H100")], [LARGE, SMALL, SMALL])
    with pytest.raises(UserError, match=r"no node declares `synth`; custom resources of the nodes: disk; start a node with"):
        preflight([stage("synthesis", resources={"synth": 1})], [{"CPU": 4.0, "disk": 1.0, "node:10.0.0.1": 1.0, "memory": 9.0}])


def test_an_actor_needs_all_of_its_resources_on_one_node():
    preflight([stage("synthesis", cpus=1, gpus=2, accelerator="A100")], [LARGE, SMALL])
    with pytest.raises(UserError, match=r"2 GPU \+ L4 of one node, and no node has all of it .*1 x \(16 CPU \+ 8 GPU \+ A100\)"):
        preflight([stage("synthesis", cpus=1, gpus=2, accelerator="L4")], [LARGE, SMALL])
    with pytest.raises(UserError, match=r"one actor needs 12 CPU \+ 1 GPU of one node"):
        preflight([stage("synthesis", cpus=12, gpus=1)], [{"CPU": 16.0}, {"CPU": 8.0, "GPU": 8.0}])


def test_too_many_actors_on_the_nodes_that_have_the_accelerator_are_refused():
    with pytest.raises(UserError, match=r"size=3: only 2 actors of 0.25 CPU \+ 1 GPU \+ L4 fit on the nodes"):
        preflight([stage("synthesis", size=3, gpus=1, accelerator="L4")], [LARGE, SMALL, SMALL])
    with pytest.raises(
        UserError, match=r"needs 3 `synth` .*has 2; placement\.labeling\.size=2 would fit, or lower .*resources\.synth"
    ):
        preflight(
            [stage("labeling", size=3, cpus=0, resources={"synth": 1})], [{"CPU": 8.0, "synth": 1.0}, {"CPU": 1.0, "synth": 1.0}]
        )


def test_pools_whose_sums_fit_but_not_the_nodes_are_refused_with_a_size_that_fits():
    nodes = [{"CPU": 2.0, "GPU": 2.0}] * 2
    whole = stage("synthesis", size=2, cpus=0, gpus=1)
    preflight([whole, stage("labeling", size=2, cpus=0, gpus=0.6), stage("refinement", size=2, cpus=0, gpus=0.4)], nodes)
    with pytest.raises(UserError, match=r"do not fit on the nodes together .*3 x \(0\.6 GPU\).*synthesis\.size=1 would fit"):
        preflight([whole, stage("labeling", size=3, cpus=0, gpus=0.6)], nodes)


def test_training_beside_the_stream_counts_as_a_pool():
    stages_, nodes = [stage("synthesis", size=2, cpus=0.25, gpus=1)], [{"CPU": 8.0, "GPU": 3.0}]
    preflight(stages_, nodes, TrainingConfig(workers=1, gpus=1))
    preflight(stages_, nodes, TrainingConfig(workers=0, gpus=2))
    with pytest.raises(
        UserError, match=r"needs 4 GPUs \(synthesis 2 x 1, training 2 x 1\), the cluster has 3; placement\.\w+\.\w+=1 would"
    ):
        preflight(stages_, nodes, TrainingConfig(workers=2, gpus=1))
    with pytest.raises(UserError, match=r"placement\.training\.gpus=4: one actor needs more GPUs"):
        preflight(stages_, nodes, TrainingConfig(workers=1, gpus=4))


def test_what_a_pool_may_grow_to_later_is_not_asked_for_now():
    preflight([stage("synthesis", size=2, gpus=1, max_size=40)], [{"CPU": 4.0, "GPU": 2.0}])
    with pytest.raises(UserError, match=r"needs 2 GPUs .*the cluster has 1;"):
        preflight([stage("synthesis", size=2, gpus=1, max_size=40)], [{"CPU": 4.0, "GPU": 1.0}])
