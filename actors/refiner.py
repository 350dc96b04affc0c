"""Corrects boundaries with SAM inside the band only (SABR)."""

from __future__ import annotations

import json

import numpy as np

from actors.columns import Batch, column, each_row, texts


class Refiner:
    """One SAM per actor; each image is refined on its own, so no image depends on its batch-mates."""

    reads = ("image", "relabeled", "reason")
    adds = ("label", "refinement_audit")

    def __init__(self, config: dict, device: str):
        from syn4seg.labeling.enhance import BoundaryRefiner

        self.refine = BoundaryRefiner.from_config(config, device)

    def __call__(self, rows: Batch) -> Batch:
        def work(i: int):
            label, audit = self.refine(np.asarray(rows["image"][i]), np.asarray(rows["relabeled"][i]))
            return label, json.dumps(audit), ""

        def blank(i: int):
            return np.asarray(rows["relabeled"][i]), "{}"

        label, audit, reason = each_row(rows, "refinement", work, blank)
        return rows | {"label": column(label), "refinement_audit": texts(audit), "reason": texts(reason)}
