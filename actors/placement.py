"""Placement as data: an operator and its pool, and what fits on a cluster and what does not. Nothing here starts anything."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.packing import ACCELERATOR, UNIT, Node, ResourceRequest, count_fitting, fits, resource_request
from syn4seg.config.placement import PoolConfig, TrainingConfig
from syn4seg.errors import UserError

IO_CPUS = 1.0
"""Logical CPUs reserved for Ray's own read tasks; without a whole one the stream would wait forever."""


@dataclass(frozen=True)
class Operator:
    """A processing step of the stream: a plain class, its constructor arguments, and the pool that it runs in."""

    actor: type
    kwargs: dict[str, Any]
    pool: PoolConfig
    name: str


def check_columns(columns: Iterable[str], operators: list[Operator]) -> None:
    """Check that every operator gets the columns that it reads, and that none rewrites another's.

    `reason` alone may be filled later. What an operator `drops` is gone for those behind it.

    Raises:
        ValueError: naming the operator and the column.
    """
    available = set(columns)
    for operator in operators:
        missing = sorted(set(operator.actor.reads) - available)
        if missing:
            raise ValueError(f"stage {operator.name}: reads {', '.join(missing)}, which no stage before it adds")
        repeated = sorted(set(operator.actor.adds) & available)
        if repeated:
            raise ValueError(f"stage {operator.name}: adds {', '.join(repeated)}, which is there already; columns are append-only")
        available = (available | set(operator.actor.adds)) - set(getattr(operator.actor, "drops", ()))


@dataclass(frozen=True)
class PoolRequest:
    """A pool of the stream, or the training workers beside it: the keys that a message names, and what the pool asks for."""

    key: str
    size_key: str
    pool: PoolConfig | TrainingConfig
    resources: ResourceRequest

    def need(self, resource: str) -> float:
        """Return how much of a resource one actor needs."""
        return self.resources.needs.get(resource, 0) / UNIT


def preflight(operators: list[Operator], nodes: Sequence[Node], training: TrainingConfig | None = None) -> None:
    """Refuse a placement that could never start, with the numbers (Ray itself would wait silently).

    Every actor needs one node with all that it asks for at once; a fraction of a GPU lies on one GPU. `max_size` never counts:
    a pool grows only where there is room. Training workers have no GPU in common, because NCCL refuses that.

    Args:
        operators: of the stream, whose pools are all alive at the same time; none for training by itself.
        nodes: resources of each node, e.g. `{"CPU": 8, "GPU": 2}`: the living ones and those that an autoscaler may still start.
        training: training workers that run beside the stream.

    Raises:
        UserError: what does not fit, how much there is, and how many actors would fit.
    """
    pools = [PoolRequest(f"placement.{o.name}", "size", o.pool, resource_request(o.name, o.pool, o.pool.size)) for o in operators]
    if training is not None and training.workers:
        request = resource_request("training", training, training.workers)
        pools.append(PoolRequest("placement.training", "workers", training, request))
        if count := training.workers * training.readers:
            reader = PoolConfig(cpus=1)
            pools.append(PoolRequest("placement.training", "readers", reader, resource_request("readers", reader, count)))
    for pool in pools:
        _check_actor(pool, nodes)
    if not fits([pool.resources for pool in pools], nodes, IO_CPUS):
        raise UserError(_misfit(pools, nodes))


def _misfit(pools: list[PoolRequest], nodes: Sequence[Node]) -> str:
    """Return why pools do not fit on the nodes, and what would."""
    requests = [pool.resources for pool in pools]
    for resource in sorted({key for request in requests for key in request.needs if not key.startswith(ACCELERATOR)} | {"CPU"}):
        spare = IO_CPUS if resource == "CPU" else 0.0
        total = sum(n.get(resource, 0.0) for n in nodes)
        need = sum(pool.resources.count * pool.need(resource) for pool in pools) + spare
        if need > total + 1e-9:
            parts = ", ".join(f"{p.resources.name} {p.resources.count} x {p.need(resource):g}" for p in pools if p.need(resource))
            reserve = f" + {spare:g} for reading" if spare else ""
            return f"placement needs {need:g} {_plural(resource)} ({parts}{reserve}), the cluster has {total:g}; " + _remedy(
                pools, nodes, resource
            )
    for pool in pools:
        number = count_fitting(pool.resources, nodes)
        if number < pool.resources.count:
            return (
                f"{pool.key}.{pool.size_key}={pool.resources.count}: only {number} actors of {_binding(pool, nodes)} fit on "
                f"the nodes; lower {pool.size_key}, or what one actor needs"
            )
    parts = ", ".join(f"{r.name} {r.count} x ({_format_needs(r.needs)})" for r in requests)
    return (
        f"placement: the pools do not fit on the nodes together ({parts}; nodes: {_format_nodes(nodes)}), although their "
        "sums do: an actor lies on one node, a fraction of a GPU on one; " + _remedy(pools, nodes, "GPU")
    )


