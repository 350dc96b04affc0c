"""How many actors each operator gets so that none starves: the sizes that the nodes allow and that stream fastest. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.packing import Node, count_fitting, fits, resource_request
from actors.placement import IO_CPUS
from syn4seg.config.placement import PoolConfig, TrainingConfig

SAMPLE_CALLS = 3
"""Calls of every operator that are measured before the pools are sized."""


@dataclass(frozen=True)
class PoolSizes:
    """Sizes of the pools, and what they promise: rows per second, and each operator's share of the time in which it works."""

    sizes: dict[str, int]
    rate: float
    busy: dict[str, float]
    bottleneck: str

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        shares = "/".join(f"{100 * share:.0f}" for share in self.busy.values())
        verb = "are" if self.bottleneck == "the CPUs" else "is"
        return f"{sizes}: {self.rate:.3g} rows/s expected, {self.bottleneck} {verb} the bottleneck, busy {shares} %"


def choose_sizes(
    seconds: Mapping[str, float], pools: Mapping[str, PoolConfig], nodes: Sequence[Node], training: TrainingConfig | None = None
) -> PoolSizes:
    """Return the smallest pools that reach the highest rate min_k(size_k / seconds_k) of all that fit on the nodes.

    A rate decides the sizes, ceil(rate x seconds); a higher rate never needs fewer actors. So the best rate is found by bisection
    over the rates at which some operator needs one actor more, and nothing else has to be tried.

    Operators without a GPU compute on the CPUs: together they are never planned busier than the nodes have CPUs, however small the
    share that one of their actors asks for. Each gets at least one actor, whether that fits or not: `preflight` says so.

    Args:
        seconds: by operator, in the stream's order, seconds that one actor works on one row.
        pools: by operator; `size` is ignored, `max_size` is kept.
        nodes: resources of each living node.
        training: training workers beside the stream, whose share is taken out first.
    """
    beside = [resource_request("training", training, training.workers)] if training is not None else []
    limits = {n: min(pools[n].max_size or 10**6, count_fitting(resource_request(n, pools[n], 10**6), nodes)) for n in seconds}
    on_cpus = sum(time * max(1.0, pools[name].cpus) for name, time in seconds.items() if not pools[name].gpus)
    cpus = sum(node.get("CPU", 0.0) for node in nodes) - IO_CPUS
    cpu_rate = cpus / on_cpus if on_cpus and cpus > 0 else math.inf

    def sizes_for(rate: float) -> dict[str, int]:
        return {name: max(1, math.ceil(rate * time - 1e-9)) for name, time in seconds.items()}

    def too_much(rate: float) -> bool:
        sizes = sizes_for(rate)
        requests = [resource_request(name, pools[name], size) for name, size in sizes.items()]
        return any(sizes[n] > max(1, limits[n]) for n in sizes) or not fits([*beside, *requests], nodes, IO_CPUS)

    # Numbers of actors that are worth trying; an operator that asks for nothing countable stops at a thousand.
    steps = {name: range(1, min(max(1, limit), 1000) + 1) for name, limit in limits.items()}
    rates = sorted({min(n / time, cpu_rate) for name, time in seconds.items() if time > 0 for n in steps[name]})
    feasible = bisect_right(rates, False, key=too_much)
    sizes = sizes_for(rates[feasible - 1]) if feasible else dict.fromkeys(seconds, 1)
    rate = min([sizes[name] / time for name, time in seconds.items() if time > 0] + [cpu_rate])
    busy = {name: rate * time / sizes[name] for name, time in seconds.items()} if math.isfinite(rate) else {}
    bottleneck = max(busy, key=busy.__getitem__) if busy and max(busy.values()) > 1 - 1e-6 else "the CPUs"
    return PoolSizes(sizes, rate, busy, bottleneck)


def rebalance(
    measured: Mapping[str, tuple[int, float]],
    pools: Mapping[str, PoolConfig],
    nodes: Sequence[Node],
    growth: Sequence[Node] = (),
    training: TrainingConfig | None = None,
) -> tuple[dict[str, PoolConfig], str]:
    """Return pools for the rest of the rows, and one line for the person, from what a sample of the rows took.

    Args:
        measured: by operator, in the stream's order, rows and the seconds that its actors worked on them.
        pools: the pools that were measured.
        nodes: resources of each living node.
        growth: nodes that the autoscaler may still add: pools may grow to what would be best with all of them.
        training: training workers beside the stream.
    """
    seconds = {name: spent / rows if rows else 0.0 for name, (rows, spent) in measured.items()}
    current = choose_sizes(seconds, pools, nodes, training)
    grown = choose_sizes(seconds, pools, [*nodes, *growth], training).sizes if growth else {}
    sized = dict(pools)
    for name, size in current.sizes.items():
        limit = pools[name].max_size or grown.get(name, size)
        sized[name] = pools[name].model_copy(update={"size": size, "max_size": limit if limit > size else None})
    return sized, str(current)


def sample_size(pools: Mapping[str, PoolConfig]) -> int:
    """Return how many rows to stream before sizes are chosen: some calls of every operator, in whole blocks of the first."""
    block = next(iter(pools.values())).batch
    return SAMPLE_CALLS * block * math.ceil(max(pool.batch for pool in pools.values()) / block)
