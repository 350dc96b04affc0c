"""The joint stage of a run: the network of a row and draw, trained on base, support and accepted synthetic images (method.md 5.4).

It starts from the base network and the row's classifier, once all labels of the draw are there. What a reader needs to make the
views of a step is a small value (`ImageReader`), so readers may be processes of their own.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.data.support import support_label
from syn4seg.schema import FAULT
from syn4seg.stages.arrivals import add_places
from syn4seg.stages.base_data import Photos, base_photos
from syn4seg.stages.classifiers import digest_of_ids, load_classifier, read_learned_digest, schedule_of, seed_of
from syn4seg.stages.controls import ControlLabels
from syn4seg.stages.draw_training import broadcast_from_rank0
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.plan import check_labelled, read_planned_samples
from syn4seg.stages.readers import ReadAhead, read_ahead
from syn4seg.stages.rows import IMAGE_LABEL, ROWS, TRUTH, WITHOUT_VERDICT, joint_rows
from syn4seg.stages.setup import base_images, canvas_of, load_dataset, support_of
from syn4seg.stages.support import Registration
from syn4seg.store.files import exists, remove
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import write_sealed

if TYPE_CHECKING:
    from syn4seg.segmenter.joint import JointSchedule, JointViews
    from syn4seg.segmenter.network import Classifier
    from syn4seg.segmenter.novel import Kind, TrainingSample

CACHE_BYTES = 2 * 2**30
"""Decoded support and synthetic images that a reader keeps."""


def joint_schedule(config: Config) -> JointSchedule:
    """Return how the joint stage of a configuration learns."""
    from syn4seg.segmenter.joint import JointSchedule

    joint, novel = config.joint, config.novel
    assert novel.trains != "classifier"
    same = ("steps", "lr", "decoder_factor", "classifier_factor", "weight_decay", "warmup", "norms", "average")
    return JointSchedule(
        trains=novel.trains,
        per_step=_per_step(config),
        synthetic_weight=novel.synthetic_weight,
        confidence_weight=novel.confidence_weight,
        loss=schedule_of(config),
        **{key: getattr(joint, key) for key in same},
    )


def _per_step(config: Config) -> dict[str, int]:
    joint = config.joint
    return {"support": joint.support_batch, "synthetic": joint.synthetic_batch, "replay": config.base_images_used[2]}


@dataclass
class ImageReader:
    """Reads the images of the joint stage with their labels; picklable, and it opens the data set where it is used.

    Attributes:
        run: address of the run.
        row: of the ablation, a key of `ROWS`.
        synthetic: plan row of every sample that the row learns from, by id.
        support: novel dataset id and image id by the name of a support sample.
        predicted: base images without masks: what the base model is sure of, uint8 (size, size) on the canvas, by id.
    """

    config: Config
    run: str
    draw: int
    row: str
    synthetic: dict[str, dict[str, Any]]
    support: dict[str, tuple[int, str]]
    predicted: dict[str, np.ndarray] = field(default_factory=dict)
    cache: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    cached_bytes: int = 0

    def __getstate__(self) -> dict[str, Any]:
        names = ("config", "run", "draw", "row", "synthetic", "support", "predicted")
        return {name: self.__dict__[name] for name in names} | {"cache": {}, "cached_bytes": 0}

    @cached_property
    def _data(self) -> tuple[Dataset, Fold]:
        return load_dataset(self.config)

    @cached_property
    def _photos(self) -> Photos:
        return base_photos(self.config, self._data[0])

    @cached_property
    def _controls(self) -> ControlLabels:
        return ControlLabels(self.config, RunDir(self.run), self._data[1], self.draw, {ROWS[self.row][1]} & {IMAGE_LABEL, TRUTH})

    @cached_property
    def _samples(self) -> Any:
        return RunDir(self.run).draw(self.draw)

    def __call__(self, kind: Kind, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return an image uint8 (H, W, 3) and its class indices uint8 (H, W)."""
        if kind == "replay":
            dataset, fold = self._data
            if self.config.novel.base_data != "labelled":
                return canvas_of(self.config).image(self._photos.image(name)), self.predicted[name]
            return dataset.image(name), fold.to_base_index[dataset.mask(name)]
        if name not in self.cache:
            found = self._support(name) if kind == "support" else self._synthetic(name)
            size = sum(part.nbytes for part in found)
            if self.cached_bytes + size > CACHE_BYTES:
                return found
            self.cached_bytes += size
            self.cache[name] = found
        return self.cache[name]

    def _support(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        (dataset, fold), (target, image_id) = self._data, self.support[name]
        label = support_label(dataset.mask(image_id), fold, target, base_in_support=self.config.data.base_in_support)
        return dataset.image(image_id), label

    def _synthetic(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        ((sample, image),) = self._samples.read([self.synthetic[name]])
        labels = sample.labels | self._controls.of(sample, image, None)
        return image, labels[ROWS[self.row][1]]


def joint_views(
    config: Config,
    run: RunDir,
    dataset: Dataset,
    fold: Fold,
    draw: int,
    row: str,
    share: tuple[int, int] = (0, 1),
    synthetic: dict[str, dict[str, Any]] | None = None,
    replayed: Sequence[TrainingSample] = (),
) -> JointViews:
    """Return the views of every step of a row and draw, for one process of those that share the steps.

    Args:
        row: of the ablation, a key of `ROWS`.
        share: number of the process, and how many there are.
        synthetic: `learned_samples(...)`, where they are known already.
        replayed: of the novel stage; without base masks they are the base images here too.
    """
    from syn4seg.segmenter.joint import JointViews
    from syn4seg.segmenter.views import Augmentation

    joint = config.joint
    synthetic, support = learned_samples(run, draw, row, fold) if synthetic is None else synthetic, {}
    for target, ids in support_of(config, dataset, fold, draw).items():
        for shot, image_id in enumerate(ids):
            support[f"{target}-{shot}-{image_id}"] = target, image_id
    predicted = {s.sample_id: s.label for s in replayed} if config.novel.base_data != "labelled" else {}
    reader = ImageReader(config, run.address, draw, row, synthetic, support, predicted)
    base = predicted or (base_images(config, dataset, fold) if config.novel.base_data == "labelled" and joint.base_batch else [])
    pools = {"support": sorted(support), "synthetic": sorted(synthetic), "replay": sorted(base)}
    augmentation = Augmentation(
        joint.crop or config.segmenter.size,
        scale=joint.scale,
        native=joint.scale_of == "native",
        rotate=joint.rotate,
        blur=joint.blur,
        colour=joint.colour,
    )
    return JointViews(pools, _per_step(config), augmentation, seed_of(config, draw), reader, share)


def learned_samples(run: RunDir, draw: int, row: str, fold: Fold) -> dict[str, dict[str, Any]]:
    """Return what finds the samples that a row learns from, by id; rejected ones are among them if its labels know no verdict."""
    bank, column = ROWS[row]
    if not bank:
        return {}
    records = run.draw(draw).table().select(["sample_id", "reason"])
    plan = read_planned_samples(run).select(["sample_id", "class_id", "bank"])
    plan = plan.filter(pc.equal(plan["bank"], bank)).join(records, "sample_id").combine_chunks()
    used = pc.equal(plan["reason"], "")
    if column in WITHOUT_VERDICT:
        used = pc.invert(pc.starts_with(plan["reason"], FAULT))
    names = pa.array(fold.index_names, pa.string())
    plan = plan.filter(used).append_column("class", names.take(plan.filter(used)["class_id"]))
    return {found["sample_id"]: found for found in add_places(run, draw, plan.drop_columns(["reason"])).to_pylist()}


def train_network(
    stage: NovelStage, draw: int, name: str, progress: Callable[[int, float], None], read: ReadAhead = read_ahead
) -> None:
    """Train and keep the network of a row and draw, unless it is there and learned from the samples that are accepted now.

    Args:
        name: of the network among the rows of the results, see `joint_rows`.
        progress: called with (steps done, loss of the whole step).
        read: who makes the batches, with `placement.training.readers` of them.

    Raises:
        UserError: the labels of the draw are incomplete, or the row has no classifier yet.
    """
    from syn4seg.segmenter.joint import check_shares, train_jointly
    from syn4seg.segmenter.network import read_segmenter, save_segmenter
    from syn4seg.segmenter.parallel import rank_and_world_size

    config, run, fold, (rank, world) = stage.config, stage.run, stage.fold, rank_and_world_size()
    row, paths, schedule = joint_rows(config)[name], run.draw(draw), joint_schedule(config)
    path, partial = paths.checkpoint(name), paths.checkpoint(name).with_name(f"{name}-training.pt")

    def look() -> tuple[dict[str, dict[str, Any]], bool, Classifier]:
        check_labelled(run, draw)
        samples = learned_samples(run, draw, row, fold)
        return samples, read_learned_digest(path) == digest_of_ids(samples), load_classifier(paths.checkpoint(row))

    samples, is_done, start = broadcast_from_rank0(look)  # files that appear meanwhile must not part the processes
    if is_done:
        if rank == 0 and exists(partial):
            remove(partial)
        progress(schedule.steps, float("nan"))
        return
    views = joint_views(config, run, stage.dataset, fold, draw, row, (rank, world), samples, stage.base.replayed)
    learned = digest_of_ids(samples)
    check_shares(views, world)
    registered = Registration.load(paths).classifier_on("cpu") if schedule.confidence_weight else None
    network = train_jointly(
        stage.segmenter,
        start,
        read(views, config.placement.training.readers),
        base_classes=len(fold.base),
        schedule=schedule,
        seed=seed_of(config, draw),
        facts={"learned": learned, "name": name},
        registered=registered,
        checkpoint=partial,
        progress=progress,
    )
    if rank == 0:
        shape = read_segmenter(run.base)[1]
        facts = {"learned": learned, "row": row, "draw": draw, "steps": schedule.steps, "trains": schedule.trains}
        whole = shape.mean is not None  # a model that was extended: its backbone's folder may be gone
        save_segmenter(network, path, backbone=shape.backbone, facts=facts, write=write_sealed, whole=whole)
        if exists(partial):
            remove(partial)


def check_joint_shares(config: Config, workers: int) -> None:
    """Refuse workers that cannot have equally many images of every step of each network, from the configuration alone.

    Raises:
        UserError: see `segmenter.joint.check_shares`.
    """
    from syn4seg.segmenter.joint import refuse_shares

    for row in joint_rows(config).values():
        refuse_shares(sum(n for kind, n in _per_step(config).items() if kind != "synthetic" or ROWS[row][0]), workers)