def _check_actor(request: PoolRequest, nodes: Sequence[Node]) -> None:
    """Check that a single actor of a pool has a node that it can live on."""
    pool, key = request.pool, request.key
    if pool.gpus > 1 and pool.gpus % 1:
        raise UserError(f"{key}.gpus={pool.gpus:g}: expected whole GPUs or a fraction below 1")
    if isinstance(pool, TrainingConfig) and pool.workers > 1 and pool.gpus % 1:
        raise UserError(
            f"{key}.gpus={pool.gpus:g}: expected 0 or whole GPUs with {key}.workers={pool.workers}, because "
            "workers that train together cannot share one; set it to 1, or use one worker"
        )
    if pool.accelerator and not any(ACCELERATOR + pool.accelerator in n for n in nodes):
        present = Counter(k.removeprefix(ACCELERATOR) for n in nodes for k in n if k.startswith(ACCELERATOR))
        raise UserError(
            f"{key}.accelerator={pool.accelerator}: no node has one; the nodes have {_format_counts(present)}; name one of "
            "these, leave it empty, or add such a node"
        )
    for name in pool.resources:
        if not any(n.get(name) for n in nodes):
            present = Counter(k for n in nodes for k in n if _is_custom(k))
            raise UserError(
                f"{key}.resources: no node declares `{name}`; custom resources of the nodes: {_format_counts(present)}; "
                f"start a node with --resources='{{\"{name}\": 1}}', or mend the name"
            )
    for resource, field in (("CPU", "cpus"), ("GPU", "gpus"), *((name, f"resources.{name}") for name in pool.resources)):
        largest = max((n.get(resource, 0.0) for n in nodes), default=0.0)
        if request.need(resource) > largest:
            raise UserError(
                f"{key}.{field}={request.need(resource):g}: one actor needs more {_plural(resource)} than the "
                f"largest node has ({largest:g}); lower it or add a larger node"
            )
    if request.resources.count and not count_fitting(request.resources, nodes):
        raise UserError(
            f"{key}: one actor needs {_format_needs(request.resources.needs)} of one node, and no node has all of it "
            f"(nodes: {_format_nodes(nodes)}); lower what one actor needs, or add such a node"
        )


def _remedy(pools: list[PoolRequest], nodes: Sequence[Node], resource: str) -> str:
    """Return the largest size of one pool with which all would fit: of the pool that asks for most, else the next."""
    for pool in sorted(pools, key=lambda p: -p.resources.count * p.need(resource)):
        others = [p.resources for p in pools if p is not pool]

        def too_many(count: int, others: list[ResourceRequest] = others, pool: PoolRequest = pool) -> bool:
            return not fits([*others, replace(pool.resources, count=count)], nodes, IO_CPUS)

        number = bisect_left(range(1, pool.resources.count), True, key=too_many)
        if number:
            field = {"CPU": "cpus", "GPU": "gpus"}.get(resource, f"resources.{resource}")
            return f"{pool.key}.{pool.size_key}={number} would fit, or lower {pool.key}.{field}"
    return "no size of one pool alone would fit; lower what the actors need, or add nodes"


def _binding(pool: PoolRequest, nodes: Sequence[Node]) -> str:
    """Return what keeps a pool from having more actors: the one resource if it is one, else all that an actor needs at once."""
    request = pool.resources
    for resource, amount in request.needs.items():
        only = replace(request, needs={resource: amount})
        if not resource.startswith(ACCELERATOR) and count_fitting(only, nodes) == count_fitting(request, nodes):
            return f"{pool.need(resource):g} {_plural(resource)}"
    return _format_needs(request.needs)


def _plural(resource: str) -> str:
    return resource + "s" if resource in ("CPU", "GPU") else f"`{resource}`"


def _format_needs(needs: Mapping[str, int]) -> str:
    parts = (
        key.removeprefix(ACCELERATOR) if key.startswith(ACCELERATOR) else f"{amount / UNIT:g} {key}"
        for key, amount in needs.items()
    )
    return " + ".join(parts) or "nothing"


def _format_nodes(nodes: Sequence[Node]) -> str:
    """Return the nodes by kind: `2 x (8 CPU + 1 GPU + A100)`."""
    kinds: Counter = Counter()
    for node in nodes:
        shown = {k: v for k, v in sorted(node.items()) if v and (k in ("CPU", "GPU") or k.startswith(ACCELERATOR) or _is_custom(k))}
        kinds[_format_needs({key: round(value * UNIT) for key, value in shown.items()})] += 1
    return ", ".join(f"{count} x ({kind})" for kind, count in kinds.items()) or "none"


def _is_custom(key: str) -> bool:
    """Return whether a resource is one that somebody declared, rather than one of Ray's own."""
    return key not in ("CPU", "GPU", "memory", "object_store_memory") and not key.startswith(("node:", ACCELERATOR))


def _format_counts(counts: Counter) -> str:
    return ", ".join(f"{name} ({count} nodes)" if count > 1 else name for name, count in sorted(counts.items())) or "none"
