"""Evaluation shared by workers: each takes whole chunks of queries; a lost worker costs the chunk that it had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from actors.cluster import node_resources
from actors.failures import local_error
from actors.placement import preflight
from actors.training import on_workers, worker_resources
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.stages.scoring import Matrices, Scorer, score_in_process, score_run
from syn4seg.stages.setup import load_dataset
from syn4seg.store.rundir import RunDir


class ScoringWorker:
    """A `Scorer` in an actor; it loads with its first chunk, so that an error can be told from a dead actor."""

    def __init__(self, config: Config, run: str, device: str):
        self.config, self.run, self.device = config, run, device
        self.scorer: Scorer | None = None

    def score(self, ids: list[str]) -> Matrices:
        """Score one chunk of queries as `Scorer` does."""
        if self.scorer is None:
            self.scorer = Scorer(self.config, RunDir(self.run), *load_dataset(self.config), device=self.device)
        return self.scorer(ids)


def evaluate_run(
    config: Config, run: RunDir, dataset: Dataset, fold: Fold, progress: Callable[[int, int], None]
) -> dict[int, dict[str, np.ndarray]]:
    """Return what `score_run` returns, computed by workers or in this process, as `placement` says; the same matrices exactly.

    A lost worker's chunk goes to the others. When no worker remains all are started again, at most
    `placement.training.max_failures` times.

    Args:
        progress: called with (queries scored, queries in all).

    Raises:
        UserError: the workers do not fit on the cluster, were lost too often, or one of them raised it.
        WorkerError: one of them failed otherwise.
    """
    if on_workers(config):
        return score_run(config, run, dataset, fold, lambda chunks: _score_chunks(config, run, chunks), progress)
    scorer = Scorer(config, run, dataset, fold, device=config.placement.device)
    return score_run(config, run, dataset, fold, score_in_process(scorer), progress)


def _score_chunks(config: Config, run: RunDir, chunks: list[list[str]]) -> Iterator[tuple[int, Matrices]]:
    import ray
    import ray.exceptions

    waiting, restarts = chunks[::-1], config.placement.training.max_failures
    idle: list[Any] = _start_workers(config, run)
    busy: dict[Any, tuple[Any, list[str]]] = {}
    started = list(idle)
    try:
        while waiting or busy:
            if not idle and not busy:
                if not restarts:
                    raise UserError(
                        "all evaluation workers were lost (killed, out of memory, node gone) more often than "
                        "placement.training.max_failures; run the same command again, or give them room"
                    )
                restarts -= 1
                idle = _start_workers(config, run)
                started += idle
            while idle and waiting:
                worker, chunk = idle.pop(), waiting.pop()
                busy[worker.score.remote(chunk)] = worker, chunk
            ready = ray.wait(list(busy), num_returns=1)[0][0]
            worker, chunk = busy.pop(ready)
            try:
                yield len(chunk), ray.get(ready)
                idle.append(worker)
            except ray.exceptions.RayTaskError as error:
                raise local_error("evaluation", error) from error
            except ray.exceptions.RayError:  # the worker is gone
                waiting.append(chunk)
    finally:
        for worker in started:
            ray.kill(worker)


def _start_workers(config: Config, run: RunDir) -> list[Any]:
    """Start actors that have loaded nothing yet."""
    import ray

    workers = config.placement.training
    preflight([], node_resources(), workers)
    resources = worker_resources(workers)
    cpus, gpus = resources.pop("CPU"), resources.pop("GPU", 0)
    remote: Any = ray.remote(ScoringWorker)
    placed = remote.options(num_cpus=cpus, num_gpus=gpus, resources=resources, accelerator_type=workers.accelerator)
    return [placed.remote(config, run.address, "cuda" if workers.gpus else "cpu") for _ in range(workers.workers)]
