"""A baseline of one file: the nearest prototype, and the one line that makes it a value of `evaluation.baselines`.

    python examples/extending_baseline.py

scores it on the embedded world through the same functions as `syn4seg run`. To keep a baseline, put its file into
`syn4seg/baselines` and its line into the table `BASELINES` there: the workers of a cluster read the table, not this script.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from syn4seg.baselines import BASELINES, Baseline
from syn4seg.baselines.support import BaselineFacts, BaselineTask
from syn4seg.config.loading import load
from syn4seg.data.canvas import Canvas
from syn4seg.labeling.prototypes import support_prototypes
from syn4seg.segmenter.evaluation import Metrics, Predictor, accumulate_confusion, iterate_queries, metrics, predictor_of
from syn4seg.segmenter.network import Classifier, load_segmenter
from syn4seg.stages.base_data import base_samples
from syn4seg.stages.checks import check
from syn4seg.stages.scoring import baseline_predictors, queries_by_draw
from syn4seg.stages.setup import shipped_base
from syn4seg.stages.support import feature_extractor

FACTS: BaselineFacts = {
    "source": "nearest prototype by cosine",
    "settings": "prototypes are mean features: of base training images, and of each novel class's support pixels",
    "deviations": [],
}


def build(task: BaselineTask) -> Predictor:
    """Return the nearest prototype by cosine: between rows of unit length the greatest f.p, so it is a linear classifier."""
    base = task.base.weight if task.prototypes is None else task.prototypes
    rows = functional.normalize(torch.cat([base, task.cells.means()]))
    return predictor_of(Classifier(rows, rows.new_zeros(len(rows))))


BASELINES["nearest"] = Baseline("nearest prototype", __name__)  # the one line; in the package it stands in baselines/__init__.py


def main() -> Metrics:
    """Score the baseline on forty queries of the embedded world; return every figure of the table."""
    config = load(None, ["evaluation.baselines=[nearest]", "evaluation.queries=40"])
    dataset, fold = check(config)
    segmenter, _ = load_segmenter(shipped_base(config.data.fold))
    images = base_samples(config, segmenter, dataset, fold, feature_extractor(config, segmenter, dataset)).prototype_images
    maps, labels = [s.features.float().numpy() for s in images], [s.label for s in images]
    prototypes = support_prototypes(maps, labels, range(1 + len(fold.base)))
    predictors = baseline_predictors(config, dataset, fold, segmenter, draw=0, prototypes=prototypes)
    ids = queries_by_draw(config, dataset, fold)[0]
    queries = iterate_queries(segmenter, dataset, fold, ids, canvas=Canvas(config.segmenter.size, config.segmenter.canvas))
    (matrix,) = accumulate_confusion(queries, predictors, len(fold.index_names)).values()
    figures = metrics(matrix, len(fold.base), len(fold.novel))
    print(f"{len(ids)} queries: base {figures['base']:.3f}, novel {figures['novel']:.3f}, harmonic {figures['harmonic']:.3f}")
    return figures


if __name__ == "__main__":
    main()
