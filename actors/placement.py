"""Placement as data: a stage and its pool, and what fits on a cluster and what does not. Nothing here starts anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from syn4seg.sections import Pool

IO_CPUS = 1.0
"""Logical CPUs left for Ray's own read tasks; without a whole one the stream would wait forever."""


@dataclass(frozen=True)
class Stage:
    """One step of the stream: a plain class, its constructor arguments, and the pool it runs in."""

    actor: type
    kwargs: dict[str, Any]
    pool: Pool
    name: str


def check_columns(columns: Iterable[str], stages: list[Stage]) -> None:
    """Every stage finds the columns that it reads, and none rewrites another's (`reason` alone may be filled later).

    Raises:
        ValueError: naming the stage and the column.
    """
    have = set(columns)
    for stage in stages:
        lacking = sorted(set(stage.actor.reads) - have)
        if lacking:
            raise ValueError(f"stage {stage.name}: reads {', '.join(lacking)}, which no stage before it adds")
        again = sorted(set(stage.actor.adds) & have)
        if again:
            raise ValueError(
                f"stage {stage.name}: adds {', '.join(again)}, which is there already; columns are append-only"
            )
        have |= set(stage.actor.adds)


def preflight(stages: list[Stage], nodes: list[Mapping[str, float]]) -> None:
    """Refuses a placement that could never start, with the numbers (Ray itself would wait silently).

    Args:
        stages: pools of the stream, all alive at the same time.
        nodes: resources of each living node, e.g. `{"CPU": 8, "GPU": 2}`.

    Raises:
        ValueError: what does not fit, how much there is, and how many actors would fit.
    """
    pools = [(s.name, s.pool) for s in stages]
    for resource, field, spare in (("CPU", "cpus", IO_CPUS), ("GPU", "gpus", 0.0)):
        have = sum(n.get(resource, 0.0) for n in nodes)
        largest = max((n.get(resource, 0.0) for n in nodes), default=0.0)
        need = sum(p.size * getattr(p, field) for _, p in pools) + spare
        for name, pool in pools:
            if getattr(pool, field) > largest:
                raise ValueError(f"placement.{name}.{field}={getattr(pool, field):g}: one actor needs more {resource}s than "
                                 f"the largest node has ({largest:g}); lower it or add a larger node")  # fmt: skip
        if need > have + 1e-9:
            parts = ", ".join(f"{n} {p.size} x {getattr(p, field):g}" for n, p in pools)
            reserve = f" + {spare:g} for reading" if spare else ""
            name, pool = max(pools, key=lambda item: item[1].size * getattr(item[1], field))
            fits = max(1, math.floor((have - need) / max(getattr(pool, field), 1e-9) + pool.size))
            raise ValueError(f"placement needs {need:g} {resource}s ({parts}{reserve}), the cluster has {have:g}; "
                             f"placement.{name}.size={fits} would fit, or lower placement.{name}.{field}")  # fmt: skip
        for name, pool in pools:
            share = getattr(pool, field)
            if resource == "GPU" and share > 1 and share % 1:
                raise ValueError(f"placement.{name}.gpus={share:g}: expected whole GPUs or a fraction below 1")
            each = [math.floor(n.get(resource, 0.0)) * math.floor(1 / share + 1e-9) if resource == "GPU" and 0 < share < 1
                    else math.floor(n.get(resource, 0.0) / max(share, 1e-9) + 1e-9) for n in nodes]  # fmt: skip
            if share and pool.size > sum(each):
                raise ValueError(f"placement.{name}.size={pool.size}: only {sum(each)} actors of {share:g} {resource}s fit on the "
                                 f"nodes; lower size or {field}")  # fmt: skip
