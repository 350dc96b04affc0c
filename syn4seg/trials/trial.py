"""One trial of a sweep: labels, classifier and scores of a configuration, made of what the stage cache holds.

A trial computes what `syn4seg run` computes for the row `syn4seg`, bit for bit, but every entry is looked up by its key first
(`keys.py`). So a trial starts at the first entry that its keys of the configuration change:

    runs (prompts, images, base) > dense > draft > kept > relabeled > masks > label > classifier (with its scores)
                                 \\ embedding (SAM) ------------------^       real, registration ^

Images are named by their pixels, so it does not matter which run made them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.config.fingerprint import section_values
from syn4seg.config.tree import Config
from syn4seg.stages.base_data import base_samples
from syn4seg.stages.classifiers import initial_classifier, pixel_weights, schedule_of, seed_of
from syn4seg.stages.labels import BoundaryRefiner, Enhancer
from syn4seg.stages.scoring import CHUNK
from syn4seg.stages.setup import draws_of, queries_of, support_of, training_device
from syn4seg.stages.support import Registration, compute_registration, keep_thresholds, support_samples
from syn4seg.store.files import exists
from syn4seg.store.images import pixel_digest
from syn4seg.store.rundir import RunDir
from syn4seg.trials.cache import RUNS, Arrays, StageCache, key_hash
from syn4seg.trials.context import IMAGES_PER_ENTRY, ROW, Chunk, RunContext
from syn4seg.trials.features import OtherFeatures
from syn4seg.trials.keys import entry_key, feature_values, query_values, registration_values, run_key, sam_key, support_key
from syn4seg.trials.labels import LabelColumns

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.evaluation import Metrics, Query
    from syn4seg.segmenter.novel import TrainingSample


class Trials:
    """Make trials in this process, one after the other; models stay loaded as long as trials use the same.

    Args:
        cache: shared by all processes.
        reference: a run with prompts, images and base checkpoint; trials that change none of them use it as it is.
        validation: ids of train-list images to score on; None for the queries of the test list.
        make_run: makes prompts, images and base checkpoint of a configuration in a folder, or goes on with it.
        device: "auto", "cpu" or "cuda".
    """

    def __init__(
        self,
        cache: StageCache,
        reference: RunDir,
        validation: Sequence[str] | None,
        make_run: Callable[[Config, Path], None],
        device: str = "auto",
    ):
        self.cache, self.reference, self.validation = cache, reference, validation
        self.make_run, self.device = make_run, device
        self.contexts: dict[str, RunContext] = {}
        self.refiners: dict[str, tuple[str, BoundaryRefiner]] = {}
        self.others: dict[str, OtherFeatures] = {}
        self.seconds: dict[str, float] = {}

    def scores(self, config: Config, reports: int) -> Iterator[dict[int, Metrics]]:
        """Label and train every draw of a configuration; yield `reports` times, at equal distances, the scores by draw.

        Raises:
            UserError: the configuration cannot be run, e.g. a class has too few support images.
        """
        trial = _Trial(self, config, self._context(config))
        parts = [trial.train(draw, reports) for draw in draws_of(config)]
        try:
            for metrics in zip(*parts, strict=True):
                yield dict(zip(draws_of(config), metrics, strict=True))
        finally:
            for part in parts:
                part.close()

    def _context(self, config: Config) -> RunContext:
        """Return the run of a configuration; make it, under a lock, if no run has its prompts, images and base checkpoint."""
        key = run_key(config)
        if key in self.contexts and self.contexts[key].checks_as(config):
            self.contexts[key].run.root.touch()
            return self.contexts[key]
        stored = self.reference.stored()
        if stored is not None and run_key(stored) == key and self.reference.has_images() and exists(self.reference.base):
            run = self.reference
        else:
            path = self.cache.root / RUNS / key
            with self.cache.lock(path):
                done = path / "done"
                if not done.exists():
                    started = time.perf_counter()
                    self.make_run(config, path)
                    done.touch()
                    self.cache.counts[RUNS, "made"] += 1
                    self.seconds[RUNS] = self.seconds.get(RUNS, 0.0) + time.perf_counter() - started
            path.touch()
            run = RunDir(path)
        self.others = {}  # they hold the context before
        self.contexts = {key: RunContext(config, run, self.device)}  # one at a time: a context holds a network
        return self.contexts[key]

    def refiner(self, config: Config) -> tuple[str, BoundaryRefiner]:
        """Return the key of SAM's answers, and SAM with the settings of a configuration."""
        settings, key = config.refinement, sam_key(config)
        if key not in self.refiners:
            self.refiners = {key: (key, BoundaryRefiner.from_settings(config.refinement, self.device))}
        _, refiner = self.refiners[key]
        return key, BoundaryRefiner(refiner.sam, settings)

    def other_features(self, config: Config, context: RunContext) -> OtherFeatures | None:
        """Return the network of `labeling.features`, or None where it is the segmenter."""
        if not config.labeling.by_other_features:
            return None
        key = key_hash(feature_values(config))
        if key not in self.others:
            self.others = {key: OtherFeatures(self.cache, config, context)}
        return self.others[key]


