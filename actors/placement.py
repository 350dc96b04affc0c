"""Where the stages run: joining Ray, checking that everything fits, and passing a stream through a pool of actors."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from syn4seg.sections import Placement, Pool

if TYPE_CHECKING:
    import ray.data

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


def node_resources() -> list[Mapping[str, float]]:
    """Resources of the living nodes of the connected cluster."""
    import ray

    return [n["Resources"] for n in ray.nodes() if n["Alive"]]


def connect(placement: Placement) -> None:
    """Joins the cluster of `placement.address`, or starts one on this machine that listens on loopback only.

    Raises:
        ValueError: nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if placement.address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a loopback cluster of this one process
    import ray

    if ray.is_initialized():
        return
    if placement.address == "local":
        cpus = max(4, os.cpu_count() or 1)  # logical: local stages share the machine as threads would
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                 object_store_memory=2**30, _node_ip_address="127.0.0.1")  # fmt: skip
        return
    if ":" in placement.address and "://" not in placement.address:
        host, _, port = placement.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            raise ValueError(f"placement.address={placement.address}: nothing answers there ({error}); start the cluster, "
                             "or use `local`") from None  # fmt: skip
    try:
        ray.init(address=placement.address, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ValueError(f"placement.address={placement.address}: {error}; start a cluster (`ray start --head`), "
                         "or use `local`") from None  # fmt: skip


def source(rows: pa.Table, rows_per_block: int) -> ray.data.Dataset:
    """A table as a stream of blocks of `rows_per_block` rows, in order; small tables do not collapse into one block."""
    import ray.data
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Plan(Datasource):
        def get_name(self) -> str:
            return "Plan"

        def estimate_inmemory_data_size(self) -> int:
            return rows.nbytes

        def get_read_tasks(self, parallelism, per_task_row_limit=None, data_context=None):
            tasks = []
            for start in range(0, rows.num_rows, rows_per_block):
                part = rows.slice(start, rows_per_block).combine_chunks()
                facts = BlockMetadata(num_rows=part.num_rows, size_bytes=part.nbytes, input_files=None, exec_stats=None)
                tasks.append(ReadTask(lambda part=part: [part], facts, schema=part.schema))
            return tasks

    blocks = max(1, math.ceil(rows.num_rows / rows_per_block))
    return ray.data.read_datasource(Plan(), num_cpus=0.1, override_num_blocks=blocks)


def through(stream: ray.data.Dataset, stage: Stage) -> ray.data.Dataset:
    """The stream after one stage, in its own fixed pool of actors."""
    from ray.data import ActorPoolStrategy

    return stream.map_batches(
        stage.actor, fn_constructor_kwargs=stage.kwargs, batch_size=stage.pool.batch, batch_format="numpy",
        compute=ActorPoolStrategy(size=stage.pool.size), num_cpus=stage.pool.cpus,
        num_gpus=stage.pool.gpus or None,
    )  # fmt: skip


def run_stream(rows: pa.Table, stages: list[Stage], rows_per_block: int) -> Iterator[dict[str, Any]]:
    """Streams the rows through every stage under Ray; yields the last stage's batches as they finish."""
    import ray.data
    import ray.exceptions

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    context.execution_no_progress_timeout_s = 1800  # type: ignore[attr-defined]
    context.wait_for_min_actors_s = 600
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    check_columns(rows.column_names, stages)
    preflight(stages, node_resources())
    stream = source(rows, rows_per_block)
    for stage in stages:
        stream = through(stream, stage)
    try:
        for batch in stream.iter_batches(batch_size=None, batch_format="numpy"):
            yield dict(batch)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except ray.exceptions.RayError as error:
        raise ValueError(_cause(error)) from error


def _cause(error: BaseException) -> str:
    """What an actor said last, without Ray's traceback around it."""
    chain: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in chain:
        chain.append(inner)
        inner = getattr(inner, "cause", None) or inner.__cause__ or inner.__context__
    lines = [line.strip() for link in chain for line in str(link).splitlines()]
    said = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt): \S", line)] or [
        line for line in lines if line
    ]
    last = said[-1] if said else type(error).__name__
    return f"an actor failed: {last}; mend the cause and run the same command again, which goes on from here"


def run_inline(rows: pa.Table, stages: list[Stage], rows_per_block: int) -> Iterator[dict[str, Any]]:
    """The same stages chained in this process, one block at a time: for debugging and very small machines."""
    check_columns(rows.column_names, stages)
    actors = [stage.actor(**stage.kwargs) for stage in stages]
    for start in range(0, rows.num_rows, rows_per_block):
        part = rows.slice(start, rows_per_block)
        batch = {name: part[name].to_numpy(zero_copy_only=False) for name in part.column_names}
        for actor in actors:
            batch = actor(batch)
        yield batch
