"""Corrects boundaries with SAM inside the band only (SABR)."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np

from actors import deadline as watch
from actors.columns import Batch, array_column, map_rows, string_column
from syn4seg.config.sections import RefinementConfig
from syn4seg.schema import BACKGROUND, UNLABELED


class Refiner:
    """One SAM per actor. Its encoder takes several images at once, always as many, so no image depends on its batch-mates.

    A pass that fails is made again row by row: the row at fault is quarantined, its neighbours are not.
    """

    reads = ("image", "relabeled", "reason", "traceback")
    adds = ("label", "refinement_audit")
    drops = ("image",)

    def __init__(self, settings: RefinementConfig, device: str):
        from syn4seg.stages.labels import BoundaryRefiner

        self.refine = BoundaryRefiner.from_settings(settings, device)

    def __call__(self, rows: Batch) -> Batch:
        images, labels = ([np.asarray(values) for values in rows[name]] for name in ("image", "relabeled"))
        done = self._in_passes(images, labels, rows["reason"])

        def work(i: int):
            label, audit = done[i] if i in done else self.refine([images[i]], [labels[i]])[0]
            return label, json.dumps(audit), ""

        def blank(i: int):
            return labels[i], "{}"

        label, audit, reason, trace = map_rows(rows, "refinement", work, blank)
        rows = {name: values for name, values in rows.items() if name != "image"}
        return rows | {
            "label": array_column(label),
            "refinement_audit": string_column(audit),
            "reason": string_column(reason),
            "traceback": string_column(trace),
        }

    def _in_passes(
        self, images: list[np.ndarray], labels: list[np.ndarray], reasons: np.ndarray
    ) -> dict[int, tuple[np.ndarray, dict[str, Any]]]:
        """Results by row of every pass that went well; only rows with something to refine are in one."""
        foreground = [((label != BACKGROUND) & (label != UNLABELED)).any() for label in labels]
        hinted = [i for i, some in enumerate(foreground) if some and not reasons[i]]
        done, size = {}, self.refine.settings.images_per_pass
        for start in range(0, len(hinted), size):
            part = hinted[start : start + size]
            watch.tick(len(part))
            with contextlib.suppress(Exception):
                made = self.refine([images[i] for i in part], [labels[i] for i in part])
                done.update(zip(part, made, strict=True))
        return done