class _Trial:
    """The entries of one configuration."""

    def __init__(self, trials: Trials, config: Config, context: RunContext):
        self.trials, self.cache, self.config, self.context = trials, trials.cache, config, context
        self.canvas, self.fold, self.dataset = context.canvas, context.fold, context.dataset
        self.other = trials.other_features(config, context)
        self.columns = LabelColumns(trials.cache, config, context, trials.refiner(config), self.other)

    def real(self, ids: Sequence[str], batch: int = 1) -> tuple[str, list[Tensor]]:
        """Return the key and the frozen features float16 (D, h, w) of real images, computed `batch` at a time."""
        import torch

        from syn4seg.segmenter.network import frozen_features

        def make() -> Arrays:
            parts = [ids[i : i + batch] for i in range(0, len(ids), batch)]
            pixels = (np.stack([self.canvas.image(self.dataset.image(i)) for i in part]) for part in parts)
            return {"features": torch.cat([frozen_features(self.context.segmenter, p, batch=batch) for p in pixels]).numpy()}

        key = entry_key("real", self.context.network, [self.context.digest(i) for i in ids], batch)
        return key, list(torch.from_numpy(self.cache.get("real", key, make)["features"].copy())) if ids else []

    @cached_property
    def base(self):
        """Base images that are replayed and that make prototypes."""
        return base_samples(self.config, self.context.segmenter, self.dataset, self.fold, lambda ids: self.real(ids)[1])

    def support_ids(self, draw: int) -> dict[int, list[str]]:
        """Return the support image ids of a draw by novel dataset id. To find them, every mask of the train list may be read."""
        if self.config.data.source == "folder":  # whose files may change under the same names
            return support_of(self.config, self.dataset, self.fold, draw)

        def make() -> Arrays:
            ids = support_of(self.config, self.dataset, self.fold, draw)
            return {str(k): np.frombuffer(json.dumps(of).encode(), np.uint8) for k, of in ids.items()}

        key = entry_key("support", *support_key(self.config, draw), *self.context.software)
        ids = self.cache.get("support", key, make)
        return {k: json.loads(ids[str(k)].tobytes()) for k in self.fold.novel}

    def support(self, draw: int) -> list[TrainingSample]:
        """Return the support samples of a draw."""
        support = self.support_ids(draw)
        every = [i for ids in support.values() for i in ids]
        features = dict(zip(every, self.real(every)[1], strict=True))
        return support_samples(self.config, self.dataset, self.fold, support, lambda ids: [features[i] for i in ids])

    def registration(self, draw: int) -> tuple[str, str, Registration, list[TrainingSample]]:
        """Return the keys of round 0 of a draw and of another network's prototypes (or ""), round 0, and the support samples."""
        support = self.support(draw)
        config, keys = self.config, ("weight", "bias", "prototypes")
        samples = [self._describe(part) for part in (support, self.base.prototype_images, self.base.replayed)]
        classes = len(self.fold.base), len(self.fold.novel)
        key = entry_key("registration", self.context.network, samples, self._schedule(draw), classes, registration_values(config))

        def make() -> Arrays:
            registration = compute_registration(config, self.context.segmenter, self.fold, support, self.base, draw)
            return {name: getattr(registration, name) for name in keys}

        arrays = self.cache.get("registration", key, make)
        network, measured_key, measured, views = self.context.segmenter.classifier, "", None, None
        if self.other is not None:
            views = self.other.support_views([i for ids in self.support_ids(draw).values() for i in ids])
            images = self.base.prototype_images
            measured_key, measured = self.other.prototypes(self.fold, support, views, images, samples[:2])
        registration = Registration(
            **{name: arrays[name].copy() for name in keys},
            thresholds=keep_thresholds(config, self.fold, support, views),
            cosine=network.cosine,
            align_corners=network.align_corners,
            measured=measured,
        )
        return key, measured_key, registration, support

    def _describe(self, samples: Sequence[TrainingSample]) -> list[str]:
        return [
            f"{s.sample_id}:{self.context.digest(s.sample_id.partition('-')[2] if s.kind == 'support' else s.sample_id)}:"
            f"{pixel_digest(s.label)}"
            for s in samples
        ]

    def _schedule(self, draw: int) -> list[Any]:
        return [asdict(schedule_of(self.config)), seed_of(self.config, draw), training_device(self.config)]

    def labels(self, draw: int) -> list[Chunk]:
        """Return the labels of every image in a draw."""
        *keys, registration, _ = self.registration(draw)
        classifier = registration.classifier_on(self.context.device)
        prototypes, thresholds = registration.prototypes, registration.thresholds
        own = self.context.segmenter, classifier, prototypes, thresholds, self.config.labeling, self.canvas
        enhancer, images = Enhancer(*own, registration.measured), self.context.images
        starts = range(0, len(images), IMAGES_PER_ENTRY)
        return [self.columns.chunk(keys, enhancer, images[i : i + IMAGES_PER_ENTRY]) for i in starts]

    def queries(self, draw: int) -> tuple[str, list[Query]]:
        """Return the key of the images to score on, and the images with frozen features."""
        from syn4seg.segmenter.evaluation import Query

        ids, space = self.trials.validation, self.config.evaluation.space
        scored = set(ids or ())
        if ids is None:  # in the chunks of an evaluation, so that the features are the same bit for bit
            of_draws = {d: queries_of(self.config, self.dataset, self.support_ids(d), d) for d in draws_of(self.config)}
            any_draw, scored = set().union(*of_draws.values()), set(of_draws[draw])
            ids = [i for i in self.dataset.val if i in any_draw]
        key, features = self.real(ids, CHUNK)
        table, queries, digests = self.fold.to_index, [], []
        for image_id, row in zip(ids, features, strict=True):
            if image_id not in scored:
                continue
            label = table[self.dataset.mask(image_id)]
            shape = None if space == "canvas" else (label.shape[0], label.shape[1])
            label = self.canvas.label(label) if space == "canvas" else label
            digests.append(pixel_digest(label))
            queries.append(Query(image_id, row, label, self.canvas, shape))
        return key_hash([key, query_values(self.config), digests]), queries

    def train(self, draw: int, reports: int) -> Generator[Metrics, None, None]:
        """Train the row on the labels of a draw; yield the scores `reports` times, the last time at the end."""
        from syn4seg.segmenter.evaluation import metrics

        registration_key, _, registration, support = self.registration(draw)
        chunks = self.labels(draw)
        query_key, queries = self.queries(draw)
        samples = [[chunk.key for chunk in chunks], self.context.planned, [m.sample_id for m in self.context.images]]
        values = section_values(self.config.novel, without=("trains", "rows"))
        key = entry_key("classifier", registration_key, samples, self._schedule(draw), values, query_key, reports)
        base, new = len(self.fold.base), len(self.fold.novel)
        with self.cache.lock(self.cache.path("classifier", key)):
            entry = self.cache.find("classifier", key)
            if entry is not None:
                for matrix in entry["confusion"]:
                    yield metrics(matrix, base, new)
                return
            matrices = []
            for matrix in self._train(draw, registration, support, chunks, queries, reports):
                matrices.append(matrix)
                yield metrics(matrix, base, new)
            self.cache.put("classifier", key, {"confusion": np.stack(matrices)})

    def _train(
        self,
        draw: int,
        registration: Registration,
        support: list[TrainingSample],
        chunks: list[Chunk],
        queries: list[Query],
        reports: int,
    ) -> Iterator[np.ndarray]:
        """Run the novel stage; yield `reports` times the confusion matrix int64 (1+B+M, 1+B+M) on the queries."""
        from syn4seg.segmenter.evaluation import accumulate_confusion, predictor_of
        from syn4seg.segmenter.novel import NovelTraining

        schedule = schedule_of(self.config)
        start = initial_classifier(self.context.segmenter, registration.prototypes, self.fold).to(training_device(self.config))
        samples, planned, seed = [*support, *self.base.replayed], self.context.planned, seed_of(self.config, draw)
        training = NovelTraining(start, samples, planned, base_classes=len(self.fold.base), schedule=schedule, seed=seed)
        registered = registration.classifier_on("cpu")
        accepted = {s.sample_id: s for chunk in chunks for s in self._samples(chunk, registered)}
        for name in planned:
            training.record_verdict(name, name in accepted, accepted.get(name))
        for report in range(1, reports + 1):
            while training.steps_done < schedule.steps * report // reports:
                assert training.ready
                training.step()
            classifier = training.classifier.to(self.context.device)
            yield accumulate_confusion(queries, {ROW: predictor_of(classifier)}, len(self.fold.index_names))[ROW]

    def _samples(self, chunk: Chunk, registered: Any) -> Iterator[TrainingSample]:
        import torch

        from syn4seg.segmenter.novel import TrainingSample

        if any(chunk.images[i].sample_id not in self.context.features for i in chunk.labels):
            for image, dense in zip(chunk.images, self.columns.dense(chunk.images), strict=True):
                if image.sample_id not in self.context.features:
                    self.context.features.put(image.sample_id, torch.from_numpy(dense.astype(np.float16)))
        for i, label in chunk.labels.items():
            name = chunk.images[i].sample_id
            features = self.context.features[name]
            weights = pixel_weights(self.config, registered, features)
            yield TrainingSample(name, features, self.canvas.label(label), "synthetic", weights)
