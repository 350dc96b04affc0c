"""Corrects boundaries with SAM inside the band only (SABR, method.md 4)."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np

from actors import deadline
from actors.columns import Batch, array_column, map_rows, string_column
from syn4seg.config.sections import RefinementConfig
from syn4seg.labeling.relabeling import judge_target
from syn4seg.schema import BACKGROUND, UNLABELED


class Refiner:
    """One SAM per actor. Its encoder takes several images at once, always as many, so no image depends on its batch-mates.

    What has too little or too much of its target once its boundaries have moved is rejected, as after relabeling.
    A pass that fails is repeated row by row: the row at fault is quarantined, its batch-mates are not.
    """

    reads = ("image", "class_id", "relabeled", "reason", "traceback")
    adds = ("label", "refinement_audit")
    drops = ("image",)

    def __init__(self, settings: RefinementConfig, limits: tuple[float, float], device: str):
        """Take the config section, `labeling.min_target` and `max_target`, and a device (see `resolve_device`)."""
        from syn4seg.stages.labels import BoundaryRefiner

        self.refine, self.limits = BoundaryRefiner.from_settings(settings, device), limits

    def __call__(self, rows: Batch) -> Batch:
        images, labels = ([np.asarray(values) for values in rows[name]] for name in ("image", "relabeled"))
        results = self._refine_in_passes(images, labels, rows["reason"])

        def work(i: int):
            label, audit = results[i] if i in results else self.refine([images[i]], [labels[i]])[0]
            return label, json.dumps(audit), judge_target(label, int(rows["class_id"][i]), *self.limits)

        label, audit, reason, trace = map_rows(rows, "refinement", work, lambda i: (labels[i], "{}"))
        texts = {"refinement_audit": audit, "reason": reason, "traceback": trace}
        rows = {name: values for name, values in rows.items() if name != "image"}
        return rows | {"label": array_column(label)} | {name: string_column(values) for name, values in texts.items()}

    def _refine_in_passes(
        self, images: list[np.ndarray], labels: list[np.ndarray], reasons: np.ndarray
    ) -> dict[int, tuple[np.ndarray, dict[str, Any]]]:
        """Return the results by row of every pass that did not fail; only rows with something to refine are in one."""
        foreground = [((label != BACKGROUND) & (label != UNLABELED)).any() for label in labels]
        hinted = [i for i, present in enumerate(foreground) if present and not reasons[i]]
        results, size = {}, self.refine.settings.images_per_pass
        for start in range(0, len(hinted), size):
            indices = hinted[start : start + size]
            deadline.tick(len(indices))
            with contextlib.suppress(Exception):
                refined = self.refine([images[i] for i in indices], [labels[i] for i in indices])
                results.update(zip(indices, refined, strict=True))
        return results
