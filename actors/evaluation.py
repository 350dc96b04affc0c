"""Evaluation shared by workers: each takes whole chunks of queries; a lost worker costs the chunk that it had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from actors.cluster import node_resources
from actors.placement import preflight
from actors.training import on_workers, share_of
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.stages.scoring import Matrices, Scorer, score_in_process, score_run
from syn4seg.stages.setup import load_dataset
from syn4seg.store.rundir import RunDir


class ScoringWorker:
    """A `Scorer` in an actor; it loads with its first chunk, so that an error can be told from a dead actor."""

    def __init__(self, config: dict[str, Any], run: str, device: str):
        self.given = config, run, device
        self.scorer: Scorer | None = None

    def score(self, ids: list[str]) -> Matrices:
        """As `Scorer`."""
        if self.scorer is None:
            tree, run, device = self.given
            config = Config.model_validate(tree)
            self.scorer = Scorer(config, RunDir(run), *load_dataset(config), device=device)
        return self.scorer(ids)


def evaluate_run(
    config: Config, run: RunDir, dataset: Dataset, fold: Fold, done: Callable[[int, int], None]
) -> dict[int, dict[str, np.ndarray]]:
    """Confusion matrices by draw and row, by workers or in this process, as `placement` has it.

    Args:
        done: called with (queries scored, queries in all).
    """
    if on_workers(config):
        return evaluate_on_workers(config, run, dataset, fold, done)
    scorer = Scorer(config, run, dataset, fold, device=config.placement.device)
    return score_run(config, run, dataset, fold, score_in_process(scorer), done)


def evaluate_on_workers(
    config: Config, run: RunDir, dataset: Dataset, fold: Fold, done: Callable[[int, int], None]
) -> dict[int, dict[str, np.ndarray]]:
    """As `score_run`, by `placement.training.workers` actors; equal to one process, exactly.

    A lost actor's chunk goes to the others. When none is left all are started again, at most
    `placement.training.max_failures` times.

    Raises:
        UserError: the workers do not fit on the cluster, were lost too often, or what one of them said.
    """
    return score_run(config, run, dataset, fold, lambda chunks: _scored(config, run, chunks), done)


def _scored(config: Config, run: RunDir, chunks: list[list[str]]) -> Iterator[tuple[int, Matrices]]:
    import ray
    import ray.exceptions

    waiting, restarts = chunks[::-1], config.placement.training.max_failures
    idle: list[Any] = _workers(config, run)
    busy: dict[Any, tuple[Any, list[str]]] = {}
    everybody = list(idle)
    try:
        while waiting or busy:
            if not idle and not busy:
                if not restarts:
                    raise UserError(
                        "all evaluation workers were lost (killed, out of memory, node gone) more often than "
                        "placement.training.max_failures; run the same command again, or give them room"
                    )
                restarts -= 1
                idle = _workers(config, run)
                everybody += idle
            while idle and waiting:
                worker, chunk = idle.pop(), waiting.pop()
                busy[worker.score.remote(chunk)] = worker, chunk
            ended = ray.wait(list(busy), num_returns=1)[0][0]
            worker, chunk = busy.pop(ended)
            try:
                yield len(chunk), ray.get(ended)
                idle.append(worker)
            except ray.exceptions.RayTaskError as error:
                cause: BaseException = error.cause
                said = " ".join(str(cause).split())
                raise UserError(
                    said
                    if isinstance(cause, UserError)
                    else f"evaluation failed: {type(cause).__name__}: {said}; mend the cause and run the same command again"
                ) from error
            except ray.exceptions.RayError:  # the worker is gone
                waiting.append(chunk)
    finally:
        for worker in everybody:
            ray.kill(worker)


def _workers(config: Config, run: RunDir) -> list[Any]:
    """New actors, none of which has loaded anything yet."""
    import ray

    workers = config.placement.training
    preflight([], node_resources(), workers)
    share = share_of(workers)
    cpus, gpus = share.pop("CPU"), share.pop("GPU", 0)
    remote: Any = ray.remote(ScoringWorker)
    where = remote.options(num_cpus=cpus, num_gpus=gpus, resources=share, accelerator_type=workers.accelerator)
    parts = config.model_dump(mode="json"), run.address, "cuda" if workers.gpus else "cpu"
    return [where.remote(*parts) for _ in range(workers.workers)]
