"""The classifiers of one draw in training, all ablation rows side by side, on labels that may still be coming in.

Always the row that is furthest behind takes the next step. That order is the same in every process that trains along, however
late it sees a label, so their sums over all processes meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from syn4seg.errors import DamagedError, UserError
from syn4seg.schema import FAULT, LABEL_STAGES
from syn4seg.segmenter.novel import NovelTraining, Sample, owned
from syn4seg.segmenter.parallel import ranks
from syn4seg.stages.arrivals import Arrivals
from syn4seg.stages.classifiers import digest_of_ids, initial_classifier, read_learned_digest, save_classifier, schedule_of, seed_of
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.rows import ROWS, rows_of
from syn4seg.stages.setup import training_device
from syn4seg.store.files import remove, write_atomically
from syn4seg.store.tensors import load

if TYPE_CHECKING:
    from torch import Tensor


CHECKPOINT_STEPS = 50
"""Steps between two checkpoints of a row."""
READ_BATCH = 16
"""Samples that are read between two steps."""

T = TypeVar("T")


POLL_SECONDS = 0.2
"""Pause between two looks where there is neither a new label nor a step that can be taken."""


def train_draw(
    stage: NovelStage, draw: int, progress: Callable[[int, int], None], is_labelled: Callable[[int], bool] = lambda draw: True
) -> None:
    """Train every row of a draw that has no classifier yet, on labels that may still be coming in.

    Args:
        progress: called with (steps done, steps in all) after each step.
        is_labelled: whether the labels of a draw are complete; it may raise to end the training.

    Raises:
        UserError: they are complete, but some sample has none.
    """
    training = DrawTraining(stage, draw)
    while not training.finished:
        complete = is_labelled(draw)  # asked first: what is finished by then is read below
        took, stepped = training.take(complete), training.step()
        if stepped:
            stage.loss = training.loss
            progress(*training.steps)
        elif not took and complete:
            raise UserError(
                f"{stage.run.root}: {training.arrivals.left} samples of draw {draw} have no label; run "
                "`syn4seg refine` (or `syn4seg run`) with the same configuration first"
            )
        elif not took:
            time.sleep(POLL_SECONDS)


class DrawTraining:
    """Every row of a draw that has no classifier yet, or whose samples are not those any more that its classifier learned from
    (a quarantined sample was mended).

    Args:
        stage: segmenter, base samples and cached features.
        draw: a registered draw.
    """

    def __init__(self, stage: NovelStage, draw: int):
        self.stage, self.draw, self.paths = stage, draw, stage.run.draw(draw)
        config = stage.config
        registration, plan = stage.register(draw), read_planned_samples(stage.run).select(["sample_id", "class_id", "bank"])
        open_rows, states = self._found(plan)
        names = pa.array(stage.fold.index_names, pa.string())
        self.arrivals = Arrivals(stage.run, draw, plan.append_column("class", names.take(plan["class_id"])))
        self.trainings: dict[str, NovelTraining] = {}
        self.loss = float("nan")  # of the last step
        if "support_only" in open_rows:
            self._keep("support_only", registration.classifier_on("cpu"))
        learning = [row for row in open_rows if row != "support_only"]
        if not learning:
            return
        fixed = [*stage.support(draw), *stage.base.replayed]
        start = initial_classifier(stage.segmenter, registration.prototypes, stage.fold).to(training_device(config))
        ids, banks = plan["sample_id"].to_pylist(), plan["bank"].to_pylist()
        for row in learning:
            mine = [sample for sample, bank in zip(ids, banks, strict=True) if bank == ROWS[row][0]]
            self.trainings[row] = NovelTraining(
                start, fixed, mine, base_classes=len(stage.fold.base), schedule=schedule_of(config), seed=seed_of(config, draw)
            )
            if row in states:
                self.trainings[row].load(states[row])
        self.total = sum(training.schedule.steps for training in self.trainings.values())

    @property
    def finished(self) -> bool:
        """Whether every row has its classifier."""
        return not self.trainings

    @property
    def steps(self) -> tuple[int, int]:
        """Steps done and steps in all, of the rows that were open."""
        return self.total - sum(t.schedule.steps - t.next_step for t in self.trainings.values()), self.total

    def take(self, final: bool) -> bool:
        """Takes some newly finished samples to every row; whether there were any. For `final` see `Arrivals.take`."""
        found = self.arrivals.take(READ_BATCH, final)
        for row, record, image in found:
            columns: dict[str, np.ndarray] = {}
            features = weight = None
            if image is not None:
                columns = self.stage.columns(row["bank"], record)
            if image is not None and owned(row["sample_id"]):
                features = self.stage.features_of(row["sample_id"], image)
                weight = self.stage.pixel_weights(self.draw, features)
            for name, training in self.trainings.items():
                bank, column = ROWS[name]
                if bank == row["bank"]:
                    self._tell(training, row["sample_id"], columns.get(column), features, weight)
        return bool(found)

    def _tell(
        self, training: NovelTraining, name: str, label: np.ndarray | None, features: Tensor | None, weight: np.ndarray | None
    ) -> None:
        sample = None
        if label is not None and features is not None:
            sample = Sample(name, features, label, "synthetic", weight)
        training.verdict(name, label is not None, sample)

    def step(self) -> bool:
        """One step of the row that is furthest behind; whether its verdicts were there."""
        row = min(self.trainings, key=lambda name: self.trainings[name].next_step)
        training = self.trainings[row]
        if not training.ready:
            return False
        self.loss = training.step()
        if training.finished:
            self._keep(row, training.classifier, digest_of_ids(s for s, taken in training.accepted.items() if taken))
            if ranks()[0] == 0:
                remove(self._checkpoint(row))
            del self.trainings[row]
        elif training.steps_done % CHECKPOINT_STEPS == 0 and ranks()[0] == 0:
            from safetensors.torch import save

            write_atomically(self._checkpoint(row), save(training.state()))
        return True

    def _checkpoint(self, row: str) -> Any:
        return self.paths.checkpoint(f"{row}-training")

    def _keep(self, row: str, classifier: Any, learned: str = "") -> None:
        if ranks()[0] == 0:
            save_classifier(self.paths.checkpoint(row), classifier, learned)

    def _open(self, plan: pa.Table) -> list[str]:
        """Rows without a classifier, and those whose classifier has learned from other samples than are accepted now. As long
        as some record is missing, the samples are taken to be as they were: lost files are made again with the same bytes."""
        learned = {row: read_learned_digest(self.paths.checkpoint(row)) for row in rows_of(self.stage.config)}
        records = self.paths.table() if any(learned.values()) else None
        if records is None or len(records) < len(plan):
            return [row for row, digest in learned.items() if digest is None]
        reasons = dict(zip(records["sample_id"].to_pylist(), records["reason"].to_pylist(), strict=True))
        banks, noted = plan["bank"].to_pylist(), set(self.stage.run.noted())
        stale = []
        for row, digest in learned.items():
            bank, column = ROWS[row]
            raw = column in LABEL_STAGES[:2]  # rejected samples have these
            mine = {s: reasons[s] for s, b in zip(plan["sample_id"].to_pylist(), banks, strict=True) if b == bank}
            faults = {s for s, reason in mine.items() if reason.startswith(FAULT)}
            now = digest_of_ids(s for s, reason in mine.items() if not reason or (raw and s not in faults))
            if digest is None or (digest and (digest != now or faults - noted)):  # without its note a fault is made again
                stale.append(row)
        return stale

    def _found(self, plan: pa.Table) -> tuple[list[str], dict[str, Any]]:
        """The open rows and the checkpoints of those that were stopped, as the first process sees them."""
        if ranks()[0] != 0:
            return broadcast_from_rank0(([], {}))
        rows, states = self._open(plan), {}
        for row in rows:
            try:
                states[row] = load(self._checkpoint(row))[0]
            except (FileNotFoundError, DamagedError):  # none, or damaged: the row starts over and ends the same
                continue
        return broadcast_from_rank0((rows, states))


def broadcast_from_rank0(value: T) -> T:
    """The value of the first process, in all of them."""
    if ranks()[1] == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
