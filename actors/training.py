"""Training in processes of Ray Train: `fit` starts them, replaces lost ones, and turns what failed into one sentence.

The files that count are the loop's own, in the run directory; Ray Train's storage is a temporary folder that stays empty of
checkpoints and is deleted at the end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from actors.cluster import node_resources, start_seconds
from actors.failures import Failure, local_error
from actors.placement import preflight
from actors.readers import read_with_ray
from syn4seg.config.placement import TrainingConfig
from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.stages.base import train_base_stage
from syn4seg.stages.joint import check_joint_shares
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
        report: takes facts for the `progress` of `fit`, from any rank.
    """

    rank: int
    world: int
    device: str
    report: Callable[[dict[str, Any]], None]


Loop = Callable[[dict[str, Any], WorkerContext], Any]
"""What every process runs: (arguments, its context) -> a value, of which rank 0's is returned."""


def fit(
    loop: Loop,
    arguments: dict[str, Any],
    workers: TrainingConfig,
    *,
    name: str,
    device: str = "cpu",
    progress: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> Any:
    """Run a loop in `workers.workers` processes of Ray Train, or with 0 in this one; return what rank 0 returns.

    When a process dies (kill -9, a lost node) or raises, all are started again, at most `workers.max_failures` times, and call
    the loop anew: it is the loop that writes a checkpoint (rank 0 alone, atomically, in the run directory, which every node
    must see) and goes on from it. A UserError is never tried again.

    Args:
        loop: importable on the workers, or picklable; it must not assume a working directory.
        arguments: small picklable values; the loop's first argument.
        workers: `placement.training`.
        name: of this training, in Ray's own records.
        device: of the process with `workers.workers` = 0; workers are on a GPU if they have a share of one.
        progress: called in this process, in a thread of its own, with what the loop reports.

    Raises:
        UserError: the workers do not fit on the cluster, were lost too often, or the loop raised it.
        WorkerError: the loop failed otherwise.
    """
    if not workers.workers:
        return loop(arguments, WorkerContext(0, 1, device, progress))
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    preflight([], node_resources(), workers)
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(start_seconds()))
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    scratch = tempfile.mkdtemp(prefix="syn4seg-train-")  # on this node, where Train's controller is; no checkpoint goes there
    board = start_here(TrainingBoard)
    trainer = TorchTrainer(
        lambda: _work(loop, arguments, board, "cuda" if workers.gpus else "cpu"),
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.workers,
            use_gpu=workers.gpus > 0,
            resources_per_worker=worker_resources(workers),
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
        raise local_error("training", error, ray.get(board.first_mistake.remote())) from error
    else:
        mistake: Any = ray.get(board.first_mistake.remote())
        if mistake is not None:
            raise UserError(mistake.line)
        return result.return_value
    finally:
        ray.kill(board)
        shutil.rmtree(scratch, ignore_errors=True)


def start_here(actor: type) -> Any:
    """Start a small actor on this node; return its handle, with which it ends."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return ray.remote(num_cpus=0, label_selector={"ray.io/node-id": node})(actor).remote()


def worker_resources(workers: TrainingConfig) -> dict[str, float]:
    """Return what one worker takes, as Ray names it."""
    return {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}) | workers.resources


class TrainingBoard:
    """Where workers leave what the driver is to know: facts in order, and the first mistake that no restart would mend."""

    def __init__(self):
        self.facts: list[dict[str, Any]] = []
        self.mistake: Failure | None = None

    def report(self, facts: dict[str, Any]) -> None:
        """Add facts."""
        self.facts.append(facts)

    def give_up(self, mistake: Failure) -> None:
        """Keep the first mistake."""
        self.mistake = self.mistake or mistake

    def take(self) -> list[dict[str, Any]]:
        """Return the facts since the last call."""
        facts, self.facts = self.facts, []
        return facts

    def first_mistake(self) -> Failure | None:
        """Return the first mistake."""
        return self.mistake


def _work(loop: Loop, arguments: dict[str, Any], board: Any, device: str) -> Any:
    """Run the loop in one worker."""
    import ray
    import ray.train

    if ray.get(board.first_mistake.remote()) is not None:
        return None  # a restart after a user's mistake: there is nothing to retry
    context = ray.train.get_context()
    try:
        return loop(arguments, WorkerContext(context.get_world_rank(), context.get_world_size(), device, board.report.remote))
    except UserError as error:
        ray.get(board.give_up.remote(Failure.of(error)))
        raise


@contextlib.contextmanager
def _listening(board: Any, progress: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Pass on what the workers report, until the block ends and every report has been passed on."""
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
    """Let Ctrl-C interrupt as ever: Ray Train takes it over, ends the process with status 0 on it, and keeps it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def train_base_on_workers(config: Config, run: RunDir, report: Callable[[dict[str, Any]], None]) -> None:
    """Run the base stage in the processes of `placement.training`; afterwards its files are in the run.

    The same number of workers gives the same bits, whatever died meanwhile. Another number gives the same up to rounding: sums
    over a batch are added in another order (and a worker may have another number of threads than this process).

    Raises:
        UserError: a batch that cannot be shared; see `fit` and `syn4seg.segmenter.base.train_base`.
    """
    fit(_base_loop, {"config": config, "run": run.address}, config.placement.training, name="base", progress=report)


def _base_loop(arguments: dict[str, Any], context: WorkerContext) -> None:
    config: Config = arguments["config"]
    train_base_stage(config, RunDir(arguments["run"]), *load_dataset(config), context.device, context.report, read_with_ray)


def on_workers(config: Config) -> bool:
    """Return whether training and evaluation run in processes of their own."""
    return config.placement.runner == "ray" and config.placement.training.workers > 0


def check_workers(config: Config) -> None:
    """Refuse training workers that do not fit on the cluster or cannot share a batch, before anything is made.

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
    check_joint_shares(config, workers.workers)
