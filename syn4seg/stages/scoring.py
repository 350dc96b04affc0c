"""The evaluation of a run: queries in fixed chunks, each scored alone, and sums of whole numbers.

Rounding inside the network depends on which images share a batch, so a chunk is one batch and always holds the same queries.
Who scores it, and in which order, therefore changes nothing: the matrices of 1 and of n workers are equal, on equal hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.stages.classifiers import base_classifier, load_classifier
from syn4seg.stages.labels import load_on_device
from syn4seg.stages.rows import BASELINE, rows_of
from syn4seg.stages.setup import canvas_of, draws_of, queries_of, support_of
from syn4seg.stages.support import Registration, feature_extractor, support_samples
from syn4seg.store.files import write_json
from syn4seg.store.pulse import Pulse
from syn4seg.store.rundir import RunDir

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
        segmenter: the run's own, if it has been loaded already.
        device: where it is loaded to otherwise, as `placement.device`.

    Raises:
        UserError: the base checkpoint or a classifier is not there, or a draw has not been registered (baselines need it).
    """

    def __init__(
        self, config: Config, run: RunDir, dataset: Dataset, fold: Fold, *, device: str = "auto", segmenter: Segmenter | None = None
    ):
        self.config, self.run, self.dataset, self.fold = config, run, dataset, fold
        self.segmenter = segmenter or load_on_device(run, device)
        self.asked = {draw: set(ids) for draw, ids in queries_by_draw(config, dataset, fold).items()}
        self.predictors = {(draw, row): p for draw in self.asked for row, p in self._predictors(draw).items()}

    def _predictors(self, draw: int) -> dict[str, Predictor]:
        import torch

        from syn4seg.baselines import build
        from syn4seg.segmenter.evaluation import predictor_of

        device, found = self.segmenter.weight.device, {}
        for row in rows_of(self.config):
            found[row] = predictor_of(load_classifier(self.run.draw(draw).checkpoint(row)).to(device))
        if self.config.evaluation.baselines:
            base = base_classifier(self.segmenter).to(device)
            chosen = support_of(self.config, self.dataset, self.fold, draw)
            real = feature_extractor(self.config, self.segmenter, self.dataset)
            support = support_samples(self.config, self.dataset, self.fold, chosen, real)
            prototypes = torch.from_numpy(Registration.load(self.run.draw(draw)).prototypes[: len(base.weight)])
            for name in self.config.evaluation.baselines:
                found[BASELINE + name] = build(
                    name,
                    base=base,
                    support=support,
                    base_classes=len(self.fold.base),
                    novel_classes=len(self.fold.novel),
                    shots=self.config.data.shots,
                    seed=self.config.seed,
                    prototypes=prototypes,
                )
        return found

    def __call__(self, ids: list[str]) -> Matrices:
        """The matrices of a chunk; every query is seen by the network once, and scored in its draws."""
        from syn4seg.segmenter.evaluation import evaluate, queries

        stream = queries(
            self.segmenter,
            self.dataset,
            self.fold,
            ids,
            canvas=canvas_of(self.config),
            space=self.config.evaluation.space,
            batch=CHUNK,
        )
        return evaluate(stream, self.predictors, len(self.fold.index_names), lambda key, s: s in self.asked[key[0]])


def queries_by_draw(config: Config, dataset: Dataset, fold: Fold) -> dict[int, list[str]]:
    """The queries of every draw."""
    return {draw: queries_of(config, dataset, support_of(config, dataset, fold, draw), draw) for draw in draws_of(config)}


def score_run(
    config: Config, run: RunDir, dataset: Dataset, fold: Fold, score: ScoreChunks, done: Callable[[int, int], None]
) -> dict[int, dict[str, np.ndarray]]:
    """Confusion matrix int64 of every draw and row; writes queries.json and confusion.json of every draw.

    Args:
        score: e.g. `here(scorer)`.
        done: called with (queries scored, queries in all).
    """
    of_draws = queries_by_draw(config, dataset, fold)
    for draw, chosen in of_draws.items():
        write_json(run.draw(draw).queries, chosen)
    any_draw = set().union(*of_draws.values())
    ids = [s for s in dataset.val if s in any_draw]
    total: Matrices = {}
    scored, pulse = 0, Pulse(run.log, stage="evaluation")
    for count, found in score([ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)]):
        total = {key: matrix + total.get(key, 0) for key, matrix in found.items()}
        scored += count
        done(scored, len(ids))
        pulse(scored, len(ids))
    assert scored == len(ids), (scored, len(ids))
    matrices: dict[int, dict[str, np.ndarray]] = {}
    for (draw, row), matrix in total.items():
        matrices.setdefault(draw, {})[row] = matrix
    for draw, rows in matrices.items():
        write_json(run.draw(draw).root / "confusion.json", rows)
    return matrices


def score_in_process(scorer: Scorer) -> ScoreChunks:
    """Scores chunks one after the other in this process."""
    return lambda chunks: ((len(chunk), scorer(chunk)) for chunk in chunks)
