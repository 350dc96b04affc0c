"""The chain of operators in a few actors that each hold all of it: for one machine, where pools would share its cores.

Rows cross a process border twice instead of between all operators, and one process imports what four would. Guards, ledger and
deadlines are those of the pools. What differs: an actor that dies begins its rows at the first operator again, so the images of one
call are made a second time (the same bytes), where a pool would find them made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from actors.columns import Batch
from actors.guard import Guard
from actors.placement import Operator

AHEAD = 2
"""Calls that an actor has at a time, so that it never waits for the driver."""


class Chain:
    """Every operator of a stream in one process, each behind its guard."""

    def __init__(self, guards: list[dict[str, Any]]):
        self.guards = [Guard(**arguments) for arguments in guards]

    def run(self, rows: Batch) -> Batch:
        """Return what the last operator passes on."""
        for guard in self.guards:
            rows = guard(rows)
        return rows


def run_fused(
    rows: pa.Table, operators: list[Operator], guards: list[dict[str, Any]], rows_per_call: int, actors: int
) -> Iterator[Batch]:
    """Yield the last operator's batches as they finish.

    Args:
        guards: arguments of every operator's `Guard`.
        rows_per_call: rows that travel together.
        actors: how many share the calls; together they ask for what the pools would ask for.

    Raises:
        ray.exceptions.RayError: an actor failed, and not by a row.
    """
    import ray

    starts = iter(range(0, rows.num_rows, rows_per_call))
    cpus = sum(operator.pool.cpus for operator in operators) / actors
    actor = ray.remote(num_cpus=cpus, max_restarts=-1, max_task_retries=-1)(Chain)
    chains: list[Any] = [actor.remote(guards) for _ in range(actors)]
    running: dict[Any, Any] = {}

    def send(chain: Any) -> None:
        for start in starts:
            part = rows.slice(start, rows_per_call)
            batch = {name: part[name].to_numpy(zero_copy_only=False) for name in part.column_names}
            running[chain.run.remote(batch)] = chain
            return

    try:
        for chain in chains * AHEAD:
            send(chain)
        while running:
            for done in ray.wait(list(running), num_returns=1)[0]:
                chain = running.pop(done)
                send(chain)
                yield ray.get(done)
    finally:
        for chain in chains:
            ray.kill(chain)
