"""The novel stage of a run (method.md 5.3): one classifier per ablation row and support draw, all from the same cached features.

Features are frozen, so each synthetic, support, replayed and query image is seen by the network once per run; rows,
draws and steps work on the cache. Samples arrive in any order, also while others are still being made (`draw_training`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.stages import base_data, classifiers, support
from syn4seg.stages.arrivals import FeatureCache
from syn4seg.stages.labels import load_on_device
from syn4seg.stages.named import NamedLabels
from syn4seg.stages.setup import canvas_of, support_of
from syn4seg.store.rundir import RunDir

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.network import Classifier
    from syn4seg.segmenter.novel import TrainingSample


class NovelStage:
    """Caches features as finished samples arrive, then trains every row of every draw and scores it."""

    def __init__(self, config: Config, run: RunDir, dataset: Dataset, fold: Fold):
        self.config, self.run, self.dataset, self.fold = config, run, dataset, fold
        self.segmenter = load_on_device(run, config.placement.device)
        self.real_features = support.feature_extractor(config, self.segmenter, dataset)
        photos = support.feature_extractor(config, self.segmenter, base_data.base_photos(config, dataset))
        self.base = base_data.base_samples(config, self.segmenter, dataset, fold, photos)
        self.features = FeatureCache()
        self.named = NamedLabels(config, fold)
        self.round0: dict[int, Classifier] = {}
        self.loss = float("nan")  # of the last step, of whichever row

    def register(self, draw: int) -> support.Registration:
        """Register a support draw (round 0), unless that is done."""
        return support.register(self.config, self.run, self.segmenter, self.dataset, self.fold, draw, self.base)

    def features_of(self, sample_id: str, image: np.ndarray) -> Tensor:
        """Return features float16 (D, h, w) of a synthetic image uint8 (H, W, 3); computed once and kept."""
        from syn4seg.segmenter.network import frozen_features

        if sample_id not in self.features:
            image = canvas_of(self.config).image(image)
            self.features.put(sample_id, frozen_features(self.segmenter, image[None])[0])
        return self.features[sample_id]

    def training_labels(self, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the labels of an image, by label column, on the canvas: uint8 (size, size)."""
        canvas = canvas_of(self.config)
        return {column: canvas.label(label) for column, label in labels.items()}

    def pixel_weights(self, draw: int, features: Tensor) -> np.ndarray | None:
        """Return the weight float16 (H, W) of each pixel of a synthetic image, or None where every weight is 1."""
        if self.config.novel.confidence_weight and draw not in self.round0:
            self.round0[draw] = support.Registration.load(self.run.draw(draw)).classifier_on("cpu")
        return classifiers.pixel_weights(self.config, self.round0.get(draw), features)

    def support_samples(self, draw: int) -> list[TrainingSample]:
        """Return the support samples of a draw."""
        ids = support_of(self.config, self.dataset, self.fold, draw)
        return support.support_samples(self.config, self.dataset, self.fold, ids, self.real_features)

    def score_queries(self, done: Callable[[int, int], None]) -> dict[int, dict[str, np.ndarray]]:
        """Return the confusion matrix of every draw and row, computed in this process.

        Args:
            done: called with (queries scored, queries in all).
        """
        from syn4seg.stages.scoring import Scorer, score_in_process, score_run

        scorer = Scorer(self.config, self.run, self.dataset, self.fold, segmenter=self.segmenter)
        return score_run(self.config, self.run, self.dataset, self.fold, score_in_process(scorer), done)
