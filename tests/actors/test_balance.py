"""The sizes of pools: as fast as the best of all sizes that fit, and as fast as promised when simulated."""

from __future__ import annotations

import heapq
import itertools
import random
import re
import shutil

import pytest

from actors.balance import choose_sizes, rebalance, sample_size
from actors.packing import count_fitting, fits, resource_request
from actors.placement import IO_CPUS, Operator, preflight
from syn4seg.config.placement import PoolConfig, TrainingConfig


def best_of_all(seconds, pools, nodes) -> float:
    """The slow obvious reference: the highest rate over every combination of sizes that fits."""
    most = [count_fitting(resource_request(name, pools[name], 40), nodes) for name in seconds]
    on_cpus = sum(s * max(1, pools[k].cpus) for k, s in seconds.items() if not pools[k].gpus)
    bound = (sum(n["CPU"] for n in nodes) - IO_CPUS) / on_cpus if on_cpus else float("inf")
    best = 0.0
    for sizes in itertools.product(*(range(1, m + 1) for m in most)):
        rate = min(bound, *(n / seconds[name] for n, name in zip(sizes, seconds, strict=True)))
        if rate > best and fits(
            [resource_request(name, pools[name], n) for n, name in zip(sizes, seconds, strict=True)], nodes, IO_CPUS
        ):
            best = rate
    return best


