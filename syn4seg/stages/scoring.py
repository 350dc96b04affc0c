"""The evaluation of a run (method.md 6): queries in fixed chunks, each scored alone, and sums of whole numbers.

Rounding inside the network depends on which images share a batch, so a chunk is one batch and always holds the same queries.
Who scores it, and in which order, therefore changes nothing: on equal hardware, 1 and n workers give the same matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.stages.classifiers import base_classifier, load_classifier
from syn4seg.stages.labels import load_on_device
from syn4seg.stages.rows import BASELINE, joint_names, rows_of
from syn4seg.stages.setup import canvas_of, draws_of, queries_of, support_of
from syn4seg.stages.support import Registration, feature_extractor, support_samples
from syn4seg.store.files import exists
from syn4seg.store.pulse import Pulse
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import write_sealed_json

if TYPE_CHECKING:
    from syn4seg.segmenter.evaluation import Predictor
    from syn4seg.segmenter.network import Segmenter

CHUNK = 16
"""Queries of a chunk; the last one may have fewer."""

DrawRow = tuple[int, str]
"""A draw and a row (or `baseline/NAME`) in it."""
Matrices = dict[DrawRow, np.ndarray]
"""Confusion matrices int64 (1+B+M, 1+B+M)."""
ScoreChunks = Callable[[list[list[str]]], Iterable[tuple[int, Matrices]]]
"""Takes the chunks and yields (queries of a chunk, its matrices), each chunk once, in any order."""


class Scorer:
    """Scores chunks of queries with the classifiers of every draw and row, and the baselines.

    Args:
        segmenter: that of the run, if it has been loaded already.
        device: where it is loaded to otherwise, as `placement.device`.

    Raises:
        UserError: the base checkpoint or a classifier is missing, or a draw has not been registered (baselines need it).
    """

    def __init__(
        self, config: Config, run: RunDir, dataset: Dataset, fold: Fold, *, device: str = "auto", segmenter: Segmenter | None = None
    ):
        self.config, self.run, self.dataset, self.fold = config, run, dataset, fold
        self.segmenter = segmenter or load_on_device(run, device)
        self.queries = {draw: set(ids) for draw, ids in queries_by_draw(config, dataset, fold).items()}
        self.predictors = {(draw, row): p for draw in self.queries for row, p in self._predictors(draw).items()}
        self.networks = {key: self._network(*key) for key in joint_names(config)}

    def _predictors(self, draw: int) -> dict[str, Predictor]:
        """Return the classifier of every row of a draw, and the baselines, as functions from features to classes."""
        from syn4seg.segmenter.evaluation import predictor_of

        config, fold, paths, device = self.config, self.fold, self.run.draw(draw), self.segmenter.weight.device
        predictors = {row: predictor_of(load_classifier(paths.checkpoint(row)).to(device)) for row in rows_of(config)}
        if config.evaluation.baselines:
            prototypes = Registration.load(paths).prototypes
            predictors |= baseline_predictors(config, self.dataset, fold, self.segmenter, draw, prototypes)
        return predictors

    def _network(self, draw: int, name: str) -> Segmenter:
        """Return a network of the joint stage."""
        from syn4seg.segmenter.network import load_segmenter

        path = self.run.draw(draw).checkpoint(name)
        if not exists(path):
            raise UserError(f"{path}: missing; run `syn4seg train` (or `syn4seg run`) before evaluating")
        return load_segmenter(path)[0].to(self.segmenter.weight.device)

    def __call__(self, ids: list[str]) -> Matrices:
        """Return the matrices of a chunk; every query is seen by each network once, and scored in its draws."""
        from syn4seg.segmenter.evaluation import predictor_of

        found = self._score(self.segmenter, self.predictors, ids)
        for (draw, name), network in self.networks.items():
            chosen = [sample_id for sample_id in ids if sample_id in self.queries[draw]]
            found |= self._score(network, {(draw, name): predictor_of(network.classifier)}, chosen)
        return found

    def _score(self, network: Segmenter, predictors: dict[DrawRow, Predictor], ids: list[str]) -> Matrices:
        from syn4seg.segmenter.evaluation import accumulate_confusion, iterate_queries

        canvas, space = canvas_of(self.config), self.config.evaluation.space
        stream = iterate_queries(network, self.dataset, self.fold, ids, canvas=canvas, space=space, batch=CHUNK)
        classes = len(self.fold.index_names)
        return accumulate_confusion(stream, predictors, classes, lambda key, sample_id: sample_id in self.queries[key[0]])


def baseline_predictors(
    config: Config, dataset: Dataset, fold: Fold, segmenter: Segmenter, draw: int, prototypes: np.ndarray | None = None
) -> dict[str, Predictor]:
    """Return the baselines of a configuration, by their row names, as functions from features to classes.

    Args:
        prototypes: those of the draw's registration, background and base classes first; None: the base classifier's rows.
    """
    import torch

    from syn4seg.baselines import build

    base = base_classifier(segmenter).to(segmenter.weight.device)
    ids = support_of(config, dataset, fold, draw)
    support = support_samples(config, dataset, fold, ids, feature_extractor(config, segmenter, dataset))
    return {
        BASELINE + name: build(
            name,
            base=base,
            support=support,
            base_classes=len(fold.base),
            novel_classes=len(fold.novel),
            shots=config.data.shots,
            seed=config.seed,
            prototypes=None if prototypes is None else torch.from_numpy(prototypes[: len(base.weight)]),
        )
        for name in config.evaluation.baselines
    }


def queries_by_draw(config: Config, dataset: Dataset, fold: Fold) -> dict[int, list[str]]:
    """Return the ids of the queries of every draw."""
    return {draw: queries_of(config, dataset, support_of(config, dataset, fold, draw), draw) for draw in draws_of(config)}


def score_run(
    config: Config, run: RunDir, dataset: Dataset, fold: Fold, score: ScoreChunks, done: Callable[[int, int], None]
) -> dict[int, dict[str, np.ndarray]]:
    """Return the confusion matrix int64 of every draw and row; write queries.json and confusion.json of every draw.

    Args:
        score: e.g. `score_in_process(scorer)`.
        done: called with (queries scored, queries in all).
    """
    queries = queries_by_draw(config, dataset, fold)
    for draw, of_draw in queries.items():
        write_sealed_json(run.draw(draw).queries, of_draw)
    in_any_draw = set().union(*queries.values())
    ids = [s for s in dataset.val if s in in_any_draw]
    total: Matrices = {}
    scored, pulse = 0, Pulse(run.log, stage="evaluation")
    for count, matrices in score([ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)]):
        total = {key: matrix + total.get(key, 0) for key, matrix in matrices.items()}
        scored += count
        done(scored, len(ids))
        pulse(scored, len(ids))
    assert scored == len(ids), (scored, len(ids))
    by_draw: dict[int, dict[str, np.ndarray]] = {}
    for (draw, row), matrix in total.items():
        by_draw.setdefault(draw, {})[row] = matrix
    for draw, rows in by_draw.items():
        write_sealed_json(run.draw(draw).root / "confusion.json", rows)
    return by_draw


def score_in_process(scorer: Scorer) -> ScoreChunks:
    """Return a function that scores chunks one after the other in this process."""
    return lambda chunks: ((len(chunk), scorer(chunk)) for chunk in chunks)
