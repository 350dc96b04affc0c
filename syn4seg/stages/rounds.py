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
from syn4seg.stages.setup import canvas_of
from syn4seg.stages.similarity import feature_network, image_part
from syn4seg.stages.support import Registration

ROW = "syn4seg"
"""The row whose labels and classifier the next round starts from."""
READ = 64
"""Samples that are read at a time."""


def next_registration(stage: NovelStage, draw: int) -> Registration:
    """Return what the next round labels with, from a draw of a run that is labelled and trained.

    The prototype of a novel class is a blend of the support's and of the mean feature of its label on the accepted images that
    were made for it (`labeling.support_share`); a class without such pixels keeps the support's. Thresholds and the other
    prototypes stay. The prototypes of another network (`labeling.features`) are blended alike, in its own features.
    """
    config, paths = stage.config, stage.run.draw(draw)
    before, classifier = Registration.load(paths), load_classifier(paths.checkpoint(ROW))
    network, canvas = feature_network(config, stage.segmenter.weight.device), canvas_of(config)
    sums: dict[int, np.ndarray] = {}
    measured: dict[int, np.ndarray] = {}
    rows = [row for _, row in sorted(learned_samples(stage.run, draw, ROW, stage.fold).items())]
    for start in range(0, len(rows), READ):
        for sample, image in paths.read(rows[start : start + READ]):
            target = int(sample.record["class_id"])
            assert image is not None
            label = stage.training_labels(sample.labels)["label"]
            features = stage.features_of(sample.record["sample_id"], image).float().numpy()
            own = pool(features, region_map(label, [target]), 1, config.segmenter.align_corners)[0]
            sums[target] = sums.get(target, 0.0) + own.astype(np.float64)
            if network is not None:
                seen = region_map(image_part(canvas, label, image.shape), [target])
                measured[target] = measured.get(target, 0.0) + pool(network(image), seen, 1)[0].astype(np.float64)
    share, rows = config.labeling.support_share, (classifier.weight.numpy(), classifier.bias.numpy())
    after = None if before.measured is None else _blended(before.measured, measured, share)
    return replace(before, weight=rows[0], bias=rows[1], prototypes=_blended(before.prototypes, sums, share), measured=after)


def _blended(prototypes: np.ndarray, sums: dict[int, np.ndarray], share: float) -> np.ndarray:
    """Return prototypes (1+B+M, D) of which those with a sum of features (D,) keep a `share`; the rest is the sum's direction."""
    blended = prototypes.copy()
    for target, total in sums.items():
        if total.any():
            mean = normalize(total.astype(np.float32))
            blended[target] = normalize(share * blended[target] + (1 - share) * mean)
    return blended