def simulated(sizes: dict[str, int], seconds: dict[str, float], rows: int) -> float:
    """Rows per second of the second half: each stage's free actor takes the next row that the stage before has finished."""
    done = [0.0] * rows
    for name, each in seconds.items():
        free_at, ready, done = [0.0] * sizes[name], sorted(done), []
        for at in ready:
            done.append(max(heapq.heappop(free_at), at) + each)
            heapq.heappush(free_at, done[-1])
    return (rows - rows // 2) / (max(done) - sorted(done)[rows // 2 - 1])


def drawn(rng: random.Random):
    nodes = [
        {"CPU": rng.choice([4.0, 8.0]), "GPU": float(rng.randint(0, 4)), "accelerator_type:L4": float(rng.random() < 0.3)}
        for _ in range(rng.randint(1, 3))
    ]
    nodes[0]["GPU"] = float(rng.randint(2, 5))
    pools = {
        name: PoolConfig(cpus=rng.choice([0, 0.25, 1]), gpus=rng.choice(shares))
        for name, shares in {"synthesis": [0.5, 1, 1, 2], "labeling": [0, 0.25, 0.4, 1], "refinement": [0, 0.3, 0.5, 1]}.items()
    }
    return {name: rng.uniform(0.05, 1) * (4 if name == "synthesis" else 1) for name in pools}, pools, nodes


@pytest.mark.parametrize("seed", range(6))
def test_no_sizes_that_fit_stream_faster(seed):
    rng, tried = random.Random(seed), 0
    while tried < 25:
        seconds, pools, nodes = drawn(rng)
        if not fits([resource_request(name, pool, 1) for name, pool in pools.items()], nodes, IO_CPUS):
            continue
        tried += 1
        found = choose_sizes(seconds, pools, nodes)
        preflight([Operator(object, {}, pools[n].model_copy(update={"size": k}), n) for n, k in found.sizes.items()], nodes)
        assert found.rate == pytest.approx(best_of_all(seconds, pools, nodes)), (seconds, pools, nodes)
        assert max(found.busy.values()) <= 1 + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_the_promised_rate_and_busy_shares_are_those_of_a_simulation(seed):
    rng = random.Random(seed)
    seconds, pools, nodes = drawn(rng)
    pools = {name: pool.model_copy(update={"cpus": 0.0}) for name, pool in pools.items()}
    found = choose_sizes(seconds, pools, [node | {"CPU": 99.0, "GPU": 4.0} for node in nodes])
    assert simulated(found.sizes, seconds, 2000) == pytest.approx(found.rate, rel=0.02)
    for name, each in seconds.items():
        assert found.busy[name] == pytest.approx(found.rate * each / found.sizes[name])


def test_separate_pools_share_gpus_by_what_the_stages_take():
    pools = {"synthesis": PoolConfig(gpus=1), "labeling": PoolConfig(gpus=1), "refinement": PoolConfig(gpus=1)}
    found = choose_sizes({"synthesis": 3.0, "labeling": 0.5, "refinement": 0.4}, pools, [{"CPU": 16.0, "GPU": 8.0}])
    assert found.sizes == {"synthesis": 6, "labeling": 1, "refinement": 1}
    assert str(found) == "synthesis 6, labeling 1, refinement 1: 2 rows/s expected, synthesis is the bottleneck, busy 100/100/80 %"


def test_colocated_pools_share_single_gpus():
    pools = {"synthesis": PoolConfig(gpus=0.6), "labeling": PoolConfig(gpus=0.2), "refinement": PoolConfig(gpus=0.2)}
    found = choose_sizes({"synthesis": 2.0, "labeling": 0.5, "refinement": 0.5}, pools, [{"CPU": 16.0, "GPU": 4.0}])
    assert found.sizes == {"synthesis": 4, "labeling": 1, "refinement": 1}


def test_stages_on_cpus_are_not_planned_busier_than_there_are_cpus():
    pools = dict.fromkeys(("synthesis", "labeling", "writing"), PoolConfig())
    found = choose_sizes({"synthesis": 0.03, "labeling": 0.02, "writing": 0.01}, pools, [{"CPU": 4.0}])
    assert sum(found.sizes.values()) <= 5
    assert found.rate == pytest.approx(50)


def test_the_largest_size_given_is_kept_and_training_has_its_share_first():
    pools, nodes = {"synthesis": PoolConfig(gpus=1, max_size=3), "labeling": PoolConfig(gpus=1)}, [{"CPU": 16.0, "GPU": 8.0}]
    times = {"synthesis": 1.0, "labeling": 0.1}
    assert choose_sizes(times, pools, nodes).sizes == {"synthesis": 3, "labeling": 1}
    free = {"synthesis": PoolConfig(gpus=1), "labeling": PoolConfig(gpus=1)}
    assert choose_sizes(times, free, nodes, TrainingConfig(workers=2, gpus=1)).sizes == {"synthesis": 5, "labeling": 1}


def test_measured_rows_give_pools_and_a_sentence():
    pools = {"synthesis": PoolConfig(gpus=1, batch=8), "labeling": PoolConfig(gpus=0.5, batch=16), "writing": PoolConfig()}
    sized, line = rebalance(
        {"synthesis": (48, 48.0), "labeling": (48, 12.0), "writing": (0, 0.0)}, pools, [{"CPU": 9.0, "GPU": 4.0}]
    )
    assert {name: pool.size for name, pool in sized.items()} == {"synthesis": 3, "labeling": 1, "writing": 1}
    assert sized["labeling"].batch == 16 and sized["synthesis"].max_size is None
    assert line.startswith("synthesis 3, labeling 1, writing 1: 3 rows/s expected, synthesis is")
    grown, _ = rebalance(
        {"synthesis": (48, 48.0), "labeling": (48, 12.0)}, pools, [{"CPU": 9.0, "GPU": 4.0}], growth=[{"CPU": 9.0, "GPU": 4.0}]
    )
    assert (grown["synthesis"].size, grown["synthesis"].max_size) == (3, 7)
    assert sample_size(pools) == 48


def test_five_hundred_gpus_are_shared_out_in_a_moment():
    pools = {
        "synthesis": PoolConfig(gpus=1),
        "labeling": PoolConfig(gpus=0.25),
        "refinement": PoolConfig(gpus=0.5),
        "writing": PoolConfig(),
    }
    found = choose_sizes(
        {"synthesis": 4.0, "labeling": 0.2, "refinement": 0.35, "writing": 0.02}, pools, [{"CPU": 96.0, "GPU": 8.0}] * 64
    )
    assert sum(found.sizes[name] * pools[name].gpus for name in pools) > 508
    assert found.busy["synthesis"] > 0.99


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_sizes_chosen_while_streaming_change_no_byte(fresh, small, tmp_path):
    from actors.graph import stream
    from syn4seg.config.loading import load
    from syn4seg.stages.results import verify_run, write_manifest
    from syn4seg.store.rundir import RunDir

    run, names = fresh
    shutil.copytree(run.root, tmp_path / "inline")
    inline, told = RunDir(tmp_path / "inline"), []
    auto = ["placement.runner=ray", "placement=auto", *(f"placement.{p}.batch=5" for p in ("synthesis", "labeling", "refinement"))]
    assert stream(load(None, [*small, *auto]), run, names, 0, lambda *_: None, told.append) == stream(
        load(None, small), inline, names, 0, lambda *_: None
    )
    digests = []
    for each in (run, inline):
        write_manifest(each, 0)
        digests.append(verify_run(each))
    assert digests[0] == digests[1] and digests[0][1] == []
    sized = re.search(r"sizes=auto: synthesis \d+, labeling \d+, refinement \d+, writing \d+: .* rows/s expected", "\n".join(told))
    assert sized, told
