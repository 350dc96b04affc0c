"""A table of rows through a chain of operators: through pools of actors, through actors that hold all of it, or in this process."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actors.cluster import node_resources, start_seconds
from actors.failures import local_error
from actors.fused import run_fused
from actors.guard import Guard
from actors.ledger import Ledger
from actors.metrics import Totals
from actors.placement import Operator, check_columns, preflight
from syn4seg.errors import StoreError

if TYPE_CHECKING:
    import ray.data

REPORT_SECONDS = 10.0
READ_TASKS = 4
"""Tasks at a time that hand out rows of the plan, a millisecond each; without a bound Ray starts a process per CPU for them."""


@dataclass(frozen=True)
class RowsTask:
    """A few rows as one read task: bytes, because Ray pickles each task by itself, and an Arrow table takes it a millisecond."""

    data: pa.Buffer

    def __call__(self) -> list[pa.Table]:
        return [pa.ipc.open_stream(self.data).read_all()]


def plan_dataset(rows: pa.Table, rows_per_block: int) -> ray.data.Dataset:
    """Return a table as a dataset of blocks of `rows_per_block` rows, in order; small tables do not collapse into one block."""
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
                part = rows.slice(start, rows_per_block)
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, part.schema) as stream:
                    stream.write_table(part)
                facts = BlockMetadata(num_rows=part.num_rows, size_bytes=part.nbytes, input_files=None, exec_stats=None)
                tasks.append(ReadTask(RowsTask(sink.getvalue()), facts))
            return tasks

    blocks = max(1, math.ceil(rows.num_rows / rows_per_block))
    return ray.data.read_datasource(Plan(), num_cpus=0.1, concurrency=READ_TASKS, override_num_blocks=blocks)


def map_operator(stream: ray.data.Dataset, operator: Operator, guard: dict[str, Any]) -> ray.data.Dataset:
    """Return the stream after one operator, guarded, in its own pool of actors: fixed, or growing when nodes join."""
    from ray.data import ActorPoolStrategy

    pool = operator.pool
    if pool.max_size is None:
        compute = ActorPoolStrategy(size=pool.size)
    else:
        compute = ActorPoolStrategy(min_size=pool.size, max_size=pool.max_size, initial_size=pool.size)
    return stream.map_batches(
        type(operator.name.capitalize(), (Guard,), {}),  # the name that Ray's own tools show
        fn_constructor_kwargs=guard,
        batch_size=pool.batch,
        batch_format="numpy",
        compute=compute,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        accelerator_type=pool.accelerator,
        resources=pool.resources or None,
    )


def run_pools(
    rows: pa.Table, operators: list[Operator], guards: list[dict[str, Any]], rows_per_block: int, store_bytes: float | None
) -> Iterator[dict[str, Any]]:
    """Yield the last operator's batches as they finish: a pool of actors for each operator, with Ray Data between them."""
    configure_ray_data(store_bytes)
    stream = plan_dataset(rows, rows_per_block)
    for operator, guard in zip(operators, guards, strict=True):
        stream = map_operator(stream, operator, guard)
    for batch in stream.iter_batches(batch_size=None, batch_format="numpy"):
        yield dict(batch)  # pyright: ignore[reportArgumentType, reportCallIssue]


def run_stream(
    rows: pa.Table,
    operators: list[Operator],
    rows_per_block: int,
    *,
    run: str = "",
    deadline: float = 300.0,
    store_bytes: float | None = None,
    fused: int = 0,
    report: Callable[[Totals], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Stream the rows through every operator under Ray; yield the last operator's batches as they finish.

    Args:
        rows: with the columns that the operators read, `sample_id` and `reason` at least.
        rows_per_block: rows that travel together.
        run: name of the run in the metrics.
        deadline: seconds that one row may spend in one operator.
        store_bytes: how much of the cluster's object store the stream may fill; None: what Ray Data takes.
        fused: actors that each hold every operator (`actors.fused`); 0: a pool of actors for each operator.
        report: called every `REPORT_SECONDS`, and at the end, with the ledger's totals, see `Ledger.totals`.

    Raises:
        UserError: the operators do not fit on the cluster, or an actor raises one (e.g. a StoreError).
        WorkerError: an actor fails otherwise, and not by a row.
    """
    import ray
    import ray.exceptions

    check_columns(rows.column_names, operators)
    preflight(operators, node_resources())
    ledger: Any = ray.remote(Ledger).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    shared = {"run": run, "row_deadline": deadline, "ledger": ledger}
    guards = [{"operator": o.actor, "kwargs": o.kwargs, "name": o.name, **shared} for o in operators]
    try:
        with _reporting(ledger, report):
            if fused:
                yield from run_fused(rows, operators, guards, rows_per_block, fused)
            else:
                yield from run_pools(rows, operators, guards, rows_per_block, store_bytes)
    except ray.exceptions.RayError as error:
        failure: Any = None
        with contextlib.suppress(ray.exceptions.RayError):
            failure = ray.get(ledger.last_failure.remote())
        raise local_error("the stream", error, failure) from error
    finally:
        ray.kill(ledger)


def configure_ray_data(store_bytes: float | None) -> None:
    """Set Ray Data's options of this process, for the streams built from now on."""
    import ray.data
    from ray.data import ExecutionResources

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=store_bytes)
    context.execution_no_progress_timeout_s = 86400  # type: ignore[attr-defined]  # hanging rows end themselves, see the guard
    context.wait_for_min_actors_s = start_seconds()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error is reported once, see `local_error`


@contextlib.contextmanager
def _reporting(ledger: Any, report: Callable[[Totals], None] | None) -> Iterator[None]:
    """Report now and then from a thread, and once at the end of a stream that did not fail."""
    import ray
    import ray.exceptions

    if report is None:
        yield
        return
    ended = threading.Event()

    def report_totals() -> None:
        with contextlib.suppress(ray.exceptions.RayError, StoreError):  # a full disk ends the stream where rows are written
            report(ray.get(ledger.totals.remote(), timeout=REPORT_SECONDS))

    def report_until_ended() -> None:
        while not ended.wait(REPORT_SECONDS):
            report_totals()

    thread = threading.Thread(target=report_until_ended, name="report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    report_totals()


def run_inline(rows: pa.Table, operators: list[Operator], rows_per_block: int) -> Iterator[dict[str, Any]]:
    """Yield the batches of the same operators chained in this process, a block at a time: for debugging and small machines."""
    check_columns(rows.column_names, operators)
    actors = [operator.actor(**operator.kwargs) for operator in operators]
    for start in range(0, rows.num_rows, rows_per_block):
        part = rows.slice(start, rows_per_block)
        batch = {name: part[name].to_numpy(zero_copy_only=False) for name in part.column_names}
        for actor in actors:
            batch = actor(batch)
        yield batch
