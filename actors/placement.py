"""Placement as data: a stage and its pool, and what fits on a cluster and what does not. Nothing here starts anything."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.packing import ACCELERATOR, UNIT, Node, ResourceRequest, count_fitting, fits, resource_request
from syn4seg.config.sections import PoolConfig, TrainingConfig
from syn4seg.errors import UserError

IO_CPUS = 1.0
"""Logical CPUs left for Ray's own read tasks; without a whole one the stream would wait forever."""


@dataclass(frozen=True)
class Operator:
    """One step of the stream: a plain class, its constructor arguments, and the pool it runs in."""

    actor: type
    kwargs: dict[str, Any]
    pool: PoolConfig
    name: str


def check_columns(columns: Iterable[str], stages: list[Operator]) -> None:
    """Every stage finds the columns that it reads, and none rewrites another's (`reason` alone may be filled later).

    What a stage `drops` is there no more for those behind it.

    Raises:
        UserError: naming the stage and the column.
    """
    have = set(columns)
    for stage in stages:
        lacking = sorted(set(stage.actor.reads) - have)
        if lacking:
            raise UserError(f"stage {stage.name}: reads {', '.join(lacking)}, which no stage before it adds")
        again = sorted(set(stage.actor.adds) & have)
        if again:
            raise UserError(f"stage {stage.name}: adds {', '.join(again)}, which is there already; columns are append-only")
        have = (have | set(stage.actor.adds)) - set(getattr(stage.actor, "drops", ()))


@dataclass(frozen=True)
class _Want:
    """A pool of the stream, or the training workers beside it: the keys that a message names, and what is asked for."""

    key: str
    count: str
    pool: PoolConfig | TrainingConfig
    ask: ResourceRequest


def _wants(stages: list[Operator], training: TrainingConfig | None = None) -> list[_Want]:
    """What is alive at the same time: every pool at its `size`, and the training workers, if any, beside them."""
    found = [_Want(f"placement.{s.name}", "size", s.pool, resource_request(s.name, s.pool, s.pool.size)) for s in stages]
    if training is not None and training.workers:
        found.append(_Want("placement.training", "workers", training, resource_request("training", training, training.workers)))
    return found


def preflight(stages: list[Operator], nodes: Sequence[Node], training: TrainingConfig | None = None) -> None:
    """Refuses a placement that could never start, with the numbers (Ray itself would wait silently).

    Every actor needs one node with all that it asks for at once; a fraction of a GPU lies on one GPU. `max_size` never counts:
    a pool grows only where there is room. Training workers have no GPU in common, because NCCL refuses that.

    Args:
        stages: pools of the stream, all alive at the same time; none for training by itself.
        nodes: resources of each node, e.g. `{"CPU": 8, "GPU": 2}`: the living ones and those that an autoscaler may still start.
        training: training workers that run beside the stream.

    Raises:
        UserError: what does not fit, how much there is, and how many actors would fit.
    """
    found = _wants(stages, training)
    for want in found:
        _check_one(want, nodes)
    asks = [want.ask for want in found]
    if fits(asks, nodes, IO_CPUS):
        return
    for resource in sorted({key for one in asks for key in one.needs if not key.startswith(ACCELERATOR)} | {"CPU"}):
        spare = IO_CPUS if resource == "CPU" else 0.0
        have = sum(n.get(resource, 0.0) for n in nodes)
        need = sum(want.ask.count * _each(want, resource) for want in found) + spare
        if need > have + 1e-9:
            parts = ", ".join(f"{w.ask.name} {w.ask.count} x {_each(w, resource):g}" for w in found if _each(w, resource))
            reserve = f" + {spare:g} for reading" if spare else ""
            raise UserError(
                f"placement needs {need:g} {_plural(resource)} ({parts}{reserve}), the cluster has {have:g}; "
                + _remedy(found, nodes, resource)
            )
    for want in found:
        number = count_fitting(want.ask, nodes)
        if number < want.ask.count:
            raise UserError(
                f"{want.key}.{want.count}={want.ask.count}: only {number} actors of {_binding(want, nodes)} fit on "
                f"the nodes; lower {want.count}, or what one actor needs"
            )
    parts = ", ".join(f"{want.ask.name} {want.ask.count} x ({_needs(want.ask.needs)})" for want in found)
    raise UserError(
        f"placement: the pools do not fit on the nodes together ({parts}; nodes: {_kinds(nodes)}), although their "
        "sums do: an actor lies on one node, a fraction of a GPU on one; " + _remedy(found, nodes, "GPU")
    )


