"""The novel stage beside the stream that feeds it: labeling in a thread of the driver, training here or in Ray Train's processes.

They meet in the run directory alone. Trainers poll it for the records that they need next, so whoever is killed, trainer, driver
or cluster, takes nothing along; besides, they only ask whether labeling has ended, and how.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from actors.cluster import node_resources
from actors.evaluation import evaluate_run
from actors.graph import operator_pools
from actors.placement import Operator, preflight
from actors.readers import read_with_ray
from actors.training import WorkerContext, fit, on_workers
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.stages.draw_training import train_draw
from syn4seg.stages.joint import train_network
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.readers import ReadAhead, read_ahead
from syn4seg.stages.rows import joint_names
from syn4seg.stages.setup import draws_of, load_dataset
from syn4seg.store.pulse import Pulse
from syn4seg.store.rundir import RunDir

POLL_SECONDS = 0.5
"""How often a trainer in another process asks whether labeling has ended."""
STOP_SECONDS = 10.0
"""How long labeling may take to stop after training has failed; it stops between two batches, or with the process."""
REPORT_SECONDS = 0.2
"""Shortest time between two reports of progress."""

IsLabeled = Callable[[int], bool]
"""Returns whether the labels of a draw are complete; raises if labeling has failed."""
Progress = Callable[[int, int], None]


def always_labeled(draw: int) -> bool:
    """Return True: an `IsLabeled` for finished labels."""
    return True


def training_fits_beside_stream(config: Config) -> bool:
    """Return whether the processes of training fit on the cluster beside the pools of the stream."""
    if not on_workers(config):
        return True
    stream = [Operator(LabelBoard, {}, pool, name) for name, pool in operator_pools(config).items()]
    try:
        preflight(stream, node_resources(), config.placement.training)
    except UserError:
        return False
    return True


class LabelBoard:
    """A small actor: which draws are labeled, and why labeling failed, for trainers in other processes."""

    def __init__(self) -> None:
        self.draws: list[int] = []
        self.failure = ""

    def finish(self, draws: Iterable[int]) -> None:
        """Note that draws are complete."""
        self.draws += draws

    def fail(self, reason: str) -> None:
        """Note that labeling has failed."""
        self.failure = reason

    def state(self) -> tuple[list[int], str]:
        """Return the finished draws, and the failure or an empty text."""
        return self.draws, self.failure


class RemoteLabelState:
    """`IsLabeled` of a trainer in another process.

    Args:
        board: handle of a `LabelBoard`.
    """

    def __init__(self, board: Any):
        self.board, self.next_time, self.draws = board, 0.0, []

    def __call__(self, draw: int) -> bool:
        import ray

        if draw not in self.draws and time.monotonic() >= self.next_time:
            self.draws, failure = ray.get(self.board.state.remote())
            if failure:
                raise UserError(failure)  # a training that waits for labels is not retried; the driver raises the cause
            self.next_time = time.monotonic() + POLL_SECONDS
        return draw in self.draws


class LabelingStopped(Exception):
    """Labeling has stopped, because training has failed."""


class LabelingThread:
    """Labels draw after draw in a thread, while the block runs; the first failure of either side ends the other.

    The main thread stays free, so it can be interrupted; the thread ends with the process.

    Args:
        label: labels one draw; called with the draw, and with what it must call between two batches.
        draws: in this order.
        board: handle of a `LabelBoard` for trainers in other processes.
    """

    def __init__(self, label: Callable[[int, Callable[[], None]], None], draws: Sequence[int], board: Any = None):
        self.label, self.draws, self.board = label, draws, board
        self.done: set[int] = set()
        self.failure: BaseException | None = None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work, name="labeling", daemon=True)

    def is_labeled(self, draw: int) -> bool:
        """Return whether the labels of a draw are complete; raise what labeling raised."""
        if self.failure is not None:
            raise self.failure
        return draw in self.done

    def _work(self) -> None:
        try:
            for draw in self.draws:
                self.label(draw, self._raise_if_stopping)
                self.done.add(draw)
                if self.board is not None:
                    self.board.finish.remote([draw])
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self.failure = error
            if self.board is not None:
                self.board.fail.remote(" ".join(str(error).split()) or type(error).__name__)

    def _raise_if_stopping(self) -> None:
        if self.stopping.is_set():
            raise LabelingStopped

    def __enter__(self) -> LabelingThread:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            while self.thread.is_alive():
                self.thread.join(0.2)
            if self.failure is not None:
                raise self.failure
        elif isinstance(error, Exception):  # not where a person has interrupted: then everything ends with the process
            first_failure = self.failure
            self.stopping.set()
            self.thread.join(STOP_SECONDS)
            if first_failure is not None:
                raise first_failure from None


def train_and_evaluate(
    config: Config, run: RunDir, dataset: Dataset, fold: Fold, bars: Sequence[Progress], *, evaluate: bool, is_labeled: IsLabeled
) -> dict[int, dict[str, np.ndarray]]:
    """Train every row of every draw on labels that are there or still coming, and score them on the queries.

    Args:
        bars: progress of the steps of the novel and of the joint stage, of all draws, and of the queries.
        is_labeled: see `IsLabeled`; picklable where training has processes of its own.

    Returns:
        Confusion matrices by draw and row; empty without `evaluate`.
    """
    pulse = Pulse(run.log, stage="training")

    def report(facts: dict[str, Any]) -> None:
        bars[1 if "network" in facts else 0](facts["done"], facts["total"])
        pulse(**facts)

    if not on_workers(config):
        stage = NovelStage(config, run, dataset, fold)
        _train(stage, is_labeled, report)
        return stage.score_queries(bars[2]) if evaluate else {}
    arguments = {"config": config, "run": run.address, "is_labeled": is_labeled}
    fit(_loop, arguments, config.placement.training, name="novel", progress=report)
    return evaluate_run(config, run, dataset, fold, bars[2]) if evaluate else {}


def _loop(arguments: dict[str, Any], context: WorkerContext) -> None:
    """Train in a process of Ray Train."""
    config: Config = arguments["config"]
    config = config.model_copy(update={"placement": config.placement.model_copy(update={"device": context.device})})
    dataset, fold = load_dataset(config)
    next_time = 0.0

    def report(facts: dict[str, Any]) -> None:
        nonlocal next_time
        if context.rank == 0 and (facts["done"] == facts["total"] or time.monotonic() >= next_time):
            context.report(facts)
            next_time = time.monotonic() + REPORT_SECONDS

    _train(NovelStage(config, RunDir(arguments["run"]), dataset, fold), arguments["is_labeled"], report, read_with_ray)


def _train(
    stage: NovelStage, is_labeled: IsLabeled, report: Callable[[dict[str, Any]], None], read: ReadAhead = read_ahead
) -> None:
    """Train the classifiers of draw after draw, then the networks of the joint stage; report after each step: steps done and in
    all (of all draws), the draw, the step's loss, and in the joint stage the name of the network."""
    draws = draws_of(stage.config)
    for number, draw in enumerate(draws):

        def after_step(done: int, total: int, before: int = number, draw: int = draw) -> None:
            report({"done": before * total + done, "total": len(draws) * total, "draw": draw, "loss": stage.loss})

        train_draw(stage, draw, after_step, is_labeled)
    networks, steps = joint_names(stage.config), stage.config.joint.steps
    for number, (draw, name) in enumerate(networks):
        while not is_labeled(draw):
            time.sleep(POLL_SECONDS)

        def after_joint_step(done: int, loss: float, before: int = number, draw: int = draw, name: str = name) -> None:
            report({"done": before * steps + done, "total": len(networks) * steps, "draw": draw, "loss": loss, "network": name})

        train_network(stage, draw, name, after_joint_step, read)
