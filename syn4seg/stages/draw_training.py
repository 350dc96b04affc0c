"""The classifiers of one draw in training, all ablation rows side by side, on labels that may still be coming in.

The row that is furthest behind always takes the next step. That order is the same in every process of a training, however
late it sees a label, so that their sums over all processes meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from syn4seg.errors import DamagedError, UserError
from syn4seg.schema import FAULT
from syn4seg.segmenter.novel import NovelTraining, TrainingSample, is_local_sample
from syn4seg.segmenter.parallel import rank_and_world_size
from syn4seg.stages import classifiers
from syn4seg.stages.arrivals import Arrivals
from syn4seg.stages.controls import ControlLabels
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.rows import HDIG, NAMED, ROWS, WITHOUT_VERDICT, rows_of
from syn4seg.stages.setup import training_device
from syn4seg.store.files import remove, write_atomically
from syn4seg.store.tensors import read_tensors

if TYPE_CHECKING:
    from syn4seg.segmenter.network import Classifier

CHECKPOINT_STEPS = 50
"""Steps between two checkpoints of a row."""
READ_BATCH = 16
"""Samples that are read between two steps."""
PAUSE_SECONDS = 0.2
"""Pause where there is neither a new label nor a step that can be taken."""

T = TypeVar("T")


def train_draw(
    stage: NovelStage, draw: int, progress: Callable[[int, int], None], is_labelled: Callable[[int], bool] = lambda draw: True
) -> None:
    """Train every row of a draw that has no classifier yet, on labels that may still be coming in.

    Args:
        progress: called with (steps done, steps in all) after each step.
        is_labelled: whether the labels of a draw are complete; it may raise to end the training.

    Raises:
        UserError: the labels are complete, but some sample has none.
    """
    training = DrawTraining(stage, draw)
    while not training.finished:
        complete = is_labelled(draw)  # first: what is finished by then is read below
        took, stepped = training.take(complete), training.step()
        if stepped:
            stage.loss = training.loss
            progress(*training.steps)
        elif not took and complete:
            raise UserError(
                f"{stage.run.root}: {training.arrivals.remaining} samples of draw {draw} have no label; run "
                "`syn4seg refine` (or `syn4seg run`) with the same configuration first"
            )
        elif not took:
            time.sleep(PAUSE_SECONDS)


class DrawTraining:
    """Every row of a draw that has no classifier yet, or whose classifier was trained on other samples than are accepted now.

    The latter happens when a quarantined sample was mended.

    Args:
        stage: segmenter, base samples and cached features.
        draw: a registered draw.
    """

    def __init__(self, stage: NovelStage, draw: int):
        self.stage, self.draw, self.paths = stage, draw, stage.run.draw(draw)
        self.loss = float("nan")  # of the last step
        config, fold, registration = stage.config, stage.fold, stage.register(draw)
        plan = read_planned_samples(stage.run).select(["sample_id", "class_id", "bank"])
        names = pa.array(fold.index_names, pa.string())
        self.arrivals = Arrivals(stage.run, draw, plan.append_column("class", names.take(plan["class_id"])))
        self.samples: dict[str, list[str]] = {}  # by prompt bank
        for sample_id, bank in zip(plan["sample_id"].to_pylist(), plan["bank"].to_pylist(), strict=True):
            self.samples.setdefault(bank, []).append(sample_id)
        rows, states = broadcast_from_rank0(self._open_rows)
        if "support_only" in rows:
            rows.remove("support_only")
            self._save("support_only", registration.classifier_on("cpu"))
        self.trainings: dict[str, NovelTraining] = {}
        if rows:
            fixed = [*stage.support_samples(draw), *stage.base.replayed]
            start = classifiers.initial_classifier(stage.segmenter, registration.prototypes, fold).to(training_device(config))
            schedule, seed = classifiers.schedule_of(config), classifiers.seed_of(config, draw)
        for row in rows:
            planned = self.samples.get(ROWS[row][0], [])
            training = NovelTraining(start, fixed, planned, base_classes=len(fold.base), schedule=schedule, seed=seed)
            if row in states:
                training.load_state(states[row])
            self.trainings[row] = training
        self.controls = ControlLabels(config, stage.run, fold, draw, named=stage.named)
        self.total = sum(training.schedule.steps for training in self.trainings.values())

    @property
    def finished(self) -> bool:
        """True once every row has its classifier."""
        return not self.trainings

    @property
    def steps(self) -> tuple[int, int]:
        """Steps done and steps in all, of the rows that were open."""
        return self.total - sum(t.schedule.steps - t.next_step for t in self.trainings.values()), self.total

    def take(self, final: bool) -> bool:
        """Give some newly finished samples to every row; return whether there were any. For `final` see `Arrivals.take`."""
        arrived = self.arrivals.take(READ_BATCH, final)
        for plan_row, record, image in arrived:
            name, bank = plan_row["sample_id"], plan_row["bank"]
            labels, features, weight = {}, None, None
            if image is not None and is_local_sample(name):
                features = self.stage.features_of(name, image)
                weight = self.stage.pixel_weights(self.draw, features)
                labels = self.stage.training_labels(record.labels)
                if bank == HDIG:
                    labels |= self.stage.training_labels(self.controls.of(record, image, features))
            for row, training in self.trainings.items():
                row_bank, column = ROWS[row]
                if row_bank == bank:
                    accepted = image is not None and (not record.record["reason"] or column in WITHOUT_VERDICT)
                    sample = None
                    if accepted and features is not None:
                        sample = TrainingSample(name, features, labels[column], "synthetic", weight)
                    training.record_verdict(name, accepted, sample)
        return bool(arrived)

    def step(self) -> bool:
        """Take one step of the row that is furthest behind; return False where it still lacks verdicts on its samples."""
        row = min(self.trainings, key=lambda name: self.trainings[name].next_step)
        training = self.trainings[row]
        if not training.ready:
            return False
        self.loss = training.step()
        if training.finished:
            accepted = (name for name, is_accepted in training.accepted.items() if is_accepted)
            self._save(row, training.classifier, self._learned(row, accepted))
            if rank_and_world_size()[0] == 0:
                remove(self._checkpoint(row))
            del self.trainings[row]
        elif training.steps_done % CHECKPOINT_STEPS == 0 and rank_and_world_size()[0] == 0:
            from safetensors.torch import save

            write_atomically(self._checkpoint(row), save(training.state()))
        return True

    def _checkpoint(self, row: str) -> Any:
        """Return the path of an unfinished training, which by another network's masks is another one."""
        names = [row, self._learned(row, [])[:8]] if ROWS[row][1] == NAMED else [row]
        return self.paths.checkpoint("-".join([*names, "training"]))

    def _learned(self, row: str, samples: Iterable[str]) -> str:
        """Return the digest of what a row learns from: ids of samples, and of the control by name also the network that labels."""
        return classifiers.digest_of_ids([*samples, *([self.stage.named.digest] if ROWS[row][1] == NAMED else [])])

    def _save(self, row: str, classifier: Classifier, learned: str = "") -> None:
        if rank_and_world_size()[0] == 0:
            classifiers.save_classifier(self.paths.checkpoint(row), classifier, learned)

    def _open_rows(self) -> tuple[list[str], dict[str, Any]]:
        """Return the rows to be trained, and the checkpoints of those whose training was stopped."""
        rows, states = self._stale_rows(), {}
        for row in rows:
            try:
                states[row] = read_tensors(self._checkpoint(row))[0]
            except (FileNotFoundError, DamagedError):  # none, or damaged: the row starts over and ends the same
                continue
        return rows, states

    def _stale_rows(self) -> list[str]:
        """Return the rows without a classifier, and those whose classifier was trained on other samples than are accepted now.

        As long as some record is missing, the samples are taken to be unchanged: lost files are made again with the same bytes.
        """
        digests = {row: classifiers.read_learned_digest(self.paths.checkpoint(row)) for row in rows_of(self.stage.config)}
        records = self.paths.table() if any(digests.values()) else None
        if records is None or len(records) < sum(len(ids) for ids in self.samples.values()):
            return [row for row, digest in digests.items() if digest is None]
        reasons = dict(zip(records["sample_id"].to_pylist(), records["reason"].to_pylist(), strict=True))
        notes, stale = set(self.stage.run.quarantined_ids()), []
        for row, digest in digests.items():
            bank, column = ROWS[row]
            samples = {name: reasons[name] for name in self.samples.get(bank, [])}
            faults = {name for name, reason in samples.items() if reason.startswith(FAULT)}
            takes_rejected = column in WITHOUT_VERDICT
            used = (name for name, reason in samples.items() if not reason or (takes_rejected and name not in faults))
            changed = digest and (digest != self._learned(row, used) or faults - notes)  # a fault without note is made again
            if digest is None or changed:
                stale.append(row)
        return stale


def broadcast_from_rank0(compute: Callable[[], T]) -> T:
    """Return in every process of the group what `compute` returns in process 0, where alone it is called."""
    rank, world = rank_and_world_size()
    if world == 1:
        return compute()
    import torch.distributed as dist

    box = [compute() if rank == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # pyright: ignore[reportReturnType]
