"""Measured rates: a miniature of the configured run in a temporary folder, with the real models, timed stage by stage.

The first call of every network is left out. Files are not counted but encoded, so images cost disk as they will.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.data.embedded import CLASSES
from syn4seg.errors import UserError
from syn4seg.planning.estimate import Estimate, estimate
from syn4seg.planning.rates import GPUS, Card, Kind, Rate, Rates, merge_rates, read_rates, stated_rates
from syn4seg.planning.workload import facts_of, kind_of, workload
from syn4seg.prompts.grammar import GrammarAgent
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.stages.rows import CLASS_NAME, HDIG
from syn4seg.stages.setup import base_images, canvas_of, is_prepared, load_dataset, speed_of
from syn4seg.store.rundir import RunDir

STEPS = 20  # of the novel stage's miniature


def plan_run(config: Config, rates_file: Path | None = None, measured: int = 0, card: str = "h100") -> Estimate:
    """Return the plan that `syn4seg plan` prints: with the data set if it is there, else with its published numbers.

    Args:
        rates_file: measured rates; what it does not hold is stated.
        measured: above 0, this many samples are measured here first.
        card: the stated GPU where no file is given.

    Raises:
        UserError: an unknown card, a damaged rates file, or a model, data set or device that is not there.
    """
    there = is_prepared(config)
    dataset, fold = load_dataset(config) if there else (None, None)
    rates = read_rates(rates_file) if rates_file else stated_rates(card)
    if measured:
        here = measure(config, measured, dataset, fold)
        rates = merge_rates(here, rates.measured) if rates_file is None else merge_rates(rates, here.measured)
    return estimate(config, facts_of(config, dataset, fold), rates)


def measure(config: Config, count: int, dataset: Dataset | None = None, fold: Fold | None = None) -> Rates:
    """Measure the rates of `count` samples of every stage, made here; without a data set, of the text encoders and the generator
    alone.

    Raises:
        UserError: a stage is placed on a GPU and this process has none, or a model cannot be loaded.
    """
    import torch

    if config.synthesis.source == "api":
        raise UserError("--measure: with synthesis.source=api it would ask for images; leave it out, and time is stated")
    facts = facts_of(config, dataset, fold)
    stages = {stage.stage: stage for stage in workload(config, facts)}
    if any(stage.kind == "gpu" for stage in stages.values()) and not torch.cuda.is_available():
        raise UserError(
            "--measure: the placement asks for a GPU, and this process has none; measure where the run will be, or "
            "add placement.device=cpu to measure on the CPU"
        )
    with tempfile.TemporaryDirectory(prefix="syn4seg-measure-") as folder:
        sample = _Miniature(config, max(2, count), Path(folder))
        images = sample.images(fold) if config.synthesis.source == "generate" else sample.imported()
        if dataset is not None and fold is not None:
            sample.labels(images, dataset, fold)
    rates = [
        Rate(name, stages[name].kind, stages[name].what, seconds, stages[name].flops, memory, sample.files.get(name, 0.0))
        for name, (seconds, memory) in sample.seconds.items()
        if name in stages and seconds > 0
    ]
    device, card = _device()
    return Rates(device, card, tuple(rates), date=datetime.date.today().isoformat(), about=f"{count} samples of each stage, here")


def _device() -> tuple[str, Card]:
    import torch

    if not torch.cuda.is_available():
        return platform.processor() or platform.machine(), GPUS["H100"]
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    known = next((card for key, card in GPUS.items() if key in name), GPUS["H100"])
    return name, Card(known.flops, memory)


class _Miniature:
    """A miniature of the run, timed stage by stage. `found`: stage -> seconds per unit and peak bytes on the GPU; `files`:
    stage -> bytes per unit on disk."""

    def __init__(self, config: Config, count: int, folder: Path):
        self.config, self.count, self.folder = config, count, folder
        self.seconds: dict[str, tuple[float, int]] = {}
        self.files: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, stage: str, kind: Kind, units: int) -> Iterator[None]:
        import torch

        if kind == "gpu":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        yield
        if kind == "gpu":
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if kind == "gpu" else 0
        self.seconds[stage] = (time.perf_counter() - started) / units, peak

    def _on(self, stage: str) -> tuple[Kind, str]:
        kind = kind_of(self.config, getattr(self.config.placement, stage))
        return kind, "cuda" if kind == "gpu" else "cpu"

    def images(self, fold: Fold | None) -> list[np.ndarray]:
        """Encode prompts and make whole generator batches, of at least `count` images in all."""
        from syn4seg.models.generators import generator_source, load_generator, load_text_encoder

        make, (kind, device) = self.config.synthesis, self._on("encoding")
        batches = -(-self.count // make.batch)
        world = generator_source(make.model).world
        unknown = CLASSES[:2] if world == "embedded" else ("dog", "bicycle")
        names = [fold.index_names[i] for i in fold.novel_indices] if fold else unknown
        agent = GrammarAgent(world, self.config.seed, per_round=-(-batches * make.batch // len(names)))
        texts = [text for name in names for text in agent.propose(name, 0, [], [])]
        encoder = load_text_encoder(make.model, device=device)
        encoder.encode(texts[:1])
        with self.timed("encoding", kind, len(texts)):
            encoded = encoder.encode(texts)
        del encoder
        kind, device = self._on("synthesis")
        load: Any = {
            "steps": make.steps,
            "guidance": make.guidance,
            "size": make.size,
            "device": device,
            "speed": speed_of(self.config),
        }
        generator, images = load_generator(make.model, **load), []

        def batch(number: int) -> np.ndarray:
            rows = [(number * make.batch + i) % len(texts) for i in range(make.batch)]
            return generator.generate([texts[i] for i in rows], encoded.rows(rows), list(range(make.batch)))[0]

        batch(0)
        with self.timed("synthesis", kind, batches * make.batch):
            for number in range(batches):
                images += list(batch(number))
        self.files["synthesis"] = float(np.mean([_png_bytes(image) for image in images]))
        return images

    def imported(self) -> list[np.ndarray]:
        """Return some of the images that are imported."""
        from syn4seg.data.photos import decode_image, list_pictures

        paths = [path for same in list_pictures(Path(str(self.config.synthesis.root))).values() for path in same]
        return [decode_image(path) for path in paths[: self.count]]

    def labels(self, images: list[np.ndarray], dataset: Dataset, fold: Fold) -> None:
        """Time everything behind the images, on small lists: base stage, support, labels, novel stage, queries."""
        from syn4seg.stages.base import make_base
        from syn4seg.stages.novel import NovelStage

        small, run = self._small(), RunDir(self.folder / "run")
        run.open(small)
        ends: list[float] = []
        lists = dataset.train, dataset.val
        try:
            if small.base.checkpoint == "train":
                dataset.train = lists[0][: max(4 * small.base.batch, self.count)]
            make_base(small, run, dataset, fold, lambda *_: ends.append(time.perf_counter()))
            if len(ends) > 1:
                self.seconds["base"] = (
                    (ends[1] - ends[0]) / (len(base_images(small, dataset, fold)) // small.base.batch * small.base.batch),
                    0,
                )
            dataset.train, dataset.val = lists[0], lists[1][: self.count]
            stage = NovelStage(small, run, dataset, fold)
            stage.register(0)
            self._novel(stage, images, self._labelled(run, images, fold))
        finally:
            dataset.train, dataset.val = lists

    def _small(self) -> Config:
        """Return the configuration with one draw, two epochs and few steps; the models are the same."""
        config = self.config
        return config.model_copy(
            update={
                "data": config.data.model_copy(update={"draws": 1, "first_draw": 0}),
                "base": config.base.model_copy(update={"epochs": 2}),
                "novel": config.novel.model_copy(update={"steps": STEPS, "replay_images": min(8, config.novel.replay_images)}),
                "labeling": config.labeling.model_copy(update={"base_prototype_images": 8}),
                "evaluation": config.evaluation.model_copy(update={"queries": None, "baselines": ()}),
            }
        )

    def _labelled(self, run: RunDir, images: list[np.ndarray], fold: Fold) -> list[list[np.ndarray]]:
        """Return the four labels of every image."""
        from syn4seg.stages.labels import BoundaryRefiner, Enhancer

        kind, device = self._on("labeling")
        labeling = self.config.labeling.model_copy(update={"rounds": 1})
        config = self.config.model_copy(update={"labeling": labeling})
        enhance, targets = Enhancer.from_run(run, 0, config, device), list(fold.novel_indices)
        enhance(images[0], targets[0])
        with self.timed("labeling", kind, len(images)):
            results = [enhance(image, targets[i % len(targets)]) for i, image in enumerate(images)]
        kind, device = self._on("refinement")
        refine, some = BoundaryRefiner.from_settings(self.config.refinement, device), self.config.refinement.images_per_pass
        refine(images[:1], [results[0].relabeled])
        with self.timed("refinement", kind, len(images)):
            parts = [slice(i, i + some) for i in range(0, len(images), some)]
            final = [label for part in parts for label, _ in refine(images[part], [m.relabeled for m in results[part]])]
        labels = [[m.draft, m.kept, m.relabeled, label] for m, label in zip(results, final, strict=True)]
        sizes = np.array([[_png_bytes(label) for label in four] for four in labels], float)
        records = np.mean([len(str(m.audit)) for m in results]) + 700
        self.files |= {"labeling": float(sizes[:, :3].sum(1).mean() + records), "refinement": float(sizes[:, 3].mean())}
        return labels

    def _novel(self, stage: Any, images: list[np.ndarray], labels: list[list[np.ndarray]]) -> None:
        """Time features, classifiers and predictions."""
        from syn4seg.segmenter.novel import TrainingSample
        from syn4seg.stages.classifiers import initial_classifier, save_classifier, train_row
        from syn4seg.stages.rows import ROWS, rows_of

        kind, count = kind_of(self.config), len(images)
        with self.timed("features", kind, count):
            features = [stage.features_of(f"sample-{i:05d}", image) for i, image in enumerate(images)]
        fixed, start = (
            [*stage.support_samples(0), *stage.base.replayed],
            initial_classifier(stage.segmenter, stage.register(0).prototypes, stage.fold),
        )
        canvas, seconds = canvas_of(stage.config), []
        with self.timed("novel", kind, 1):
            for row in rows_of(stage.config):
                bank, column = ROWS[row]
                drawn = [
                    TrainingSample(f"sample-{i:05d}", features[i], canvas.label(four[LABEL_COLUMNS.index(column)]), "synthetic")
                    for i, four in enumerate(labels)
                    if column and bank == (HDIG, CLASS_NAME)[i % 2]
                ]
                began = time.perf_counter()
                save_classifier(stage.run.draw(0).checkpoint(row), train_row(stage.config, stage.fold, start, fixed + drawn, 0))
                seconds.append(time.perf_counter() - began)
        self.seconds["novel"] = float(np.median(seconds)) / STEPS, self.seconds["novel"][1]
        with self.timed("evaluation", kind, len(stage.dataset.val)):
            stage.score_queries(lambda *_: None)
        per_query = self.seconds["evaluation"][0] - self.seconds["features"][0]
        self.seconds["evaluation"] = max(per_query, 0.0) / len(seconds), self.seconds["evaluation"][1]


def _png_bytes(pixels: np.ndarray) -> int:
    import cv2

    return len(cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1])
