"""Drafts, filters and relabels (APE). Dense features are made here and never leave the actor."""

from __future__ import annotations

import json

import numpy as np

from actors.columns import Batch, array_column, map_rows, string_column
from syn4seg.config.tree import Config


class Labeler:
    """The segmenter after registration on the support set, then APF and APR, image by image."""

    reads = ("image", "class_id", "reason", "traceback")
    adds = ("draft", "kept", "relabeled", "labeling_audit")

    def __init__(self, run: str, draw: int, config: Config, device: str):
        from syn4seg.stages.labels import Enhancer
        from syn4seg.store.rundir import RunDir

        self.enhancer = Enhancer.from_run(RunDir(run), draw, config, device)

    def __call__(self, rows: Batch) -> Batch:
        def work(i: int):
            made = self.enhancer(np.asarray(rows["image"][i]), int(rows["class_id"][i]))
            return made.draft, made.kept, made.relabeled, json.dumps(made.audit), made.reason

        def blank(i: int):
            empty = np.full(np.asarray(rows["image"][i]).shape[:2], 255, np.uint8)
            return empty, empty, empty, "{}"

        draft, kept, relabeled, audit, reason, trace = map_rows(rows, "labeling", work, blank)
        return rows | {
            "draft": array_column(draft),
            "kept": array_column(kept),
            "relabeled": array_column(relabeled),
            "labeling_audit": string_column(audit),
            "reason": string_column(reason),
            "traceback": string_column(trace),
        }
