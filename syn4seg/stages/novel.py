"""The novel stage of a run: one classifier per ablation row and support draw, all from the same cached features.

Features are frozen, so each synthetic, support, replayed and query image is seen by the network once per run; rows,
draws and steps work on the cache. Samples arrive in any order, also while others are still being made (`draw_training`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.schema import LABEL_STAGES
from syn4seg.stages.arrivals import FeatureCache
from syn4seg.stages.classifiers import pixel_weights
from syn4seg.stages.labels import load_on_device
from syn4seg.stages.rows import ROWS
from syn4seg.stages.setup import canvas_of
from syn4seg.stages.support import Registration, base_samples, feature_extractor, register, support_of, support_samples
from syn4seg.store.rundir import RunDir

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.network import Classifier
    from syn4seg.segmenter.novel import Sample
    from syn4seg.store.samples import Sample as Record


class NovelStage:
    """Caches features as finished samples arrive, then trains every row of every draw and scores it."""

    def __init__(self, config: Config, run: RunDir, dataset: Dataset, fold: Fold):
        self.config, self.run, self.dataset, self.fold = config, run, dataset, fold
        self.segmenter = load_on_device(run, config.placement.device)
        self.real_features = feature_extractor(config, self.segmenter, dataset)
        self.base = base_samples(config, dataset, fold, self.real_features)
        self.features = FeatureCache()
        self.registered: dict[int, Classifier] = {}
        self.loss = float("nan")  # of the last step, of whichever row

    def register(self, draw: int) -> Registration:
        """Round 0 of a draw."""
        return register(self.config, self.run, self.segmenter, self.dataset, self.fold, draw, self.base)

    def features_of(self, sample_id: str, image: np.ndarray) -> Tensor:
        """float16 (D, h, w) of a synthetic image uint8 (H, W, 3); computed once and kept."""
        from syn4seg.segmenter.network import frozen_features

        if sample_id not in self.features:
            image = canvas_of(self.config).image(image)
            self.features.put(sample_id, frozen_features(self.segmenter, image[None])[0])
        return self.features[sample_id]

    def columns(self, bank: str, record: Record) -> dict[str, np.ndarray]:
        """By label column, what rows of a bank may train on, uint8 on the canvas: raw and filtered labels of every image, later
        ones of accepted samples only."""
        canvas, wanted = canvas_of(self.config), {column for of, column in ROWS.values() if of == bank}
        there = LABEL_STAGES[:2] if record.record["reason"] else LABEL_STAGES
        return {s: canvas.label(record.labels[s]) for s in there if s in wanted}

    def pixel_weights(self, draw: int, features: Tensor) -> np.ndarray | None:
        """Weight float16 (H, W) of each pixel of a synthetic image, or None where every weight is 1."""
        if self.config.novel.confidence_weight and draw not in self.registered:
            self.registered[draw] = Registration.load(self.run.draw(draw)).classifier_on("cpu")
        return pixel_weights(self.config, self.registered.get(draw), features)

    def support(self, draw: int) -> list[Sample]:
        """The support samples of a draw."""
        chosen = support_of(self.config, self.dataset, self.fold, draw)
        return support_samples(self.config, self.dataset, self.fold, chosen, self.real_features)

    def score_queries(self, done: Callable[[int, int], None]) -> dict[int, dict[str, np.ndarray]]:
        """Confusion matrix of every draw and row, in this process; `done` is told how many queries are scored, of how many."""
        from syn4seg.stages.scoring import Scorer, score_in_process, score_run

        scorer = Scorer(self.config, self.run, self.dataset, self.fold, segmenter=self.segmenter)
        return score_run(self.config, self.run, self.dataset, self.fold, score_in_process(scorer), done)
