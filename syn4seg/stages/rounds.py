"""What a round of labelling hands to the next (method.md 3.3): the classifier that it trained, and prototypes of what it labelled.

One support image says little of a class; the accepted images of a round show it dozens of times, in labels that are mostly right.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from syn4seg.labeling.prototypes import normalize, pool, region_map
from syn4seg.stages.classifiers import load_classifier
from syn4seg.stages.joint import learned_samples
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.support import Registration

ROW = "syn4seg"
"""The row whose labels and classifier the next round starts from."""
READ = 64
"""Samples that are read at a time."""


def next_registration(stage: NovelStage, draw: int) -> Registration:
    """Return what the next round labels with, from a draw of a run that is labelled and trained.

    The prototype of a novel class is a blend of the support's and of the mean feature of its label on the accepted images that
    were made for it (`labeling.support_share`); a class without such pixels keeps the support's. Thresholds and the other
    prototypes stay.
    """
    config, paths = stage.config, stage.run.draw(draw)
    before, classifier = Registration.load(paths), load_classifier(paths.checkpoint(ROW))
    prototypes, share = before.prototypes.copy(), config.labeling.support_share
    sums: dict[int, np.ndarray] = {}
    rows = [row for _, row in sorted(learned_samples(stage.run, draw, ROW, stage.fold).items())]
    for start in range(0, len(rows), READ):
        for sample, image in paths.read(rows[start : start + READ]):
            target = int(sample.record["class_id"])
            assert image is not None
            label = stage.training_labels(sample.labels)["label"]
            features = stage.features_of(sample.record["sample_id"], image).float().numpy()
            own = pool(features, region_map(label, [target]), 1, config.segmenter.align_corners)[0]
            sums[target] = sums.get(target, 0.0) + own.astype(np.float64)
    for target, total in sums.items():
        if total.any():
            mean = normalize(total.astype(np.float32))
            prototypes[target] = normalize(share * prototypes[target] + (1 - share) * mean)
    return replace(before, weight=classifier.weight.numpy(), bias=classifier.bias.numpy(), prototypes=prototypes)