def _check_one(want: _Want, nodes: Sequence[Node]) -> None:
    """Whether a single actor of this pool has a node that it can live on."""
    pool = want.pool
    if pool.gpus > 1 and pool.gpus % 1:
        raise UserError(f"{want.key}.gpus={pool.gpus:g}: expected whole GPUs or a fraction below 1")
    if isinstance(pool, TrainingConfig) and pool.workers > 1 and pool.gpus % 1:
        raise UserError(
            f"{want.key}.gpus={pool.gpus:g}: expected 0 or whole GPUs with {want.key}.workers={pool.workers}, because "
            "workers that train together cannot share one; set it to 1, or use one worker"
        )
    if pool.accelerator and not any(ACCELERATOR + pool.accelerator in n for n in nodes):
        there = Counter(k.removeprefix(ACCELERATOR) for n in nodes for k in n if k.startswith(ACCELERATOR))
        raise UserError(
            f"{want.key}.accelerator={pool.accelerator}: no node has one; the nodes have {_list(there)}; name one of "
            "these, leave it empty, or add such a node"
        )
    for name in pool.resources:
        if not any(n.get(name) for n in nodes):
            there = Counter(k for n in nodes for k in n if _declared(k))
            raise UserError(
                f"{want.key}.resources: no node declares `{name}`; custom resources of the nodes: {_list(there)}; "
                f"start a node with --resources='{{\"{name}\": 1}}', or mend the name"
            )
    for resource, field in (("CPU", "cpus"), ("GPU", "gpus"), *((name, f"resources.{name}") for name in pool.resources)):
        largest = max((n.get(resource, 0.0) for n in nodes), default=0.0)
        if _each(want, resource) > largest:
            raise UserError(
                f"{want.key}.{field}={_each(want, resource):g}: one actor needs more {_plural(resource)} than the "
                f"largest node has ({largest:g}); lower it or add a larger node"
            )
    if want.ask.count and not count_fitting(want.ask, nodes):
        raise UserError(
            f"{want.key}: one actor needs {_needs(want.ask.needs)} of one node, and no node has all of it "
            f"(nodes: {_kinds(nodes)}); lower what one actor needs, or add such a node"
        )


def _each(want: _Want, resource: str) -> float:
    return want.ask.needs.get(resource, 0) / UNIT


def _remedy(found: list[_Want], nodes: Sequence[Node], resource: str) -> str:
    """The largest size of one pool with which all would fit: the pool that asks for most, else the next."""
    for want in sorted(found, key=lambda w: -w.ask.count * _each(w, resource)):
        others = [w.ask for w in found if w is not want]
        number = bisect_left(
            range(1, want.ask.count), True, key=lambda n: not fits([*others, replace(want.ask, count=n)], nodes, IO_CPUS)
        )
        if number:
            lower = {"CPU": "cpus", "GPU": "gpus"}.get(resource, f"resources.{resource}")
            return f"{want.key}.{want.count}={number} would fit, or lower {want.key}.{lower}"
    return "no size of one pool alone would fit; lower what the actors need, or add nodes"


def _binding(want: _Want, nodes: Sequence[Node]) -> str:
    """What keeps the pool from having more actors: the one resource if it is one, else all that an actor needs at once."""
    for resource in want.ask.needs:
        only = replace(want.ask, needs={resource: want.ask.needs[resource]})
        if not resource.startswith(ACCELERATOR) and count_fitting(only, nodes) == count_fitting(want.ask, nodes):
            return f"{_each(want, resource):g} {_plural(resource)}"
    return _needs(want.ask.needs)


def _plural(resource: str) -> str:
    return resource + "s" if resource in ("CPU", "GPU") else f"`{resource}`"


def _needs(needs: Mapping[str, int]) -> str:
    return (
        " + ".join(
            key.removeprefix(ACCELERATOR) if key.startswith(ACCELERATOR) else f"{amount / UNIT:g} {key}"
            for key, amount in needs.items()
        )
        or "nothing"
    )


def _kinds(nodes: Sequence[Node]) -> str:
    """The nodes by kind: `2 x (8 CPU + 1 GPU + A100)`."""
    shown = [
        {
            k: round(v * UNIT)
            for k, v in sorted(n.items())
            if v and (k in ("CPU", "GPU") or k.startswith(ACCELERATOR) or _declared(k))
        }
        for n in nodes
    ]
    return ", ".join(f"{count} x ({kind})" for kind, count in Counter(_needs(one) for one in shown).items()) or "none"


def _declared(key: str) -> bool:
    """Whether a resource is one that somebody declared, rather than one of Ray's own."""
    return key not in ("CPU", "GPU", "memory", "object_store_memory") and not key.startswith(("node:", ACCELERATOR))


def _list(there: Counter) -> str:
    return ", ".join(f"{name} ({count} nodes)" if count > 1 else name for name, count in sorted(there.items())) or "none"
