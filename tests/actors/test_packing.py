"""What fits on nodes, against placing every actor in every possible way."""

from __future__ import annotations

import itertools
import random

import pytest

from actors.packing import UNIT, fits, resource_request
from syn4seg.config.placement import PoolConfig


def every_way(needs: list[dict[str, float]], nodes: list[dict[str, float]]) -> bool:
    """The slow obvious reference: each actor on each node, and on each GPU or set of GPUs of it."""
    if not needs:
        return True
    one, *rest = needs
    for i, node in enumerate(nodes):
        if any(node.get(k, 0) < v - 1e-9 for k, v in one.items() if k != "GPU"):
            continue
        share, gpus = one.get("GPU", 0.0), node["gpus"]
        whole = [c for c in itertools.combinations(range(len(gpus)), int(share)) if all(gpus[j] == 1 for j in c)]
        choices = [()] if not share else [(j,) for j, f in enumerate(gpus) if f >= share - 1e-9] if share < 1 else whole
        for choice in choices:
            left = [f - (share if share < 1 else 1) * (j in choice) for j, f in enumerate(gpus)]
            after = {k: v - one.get(k, 0) for k, v in node.items() if k != "gpus"} | {"gpus": left}
            if every_way(rest, [*nodes[:i], after, *nodes[i + 1 :]]):
                return True
    return False


def drawn(rng: random.Random) -> tuple[list[PoolConfig], list[dict[str, float]]]:
    nodes = [
        {
            "CPU": rng.choice([1, 2, 4]),
            "GPU": rng.choice([0, 1, 1, 2]),
            "synth": rng.choice([0, 0, 1]),
            "accelerator_type:L4": rng.choice([0, 1]),
        }
        for _ in range(rng.randint(1, 2))
    ]
    pools = [
        PoolConfig(
            size=rng.randint(1, 2),
            cpus=rng.choice([0, 0.25, 0.5, 1]),
            gpus=rng.choice([0, 0.25, 0.4, 0.5, 0.6, 1, 1, 2]),
            accelerator=rng.choice([None, None, "L4"]),
            resources=rng.choice([{}, {}, {"synth": 0.5}]),
        )
        for _ in range(rng.randint(1, 3))
    ]
    return pools, nodes


@pytest.mark.parametrize("seed", range(8))
def test_exactly_what_some_placement_allows_fits(seed):
    rng, answers = random.Random(seed), []
    for _ in range(60):
        pools, nodes = drawn(rng)
        answers.append(fits([resource_request(str(i), pool, pool.size) for i, pool in enumerate(pools)], nodes))
        needs = [
            {"CPU": p.cpus, "GPU": p.gpus, **p.resources} | ({"accelerator_type:L4": 0.001} if p.accelerator else {})
            for p in pools
            for _ in range(p.size)
        ]
        assert answers[-1] == every_way(needs, [n | {"gpus": [1.0] * n["GPU"]} for n in nodes]), (pools, nodes)
    assert 5 < sum(answers) < 55


def test_a_placement_that_first_fit_misses_is_found():
    """0.5 + 0.3 + 0.2 and 0.4 + 0.4 + 0.2 fill two GPUs; by decreasing size, 0.5 + 0.4 and 0.4 + 0.3 + 0.2 leave no room."""
    shares = {0.5: 1, 0.4: 2, 0.3: 1, 0.2: 2}
    assert fits([resource_request(str(s), PoolConfig(gpus=s, cpus=0), n) for s, n in shares.items()], [{"GPU": 2.0}])


def test_shares_are_counted_in_rays_ten_thousandths():
    assert fits([resource_request("a", PoolConfig(gpus=1 / 3, cpus=0), 3)], [{"GPU": 1.0}])
    assert not fits([resource_request("a", PoolConfig(gpus=0.3334, cpus=0), 3)], [{"GPU": 1.0}])
    assert resource_request("a", PoolConfig(gpus=0.5, cpus=0, accelerator="L4"), 1).needs == {
        "GPU": UNIT // 2,
        "accelerator_type:L4": 10,
    }


def test_restricted_nodes_are_kept_for_those_that_need_them():
    nodes = [{"CPU": 8, "GPU": 1, "accelerator_type:A100": 1}, {"CPU": 8, "GPU": 1}, {"CPU": 8}]
    assert fits(
        [resource_request("any", PoolConfig(gpus=1), 1), resource_request("big", PoolConfig(gpus=1, accelerator="A100"), 1)], nodes
    )
    assert not fits(
        [resource_request("any", PoolConfig(gpus=1), 2), resource_request("big", PoolConfig(gpus=1, accelerator="A100"), 1)], nodes
    )


def test_large_clusters_are_answered_at_once():
    nodes = [{"CPU": 96, "GPU": 8}] * 64
    assert fits(
        [
            resource_request("s", PoolConfig(gpus=1), 448),
            resource_request("l", PoolConfig(gpus=0.25), 150),
            resource_request("r", PoolConfig(gpus=0.4), 50),
        ],
        nodes,
        1,
    )
    assert not fits([resource_request("s", PoolConfig(gpus=1), 500), resource_request("l", PoolConfig(gpus=0.6), 20)], nodes, 1)
