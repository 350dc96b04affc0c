"""The novel stage beside the stream that feeds it: labelling in a thread of the driver, training here or in Ray Train's processes.

They meet in the run directory alone. Trainers look for the records that they need next, so whoever is killed, trainer, driver
or cluster, takes nothing along; besides, they only ask whether labelling has ended, and how.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from actors.cluster import node_resources
from actors.evaluation import evaluate_on_workers
from actors.graph import operator_pools
from actors.placement import Operator, preflight
from actors.training import WorkerContext, fit, on_workers
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.stages.draw_training import train_draw
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.setup import draws_of, load_dataset
from syn4seg.store.pulse import Pulse
from syn4seg.store.rundir import RunDir

ASK_SECONDS = 0.5
"""How often a trainer in another process asks after labelling."""
STOP_SECONDS = 10.0
"""How long labelling may take to stop after training has failed; it stops between two batches, or with the process."""
TELL_SECONDS = 0.2
"""Shortest time between two words about progress."""

IsLabeled = Callable[[int], bool]
"""Whether the labels of a draw are complete; raises if labelling has failed."""
Progress = Callable[[int, int], None]


def always_labeled(draw: int) -> bool:
    """`Labelled` of finished labels."""
    return True


def training_fits_beside_stream(config: Config) -> bool:
    """Whether the processes of training fit on the cluster beside the pools of the stream."""
    if not on_workers(config):
        return True
    stream = [Operator(LabelBoard, {}, pool, name) for name, pool in operator_pools(config).items()]
    try:
        preflight(stream, node_resources(), config.placement.training)
    except UserError:
        return False
    return True


def start_label_board() -> Any:
    """Handle of a new `Notice` on this node; it ends with the driver."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return ray.remote(num_cpus=0, label_selector={"ray.io/node-id": here})(LabelBoard).remote()


class LabelBoard:
    """A small actor: which draws are labelled, and why labelling failed, for trainers in other processes."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.failure = ""

    def finish(self, draws: Iterable[int]) -> None:
        """These draws are complete."""
        self.done += draws

    def fail(self, reason: str) -> None:
        """Labelling has failed."""
        self.failure = reason

    def state(self) -> tuple[list[int], str]:
        """Finished draws, and the failure or an empty text."""
        return self.done, self.failure


class RemoteLabelState:
    """`Labelled` of a trainer in another process.

    Args:
        notice: handle of a `Notice`.
    """

    def __init__(self, notice: Any):
        self.notice, self.next_time, self.done = notice, 0.0, []

    def __call__(self, draw: int) -> bool:
        import ray

        if draw not in self.done and time.monotonic() >= self.next_time:
            self.done, failure = ray.get(self.notice.state.remote())
            if failure:
                raise UserError(failure)
            self.next_time = time.monotonic() + ASK_SECONDS
        return draw in self.done


class LabelingStopped(Exception):
    """Labelling was told to stop, because training has failed."""


class LabelingThread:
    """Labels draw after draw in a thread, while the block runs; the first failure of either side ends the other.

    The main thread stays free, so it can be interrupted; the thread ends with the process.

    Args:
        label: labels one draw; called with the draw, and with what it must call between two batches.
        draws: in this order.
        notice: handle of a `Notice` for trainers in other processes.
    """

    def __init__(self, label: Callable[[int, Callable[[], None]], None], draws: Sequence[int], notice: Any = None):
        self.label, self.draws, self.notice = label, draws, notice
        self.done: set[int] = set()
        self.failure: BaseException | None = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._work, name="labelling", daemon=True)

    def labelled(self, draw: int) -> bool:
        """Whether the labels of a draw are complete; raises what labelling raised."""
        if self.failure is not None:
            raise self.failure
        return draw in self.done

    def _work(self) -> None:
        try:
            for draw in self.draws:
                self.label(draw, self._go_on)
                self.done.add(draw)
                if self.notice is not None:
                    self.notice.finish.remote([draw])
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self.failure = error
            if self.notice is not None:
                self.notice.fail.remote(" ".join(str(error).split()) or type(error).__name__)

    def _go_on(self) -> None:
        if self.ending.is_set():
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
            failed_first = self.failure
            self.ending.set()
            self.thread.join(STOP_SECONDS)
            if failed_first is not None:
                raise failed_first from None


def train_and_evaluate(
    config: Config, run: RunDir, dataset: Dataset, fold: Fold, bars: Sequence[Progress], *, evaluate: bool, labelled: IsLabeled
) -> dict[int, dict[str, np.ndarray]]:
    """Trains every row of every draw on labels that are there or still coming, and scores them on the queries.

    Args:
        bars: progress of the steps of all draws, and of the queries.
        labelled: see `Labelled`; picklable where training has processes of its own.

    Returns:
        Confusion matrices by draw and row; empty without `evaluate`.
    """
    pulse = Pulse(run.log, stage="training")

    def told(facts: dict[str, Any]) -> None:
        bars[0](facts["done"], facts["total"])
        pulse(**facts)

    if not on_workers(config):
        stage = NovelStage(config, run, dataset, fold)
        _train(stage, labelled, told)
        return stage.score_queries(bars[1]) if evaluate else {}
    parts = {"config": config.model_dump(mode="json"), "run": run.address, "labelled": labelled}
    fit(_loop, parts, config.placement.training, name="novel", progress=told)
    return evaluate_on_workers(config, run, dataset, fold, bars[1]) if evaluate else {}


def _loop(parts: dict[str, Any], group: WorkerContext) -> None:
    """What each process of Ray Train runs."""
    config = Config.model_validate(parts["config"])
    config = config.model_copy(update={"placement": config.placement.model_copy(update={"device": group.device})})
    dataset, fold = load_dataset(config)
    next_time = 0.0

    def tell(facts: dict[str, Any]) -> None:
        nonlocal next_time
        if group.rank == 0 and (facts["done"] == facts["total"] or time.monotonic() >= next_time):
            group.tell(facts)
            next_time = time.monotonic() + TELL_SECONDS

    _train(NovelStage(config, RunDir(parts["run"]), dataset, fold), parts["labelled"], tell)


def _train(stage: NovelStage, labelled: IsLabeled, tell: Callable[[dict[str, Any]], None]) -> None:
    """Trains draw after draw, and tells after each step: steps done and in all (of all draws), the draw, and the step's loss."""
    draws = draws_of(stage.config)
    for number, draw in enumerate(draws):

        def stepped(done: int, total: int, before: int = number, draw: int = draw) -> None:
            tell({"done": before * total + done, "total": len(draws) * total, "draw": draw, "loss": stage.loss})

        train_draw(stage, draw, stepped, labelled)
