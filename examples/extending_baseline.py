"""A baseline of one file: the nearest prototype, and the one line that makes it a value of `evaluation.baselines`.

    python examples/extending_baseline.py

scores it on the embedded world through the same functions as `syn4seg run`. To keep a baseline, put its file into
`syn4seg/baselines` and its line into the table `BASELINES` there: the workers of a cluster read the table, not this script.
"""

from __future__ import annotations

import torch

from syn4seg.baselines import BASELINES, Baseline
from syn4seg.baselines.support import BaselineFacts, BaselineTask
from syn4seg.config.loading import load
from syn4seg.data.canvas import Canvas
from syn4seg.segmenter.evaluation import Metrics, Predictor, accumulate_confusion, iterate_queries, metrics, predictor_of
from syn4seg.segmenter.network import Classifier, load_segmenter
from syn4seg.stages.checks import check
from syn4seg.stages.scoring import baseline_predictors, queries_by_draw
from syn4seg.stages.setup import shipped_base

FACTS: BaselineFacts = {
    "source": "nearest prototype, Euclidean",
    "settings": "prototypes are the rows of the base classifier and the mean support feature of each novel class",
    "deviations": [],
}


def build(task: BaselineTask) -> Predictor:
    """Return the nearest prototype: the least |f - p|^2 is the greatest f.p - |p|^2 / 2, so it is a linear classifier."""
    rows = torch.cat([task.base.weight, task.cells.means()])
    return predictor_of(Classifier(rows, -rows.square().sum(1) / 2))


BASELINES["nearest"] = Baseline("nearest prototype", __name__)  # the one line; in the package it stands in baselines/__init__.py


def main() -> Metrics:
    """Score the baseline on forty queries of the embedded world; return every figure of the table."""
    config = load(None, ["evaluation.baselines=[nearest]", "evaluation.queries=40"])
    dataset, fold = check(config)
    segmenter, _ = load_segmenter(shipped_base(config.data.fold))
    predictors = baseline_predictors(config, dataset, fold, segmenter, draw=0)
    ids = queries_by_draw(config, dataset, fold)[0]
    queries = iterate_queries(segmenter, dataset, fold, ids, canvas=Canvas(config.segmenter.size, config.segmenter.canvas))
    (matrix,) = accumulate_confusion(queries, predictors, len(fold.index_names)).values()
    figures = metrics(matrix, len(fold.base), len(fold.novel))
    print(f"{len(ids)} queries: base {figures['base']:.3f}, novel {figures['novel']:.3f}, harmonic {figures['harmonic']:.3f}")
    return figures


if __name__ == "__main__":
    main()
