"""Training in processes of Ray Train: `fit` starts them, replaces lost ones, and turns what went wrong into one sentence.

The files that count are the loop's own, in the run directory; Ray Train's storage is a temporary folder that stays empty of
checkpoints and goes at the end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from actors.cluster import node_resources, start_seconds
from actors.placement import preflight
from syn4seg.config.sections import TrainingConfig
from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.stages.base import train_base_stage
from syn4seg.stages.setup import load_dataset
from syn4seg.store.rundir import RunDir

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class WorkerContext:
    """One process's place among those that train together.

    Attributes:
        rank: its number, from 0.
        world: how many there are; above 1 `torch.distributed` is set up (nccl on GPUs, gloo otherwise).
        device: "cuda" (the process's current device is its own) or "cpu".
        tell: takes facts for the `progress` of `fit`, from any rank.
    """

    rank: int
    world: int
    device: str
    tell: Callable[[dict[str, Any]], None]


Loop = Callable[[dict[str, Any], WorkerContext], Any]
"""What every process runs: (config, its place) -> a value, of which rank 0's is returned."""


def fit(
    loop: Loop,
    config: dict[str, Any],
    workers: TrainingConfig,
    *,
    name: str,
    device: str = "cpu",
    progress: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> Any:
    """Runs a loop in `workers.workers` processes of Ray Train, or with 0 in this one; returns what rank 0 returns.

    When a process dies (kill -9, a lost node) or raises, all are started again, at most `workers.max_failures` times, and call
    the loop anew: it is the loop that writes a checkpoint (rank 0 alone, atomically, in the run directory, which every node
    must see) and goes on from it. A UserError is a user's mistake: the loop is not run again, and the message stays.

    Args:
        loop: importable on the workers, or picklable; it must not assume a working directory.
        config: small picklable values; the loop's first argument.
        workers: `placement.training`.
        name: of this training, in Ray's own records.
        device: of the process with `workers.workers` = 0; workers are on a GPU if they have a share of one.
        progress: called in this process, in a thread of its own, with what the loop tells.

    Raises:
        UserError: the workers do not fit on the cluster; the loop's own; or why the training failed, in one sentence.
    """
    if not workers.workers:
        return loop(config, WorkerContext(0, 1, device, progress))
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    preflight([], node_resources(), workers)
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(start_seconds()))
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    scratch = tempfile.mkdtemp(prefix="syn4seg-train-")  # on this node, where Train's controller is; no checkpoint goes there
    here = ray.get_runtime_context().get_node_id()
    board: Any = ray.remote(num_cpus=0, label_selector={"ray.io/node-id": here})(TrainingBoard).remote()
    trainer = TorchTrainer(
        lambda: _work(loop, config, board, "cuda" if workers.gpus else "cpu"),
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.workers,
            use_gpu=workers.gpus > 0,
            resources_per_worker=share_of(workers),
            accelerator_type=workers.accelerator,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures, controller_failure_limit=3),
        ),
    )
    try:
        with _own_interrupts(), _listening(board, progress):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(ray.get(board.failed.remote()) or _cause(error)) from error
    else:
        mistake = ray.get(board.failed.remote())
        if mistake:
            raise UserError(mistake)
        return result.return_value
    finally:
        ray.kill(board)
        shutil.rmtree(scratch, ignore_errors=True)


def share_of(workers: TrainingConfig) -> dict[str, float]:
    """What one worker takes, as Ray names it."""
    return {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}) | workers.resources


class TrainingBoard:
    """Where workers leave what the driver is to know: facts in order, and the first mistake that no restart would mend."""

    def __init__(self):
        self.facts: list[dict[str, Any]] = []
        self.mistake = ""

    def tell(self, facts: dict[str, Any]) -> None:
        """Adds facts."""
        self.facts.append(facts)

    def give_up(self, mistake: str) -> None:
        """Keeps the first mistake."""
        self.mistake = self.mistake or mistake

    def take(self) -> list[dict[str, Any]]:
        """The facts since the last call."""
        facts, self.facts = self.facts, []
        return facts

    def failed(self) -> str:
        """The mistake, or an empty text."""
        return self.mistake


def _work(loop: Loop, config: dict[str, Any], board: Any, device: str) -> Any:
    """The life of one worker."""
    import ray
    import ray.train

    if ray.get(board.failed.remote()):
        return None  # a restart after a user's mistake: there is nothing to try again
    context = ray.train.get_context()
    group = WorkerContext(context.get_world_rank(), context.get_world_size(), device, board.tell.remote)
    try:
        return loop(config, group)
    except UserError as error:
        ray.get(board.give_up.remote(" ".join(str(error).split())))
        raise


@contextlib.contextmanager
def _listening(board: Any, progress: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Passes on what the workers tell, until the block ends and everything told has been passed on."""
    import ray

    ended, failures = threading.Event(), []

    def listen() -> None:
        try:
            last = False
            while not last:
                last = ended.wait(POLL_SECONDS)
                for facts in ray.get(board.take.remote()):
                    progress(facts)
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that trains
            failures.append(error)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ray Train takes over Ctrl-C, ends the process with status 0 on it, and keeps it; here it interrupts, as ever."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _cause(error: Any) -> str:
    """What went wrong in a worker, without Ray's tracebacks; that its peers lost the connection to it is said only alone."""
    from ray.exceptions import RayError

    causes = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    lost = re.compile(r"connection (closed|reset|refused)|gloo|nccl", re.IGNORECASE)
    causes.sort(key=lambda cause: isinstance(cause, RayError) + 2 * bool(lost.search(str(cause))))
    said = f"{type(causes[0]).__name__}: {' '.join(str(causes[0]).split())}"
    if isinstance(causes[0], RayError):
        said = "a worker died again and again (killed, out of memory, or its node was lost)"
    return f"training failed: {said}; mend the cause and run the same command again, which goes on from here"


# ------------------------------------------------------------------------------------------------------- base stage
def train_base_on_workers(config: Config, run: RunDir, report: Callable[[dict[str, Any]], None]) -> None:
    """The base stage in the processes of `placement.training`; afterwards its files are in the run.

    The same number of workers gives the same bits, whatever died meanwhile. Another number gives the same up to rounding: sums
    over a batch are added in another order (and a worker may have another number of threads than this process).

    Raises:
        UserError: a batch that cannot be shared; see `fit` and `syn4seg.segmenter.base.train_base`.
    """
    parts = {"config": config.model_dump(mode="json"), "run": run.address}
    fit(_base_loop, parts, config.placement.training, name="base", progress=report)


def _base_loop(parts: dict[str, Any], group: WorkerContext) -> None:
    config = Config.model_validate(parts["config"])
    dataset, fold = load_dataset(config)
    train_base_stage(config, RunDir(parts["run"]), dataset, fold, group.device, group.tell)


def on_workers(config: Config) -> bool:
    """Whether training and evaluation run in processes of their own."""
    return config.placement.runner == "ray" and config.placement.training.workers > 0


def check_workers(config: Config) -> None:
    """Refuses training workers that do not fit on the cluster or cannot share a batch, before anything is made.

    Raises:
        UserError: see `preflight` and `check_shares`.
    """
    workers = config.placement.training
    if not on_workers(config):
        return
    preflight([], node_resources(), workers)
    if config.base.checkpoint == "train":
        from syn4seg.segmenter.base import check_batch_shares

        check_batch_shares(config.base.batch, workers.workers)
