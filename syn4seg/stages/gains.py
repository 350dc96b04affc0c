"""Gains paired by draw: what a row has over another one on the same support set and queries, with its spread.

Rows of one draw share their support set, from which most of the spread of a score comes; their difference is free of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

METRICS = ("base", "novel", "mean", "harmonic")
BASELINE_ROW, ORACLE_ROW = "support_only", "oracle"
REFERENCES = (BASELINE_ROW, "hdig_raw", "control_image_label", "control_by_name")


def paired_gains(figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the gains of every row over the support set alone, raw labels, control A and the control by name, and its share of the
    oracle's gain.

    Args:
        figures: row -> its `segmenter.evaluation.metrics` by draw, draws in the same order in every row.

    Returns:
        row -> {"over_support_only": {metric: {mean, std, n, won}}, the same "over_hdig_raw", "over_control_image_label" and
        "over_control_by_name", "share_of_oracle": {metric: share}}, as far as the rows are there.
        `won` counts the draws with a gain above 0. The share is that of the mean gains of novel and harmonic mIoU; None without an
        oracle, or where the oracle gains nothing: then no labels could have gained.
    """
    gains: dict[str, Any] = {}
    for row in figures:
        entry: dict[str, Any] = {}
        for reference in REFERENCES:
            if reference in figures and row != reference:
                entry[f"over_{reference}"] = {metric: _paired(figures[row], figures[reference], metric) for metric in METRICS}
        if entry:
            gains[row] = entry
    oracle = gains.get(ORACLE_ROW, {}).get(f"over_{BASELINE_ROW}", {})
    for row, entry in gains.items():
        own = entry.get(f"over_{BASELINE_ROW}")
        if own is not None and row != ORACLE_ROW:
            entry["share_of_oracle"] = {metric: _share(own[metric], oracle.get(metric)) for metric in ("novel", "harmonic")}
    return gains


def _paired(row: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    values = np.array([a[metric] - b[metric] for a, b in zip(row, reference, strict=True)], float)
    values = values[~np.isnan(values)]
    if not len(values):
        return {"mean": None, "std": None, "n": 0, "won": 0}
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "std": std, "n": len(values), "won": int((values > 0).sum())}


def _share(own: dict[str, Any], oracle: dict[str, Any] | None) -> float | None:
    if oracle is None or own["mean"] is None or not oracle["mean"] or oracle["mean"] <= 0:
        return None
    return own["mean"] / oracle["mean"]
