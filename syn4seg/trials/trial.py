"""One trial of a sweep: labels, classifier and scores of a configuration, made of what the stage cache holds.

A trial computes what `syn4seg run` computes for the row `syn4seg`, bit for bit, but every stage is looked up by a hash of its
inputs' content and its own keys first. So a trial starts at the first stage that its keys change:

    runs (prompts, images, base) > dense > draft > kept > relabeled > masks > label > classifier (with its scores)
                                 \\ embedding (SAM) ------------------^       real, registration ^

Images are named by their pixels, so it does not matter which run made them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.labeling.components import components
from syn4seg.stages.classifiers import initial_classifier, pixel_weights, schedule_of, seed_of
from syn4seg.stages.labels import BoundaryRefiner, DraftLabel, Enhancer, dense_features
from syn4seg.stages.scoring import CHUNK
from syn4seg.stages.setup import digest_inputs, draws_of, queries_of, support_of, training_device
from syn4seg.stages.support import Registration, base_samples, compute_registration, keep_thresholds, support_samples
from syn4seg.store.files import exists, pixel_digest
from syn4seg.store.rundir import RunDir
from syn4seg.trials.cache import RUNS, Arrays, StageCache, key_hash
from syn4seg.trials.world import ROW, TOGETHER, Made, World, world_key

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.evaluation import Metrics, Query
    from syn4seg.segmenter.novel import Sample


@dataclass(frozen=True)
class Chunk:
    """Up to `TOGETHER` images, and the labels uint8 (H, W) of those that a draw accepts, by place."""

    images: Sequence[Made]
    labels: dict[int, np.ndarray]
    key: str


class Trials:
    """Makes trials in this process, one after the other; models stay loaded as long as trials use the same.

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
        self.worlds: dict[str, World] = {}
        self.refiners: dict[str, tuple[str, BoundaryRefiner]] = {}
        self.seconds: dict[str, float] = {}

    def scores(self, config: Config, reports: int) -> Iterator[dict[int, Metrics]]:
        """Labels and trains every draw of a configuration; `reports` times, at equal distances, the scores by draw.

        Raises:
            UserError: the configuration cannot be run, e.g. a class has too few support images.
        """
        trial = _Trial(self, config, self._world(config))
        parts = [trial.trained(draw, reports) for draw in draws_of(config)]
        try:
            for found in zip(*parts, strict=True):
                yield dict(zip(draws_of(config), found, strict=True))
        finally:
            for part in parts:
                part.close()

    def _world(self, config: Config) -> World:
        """The world of a configuration; its run is made, under a lock, if no run has its prompts, images and base checkpoint."""
        key = world_key(config)
        if key in self.worlds:
            self.worlds[key].run.root.touch()
            return self.worlds[key]
        stored = self.reference.stored()
        if stored is not None and world_key(stored) == key and self.reference.has_images() and exists(self.reference.base):
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
        self.worlds = {key: World(config, run, self.device)}  # one at a time: a world holds a network
        return self.worlds[key]

    def refiner(self, config: Config) -> tuple[str, BoundaryRefiner]:
        """SAM as the configuration wants it, and a key of its answers."""
        settings = config.refinement
        weights = digest_inputs(config).get("refinement.model", settings.model)
        key = key_hash([weights, settings.images_per_pass])
        if key not in self.refiners:
            self.refiners = {key: (key, BoundaryRefiner.from_settings(config.refinement, self.device))}
        _, refiner = self.refiners[key]
        return key, BoundaryRefiner(refiner.sam, settings)


