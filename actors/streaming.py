"""A table of rows through a chain of stages: streamed through pools of actors, or one block at a time in this process."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actors.cluster import node_resources
from actors.placement import Stage, check_columns, preflight

if TYPE_CHECKING:
    import ray.data


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
