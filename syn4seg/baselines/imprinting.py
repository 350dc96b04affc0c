"""Prototype imprinting, without a gradient (CAPL-style)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from syn4seg.baselines.support import CELLS, CORNERS, FEATURES, BaselineFacts, BaselineTask
from syn4seg.segmenter.evaluation import Predictor, predictor_of
from syn4seg.segmenter.network import Classifier

FACTS: BaselineFacts = {
    "source": "prototype imprinting as CAPL registers novel classes (Tian et al., CVPR 2022; dvlab-research/GFS-Seg)",
    "settings": "novel prototype = mean support feature over pixels and shots, then unit length; 10 x cosine; no gradient",
    "deviations": [
        "base prototypes are not blended with support context: the gate gamma is learned in CAPL's own base training",
        "no refinement of base prototypes by the query",
        "CAPL trains its prototypes for the cosine; with a linear base classifier, base prototypes here are mean features of "
        "base training images, and the background's is a mean over support pixels",
        "a class is pooled over all support images that show it, not over its own alone (the same where an image "
        "shows one novel class)",
        FEATURES,
        CORNERS,
        CELLS,
    ],
}


def build(task: BaselineTask) -> Predictor:
    """Return the classifier by 10 x cosine to the base prototypes and to the novel means (CAPL, without its learned gate).

    A base class that `task.prototypes` lacks, or whose row is 0, keeps the classifier's own row.
    """
    base, rows = task.base, F.normalize(task.base.weight.detach(), dim=1)
    if task.prototypes is not None and not base.cosine:
        means = F.normalize(task.prototypes.to(rows), dim=1)
        rows = torch.where(means.any(1, keepdim=True), means, rows)
    weight = F.normalize(torch.cat([rows, task.cells.means()]), dim=1)
    return predictor_of(Classifier(weight, weight.new_zeros(len(weight)), True, base.align_corners))