class _Trial:
    """The stages of one configuration."""

    def __init__(self, trials: Trials, config: Config, world: World):
        self.trials, self.cache, self.config, self.world = trials, trials.cache, config, world
        self.canvas, self.fold, self.dataset = world.canvas, world.fold, world.dataset

    # ------------------------------------------------------------------------------------------- real images
    def real(self, ids: Sequence[str], batch: int = 1) -> tuple[str, list[Tensor]]:
        """Frozen features float16 (D, h, w) of real images, `batch` at a time, and their key."""
        import torch

        from syn4seg.segmenter.network import frozen_features

        def make() -> Arrays:
            parts = [ids[i : i + batch] for i in range(0, len(ids), batch)]
            made = [
                frozen_features(
                    self.world.segmenter, np.stack([self.canvas.image(self.dataset.image(i)) for i in part]), batch=batch
                )
                for part in parts
            ]
            return {"features": torch.cat(made).numpy()}

        key = key_hash([self.world.network, [self.world.digest(i) for i in ids], batch])
        return key, list(torch.from_numpy(self.cache.get("real", key, make)["features"].copy())) if ids else []

    @cached_property
    def base(self):
        """The base training images that are replayed and that make prototypes."""
        return base_samples(self.config, self.dataset, self.fold, lambda ids: self.real(ids)[1])

    def chosen(self, draw: int) -> dict[int, list[str]]:
        """Support image ids of a draw by novel dataset id. To find them, every mask of the train list may have to be looked at."""
        data = self.config.data
        if data.source == "folder":  # whose files may change under the same names
            return support_of(self.config, self.dataset, self.fold, draw)

        def make() -> Arrays:
            ids = support_of(self.config, self.dataset, self.fold, draw)
            return {str(k): np.frombuffer(json.dumps(of).encode(), np.uint8) for k, of in ids.items()}

        key = [
            data.model_dump(mode="json", exclude={"draws", "first_draw", "val_images", "root"}),
            self.config.seed,
            draw,
            digest_inputs(self.config).get("data.root"),
            *self.world.software,
        ]
        found = self.cache.get("support", key, make)
        return {k: json.loads(found[str(k)].tobytes()) for k in self.fold.novel}

    def support(self, draw: int) -> list[Sample]:
        """The support samples of a draw."""
        chosen = self.chosen(draw)
        wanted = [i for ids in chosen.values() for i in ids]
        features = dict(zip(wanted, self.real(wanted)[1], strict=True))
        return support_samples(self.config, self.dataset, self.fold, chosen, lambda ids: [features[i] for i in ids])

    def registered(self, draw: int) -> tuple[str, Registration, list[Sample]]:
        """Round 0 of a draw with its key, and the support samples."""
        support = self.support(draw)
        config, keys = self.config, ("weight", "bias", "prototypes")
        given = [self._of_samples(support), self._of_samples(self.base.prototype_images), self._of_samples(self.base.replayed)]
        key = key_hash([self.world.network, given, self._schedule(draw), len(self.fold.base), len(self.fold.novel)])

        def make() -> Arrays:
            made = compute_registration(config, self.world.segmenter, self.fold, support, self.base, draw)
            return {name: getattr(made, name) for name in keys}

        found = self.cache.get("registration", key, make)
        network = self.world.segmenter.classifier
        made = Registration(
            **{name: found[name].copy() for name in keys},
            thresholds=keep_thresholds(config, self.fold, support),
            cosine=network.cosine,
            align_corners=network.align_corners,
        )
        return key, made, support

    def _of_samples(self, samples: Sequence[Sample]) -> list[str]:
        return [
            f"{s.sample_id}:{self.world.digest(s.sample_id.partition('-')[2] if s.kind == 'support' else s.sample_id)}:"
            f"{pixel_digest(s.label)}"
            for s in samples
        ]

    def _schedule(self, draw: int) -> list[Any]:
        return [asdict(schedule_of(self.config)), seed_of(self.config, draw), training_device(self.config)]

    # ---------------------------------------------------------------------------------------------- labelling
    def labels(self, draw: int) -> list[Chunk]:
        """The labels of every image in a draw."""
        key, made, _ = self.registered(draw)
        classifier = made.classifier_on(self.world.device)
        enhancer = Enhancer(self.world.segmenter, classifier, made.prototypes, made.thresholds, self.config.labeling, self.canvas)
        images = self.world.images
        return [self._chunk(key, enhancer, images[i : i + TOGETHER]) for i in range(0, len(images), TOGETHER)]

    def dense(self, images: Sequence[Made]) -> np.ndarray:
        """Raw features float32 (N, D, h, w) of synthetic images."""

        def make() -> Arrays:
            made = [dense_features(self.world.segmenter, self.canvas, pixels) for pixels in self.world.pixels(images)]
            return {"features": np.stack([features.cpu().numpy() for features in made])}

        return self.cache.get("dense", self._dense_key(images), make)["features"]

    def _dense_key(self, images: Sequence[Made]) -> str:
        return key_hash([self.world.network, [m.digest for m in images]])

    def _chunk(self, registration: str, enhancer: Enhancer, images: Sequence[Made]) -> Chunk:
        """Stage by stage, each made of the one before it where the cache does not have it.

        A label is there for every image that the stage could label; one that fails is left out, as its row is quarantined
        in a run.
        """
        cache, labeling, refinement = self.cache, self.config.labeling, self.config.refinement
        targets, shapes = [m.target for m in images], [list(m.shape) for m in images]
        limits = [enhancer.thresholds[t] for t in targets]
        sam_key, refiner = self.trials.refiner(self.config)
        draft = key_hash([self._dense_key(images), registration, shapes])
        kept = key_hash([draft, targets, limits, labeling.min_region, labeling.tau_base, labeling.tau_background])
        relabeled = key_hash([kept, labeling.beta, labeling.tau, labeling.theta, labeling.min_target, labeling.max_target])
        masks = key_hash([relabeled, sam_key, self.world.software, refinement.margin])
        label = key_hash([masks, refinement.band_width, refinement.min_agreement])

        def drafts() -> Arrays:
            features, found = self.dense(images), {}
            for i, image in enumerate(images):
                with _left_out():
                    made = enhancer.draft(self.world.tensor(features[i]), image.shape)
                    found |= {f"label.{i}": made.label, f"confidence.{i}": made.confidence}
            return found

        def filtered() -> Arrays:
            features, before, found = self.dense(images), cache.get("draft", draft, drafts), {}
            for i in _rows(before):
                cells = enhancer.grid_features(self.world.tensor(features[i]), images[i].shape)
                with _left_out():
                    of = DraftLabel(before[f"label.{i}"], before[f"confidence.{i}"], cells, images[i].shape[:2])
                    found[f"label.{i}"] = enhancer.filter(of, targets[i]).kept
            return found

        def relabelings() -> Arrays:
            features, before, found = self.dense(images), cache.get("kept", kept, filtered), {}
            for i in _rows(before):
                cells = enhancer.grid_features(self.world.tensor(features[i]), images[i].shape)
                with _left_out():
                    made = enhancer.relabel(before[f"label.{i}"], cells, targets[i])
                    if not made.reason:
                        found[f"label.{i}"] = enhancer.to_image_shape(made.label, images[i].shape)
            return found

        def answers() -> Arrays:
            before, found = cache.get("relabeled", relabeled, relabelings), {}
            embeddings = self._embeddings(sam_key, refiner, images)
            for i in _rows(before):
                with _left_out():
                    boxes = refiner.hints(components(before[f"label.{i}"]))
                    made, ious = refiner.sam.decode(self.world.tensor(embeddings[i]), images[i].shape[:2], boxes)
                    found |= {f"masks.{i}": made.view(np.uint8), f"label.{i}": ious}
            return found

        def refined() -> Arrays:
            before = cache.get("relabeled", relabeled, relabelings)
            said, found = cache.get("masks", masks, answers), {}
            for i in _rows(said):
                with _left_out():
                    old = before[f"label.{i}"]
                    found[f"label.{i}"] = refiner.refine_label(
                        old, components(old), said[f"masks.{i}"].view(bool), said[f"label.{i}"]
                    )[0]
            return found

        done = cache.get("label", label, refined)
        return Chunk(images, {i: done[f"label.{i}"] for i in _rows(done)}, label)

    def _embeddings(self, sam_key: str, refiner: BoundaryRefiner, images: Sequence[Made]) -> np.ndarray:
        """SAM's embeddings float32 (N, C, h, w) of synthetic images."""
        size = refiner.settings.images_per_pass
        key = key_hash([sam_key, self.world.software, [m.digest for m in images]])

        def make() -> Arrays:
            import torch

            pixels, made = self.world.pixels(images), []
            for start in range(0, len(pixels), size):
                part = pixels[start : start + size]
                made.append(refiner.sam.embed(part)[: len(part)].cpu())
            return {"embedding": torch.cat(made).numpy()}

        return self.cache.get("embedding", key, make)["embedding"]

    # ------------------------------------------------------------------------------------ training and scores
    def queries(self, draw: int) -> tuple[str, list[Query]]:
        """The images to score on, with frozen features, and their key."""
        from syn4seg.segmenter.evaluation import Query

        ids, space = self.trials.validation, self.config.evaluation.space
        mine = set(ids or ())
        if ids is None:  # in the chunks of an evaluation, so that the features are the same bit for bit
            of_draws = {d: queries_of(self.config, self.dataset, self.chosen(d), d) for d in draws_of(self.config)}
            any_draw, mine = set().union(*of_draws.values()), set(of_draws[draw])
            ids = [i for i in self.dataset.val if i in any_draw]
        key, features = self.real(ids, CHUNK)
        table, found, digests = self.fold.to_index, [], []
        for image_id, row in zip(ids, features, strict=True):
            if image_id not in mine:
                continue
            label = table[self.dataset.mask(image_id)]
            shape = None if space == "canvas" else (label.shape[0], label.shape[1])
            label = self.canvas.label(label) if space == "canvas" else label
            digests.append(pixel_digest(label))
            found.append(Query(image_id, row, label, self.canvas, shape))
        return key_hash([key, space, digests]), found

    def trained(self, draw: int, reports: int) -> Generator[Metrics, None, None]:
        """Trains the row on the labels of a draw; yields the scores `reports` times, the last time at the end."""
        from syn4seg.segmenter.evaluation import metrics

        registration, made, support = self.registered(draw)
        chunks, novel = self.labels(draw), self.config.novel
        exam, queries = self.queries(draw)
        made_of = [[chunk.key for chunk in chunks], self.world.planned, [m.sample_id for m in self.world.images]]
        key = key_hash(
            [registration, made_of, self._schedule(draw), novel.synthetic_weight, novel.confidence_weight, exam, reports]
        )
        base, new = len(self.fold.base), len(self.fold.novel)
        with self.cache.lock(self.cache.path("classifier", key)):
            found = self.cache.find("classifier", key)
            if found is not None:
                for matrix in found["confusion"]:
                    yield metrics(matrix, base, new)
                return
            matrices = []
            for matrix in self._train(draw, made, support, chunks, queries, reports):
                matrices.append(matrix)
                yield metrics(matrix, base, new)
            self.cache.put("classifier", key, {"confusion": np.stack(matrices)})

    def _train(
        self, draw: int, made: Registration, support: list[Sample], chunks: list[Chunk], queries: list[Query], reports: int
    ) -> Iterator[np.ndarray]:
        """The novel stage; `reports` times the confusion matrix int64 (1+B+M, 1+B+M) on the queries."""
        from syn4seg.segmenter.evaluation import evaluate, predictor_of
        from syn4seg.segmenter.novel import NovelTraining

        schedule = schedule_of(self.config)
        start = initial_classifier(self.world.segmenter, made.prototypes, self.fold).to(training_device(self.config))
        training = NovelTraining(
            start,
            [*support, *self.base.replayed],
            self.world.planned,
            base_classes=len(self.fold.base),
            schedule=schedule,
            seed=seed_of(self.config, draw),
        )
        registered = made.classifier_on("cpu")
        accepted = {s.sample_id: s for chunk in chunks for s in self._samples(chunk, registered)}
        for name in self.world.planned:
            training.verdict(name, name in accepted, accepted.get(name))
        for report in range(1, reports + 1):
            while training.steps_done < schedule.steps * report // reports:
                assert training.ready
                training.step()
            now = training.classifier.to(self.world.device)
            yield evaluate(queries, {ROW: predictor_of(now)}, len(self.fold.index_names))[ROW]

    def _samples(self, chunk: Chunk, registered: Any) -> Iterator[Sample]:
        import torch

        from syn4seg.segmenter.novel import Sample

        if any(chunk.images[i].sample_id not in self.world.features for i in chunk.labels):
            for image, dense in zip(chunk.images, self.dense(chunk.images), strict=True):
                if image.sample_id not in self.world.features:
                    self.world.features.put(image.sample_id, torch.from_numpy(dense.astype(np.float16)))
        for i, label in chunk.labels.items():
            name = chunk.images[i].sample_id
            features = self.world.features[name]
            yield Sample(name, features, self.canvas.label(label), "synthetic", pixel_weights(self.config, registered, features))


@contextlib.contextmanager
def _left_out() -> Iterator[None]:
    """An image whose numbers are not finite gets no label, as a run would quarantine it; its neighbours go on."""
    with contextlib.suppress(FloatingPointError):
        yield


def _rows(arrays: Arrays) -> list[int]:
    """The images that have a label (or an answer) in an entry."""
    return sorted(int(name[6:]) for name in arrays if name.startswith("label."))
