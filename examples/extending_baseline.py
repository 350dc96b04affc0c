"""A baseline of one file: the nearest prototype by angle, and the one line that makes it a value of `evaluation.baselines`.

    python examples/extending_baseline.py

runs the method on a tiny configuration of the embedded world and scores the baseline beside it. To keep a baseline, put its
file into `syn4seg/baselines` and its line into the table `BASELINES` there.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.nn.functional as F

from actors.pipeline import Pipeline
from syn4seg.baselines import BASELINES, Baseline
from syn4seg.baselines.support import BaselineFacts, BaselineTask
from syn4seg.options import read_config
from syn4seg.segmenter.evaluation import Predictor, predictor_of
from syn4seg.segmenter.network import Classifier
from syn4seg.stages.checks import check
from syn4seg.store.rundir import RunDir
from tune.objective import SilentDisplay

FACTS: BaselineFacts = {
    "source": "nearest prototype by angle, an example",
    "settings": "mean features of every class, no training",
    "deviations": [],
}


def build(task: BaselineTask) -> Predictor:
    """Return a predictor that gives each cell the class whose mean feature has the smallest angle to it."""
    base = task.base.weight if task.prototypes is None else task.prototypes.to(task.base.weight)
    rows = F.normalize(torch.cat([base, task.cells.means()]), dim=1)
    return predictor_of(Classifier(rows, torch.zeros(len(rows)).to(rows), True, task.base.align_corners))


BASELINES["nearest"] = Baseline("nearest prototype", __name__)  # the one line

TINY = [
    "embedded",
    "placement.runner=inline",
    "prompts.bank_size=3",
    "synthesis.images_per_class=3",
    "synthesis.batch=4",
    "data.val_images=20",
    "data.train_images=200",
    "data.min_support_area=0.03",
    "labeling.base_prototype_images=20",
    "novel.steps=6",
    "novel.replay_images=8",
    "evaluation.baselines=[imprinting, nearest]",
]


def main() -> dict[str, Any]:
    """Run the tiny configuration; return the part of results.json that is about baselines."""
    with tempfile.TemporaryDirectory() as folder:
        config, run = read_config(TINY), RunDir(f"{folder}/run")
        dataset, fold = check(config, run)
        run.open(config)
        results = Pipeline(config, run, dataset, fold, SilentDisplay()).run_all()["baselines"]
    for name, baseline in results.items():
        print(f"{name}: novel mIoU {baseline['metrics']['novel']['mean']:.3f}; {baseline['source']}")
    return results


if __name__ == "__main__":
    main()
