"""Drafts, filters and relabels (APE, method.md 3), after the picture check where that is on.

Dense features are computed in the actor and never leave it.
"""

from __future__ import annotations

import json

import numpy as np

from actors.columns import Batch, array_column, map_rows, string_column
from syn4seg.config.tree import Config
from syn4seg.schema import UNLABELED


class Labeler:
    """The segmenter after registration on the support set, then APF and APR, image by image."""

    reads = ("image", "class_id", "reason", "traceback")
    adds = ("draft", "kept", "relabeled", "labeling_audit")

    def __init__(self, run: str, draw: int, names: tuple[str, ...], config: Config, device: str):
        from syn4seg.stages.labels import Enhancer
        from syn4seg.stages.setup import class_check
        from syn4seg.store.rundir import RunDir

        self.check = class_check(config, names, device)
        self.enhancer = Enhancer.from_run(RunDir(run), draw, config, device)

    def __call__(self, rows: Batch) -> Batch:
        def work(i: int):
            image, target = np.asarray(rows["image"][i]), int(rows["class_id"][i])
            reason, figures = self.check(image, target) if self.check else ("", {})
            labels = self.enhancer(image, target)
            audit = labels.audit | ({"check": figures} if figures else {})
            return labels.draft, labels.kept, labels.relabeled, json.dumps(audit), reason or labels.reason

        def blank(i: int):
            empty = np.full(np.asarray(rows["image"][i]).shape[:2], UNLABELED, np.uint8)
            return empty, empty, empty, "{}"

        *labels, audit, reason, trace = map_rows(rows, "labeling", work, blank)
        columns = {name: array_column(values) for name, values in zip(("draft", "kept", "relabeled"), labels, strict=True)}
        texts = {"labeling_audit": audit, "reason": reason, "traceback": trace}
        return rows | columns | {name: string_column(values) for name, values in texts.items()}
