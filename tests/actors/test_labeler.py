"""The labeler actor: what the method returns goes into columns row by row, and a bad row costs one row."""

from __future__ import annotations

import json

import numpy as np

from actors.columns import FAULT, array_column, string_column
from actors.labeler import Labeler
from syn4seg.schema import UNLABELED
from syn4seg.stages.labels import EnhancedLabels


def enhance(image: np.ndarray, class_id: int) -> EnhancedLabels:
    """Stand-in for the method: labels of the image's size with the class id, and a rejection of class 3."""
    if image.max() > 200:
        raise FloatingPointError("nan")
    labels = [np.full(image.shape[:2], class_id + step, np.uint8) for step in range(3)]
    return EnhancedLabels(*labels, {"area": int(labels[0].size)}, "too small" if class_id == 3 else "")


def test_rows_of_several_sizes_are_labeled_rejected_quarantined_or_passed_through():
    labeler = Labeler.__new__(Labeler)
    labeler.enhancer = enhance  # type: ignore[assignment]
    sizes, values = ((4, 6), (5, 5), (4, 4), (3, 7)), (0, 0, 255, 0)
    images = [np.full((*size, 3), value, np.uint8) for size, value in zip(sizes, values, strict=True)]
    rows = {"image": array_column(images), "class_id": np.array([1, 3, 1, 1]), "traceback": string_column([""] * 4)}
    out = labeler(rows | {"reason": string_column(["", "", "", "earlier"])})
    assert set(out) == {*rows, "reason", *Labeler.adds}
    assert list(out["reason"][[0, 1, 3]]) == ["", "too small", "earlier"]
    assert out["reason"][2].startswith(FAULT + "labeling: FloatingPointError: nan") and "in enhance" in out["traceback"][2]
    for i, size in enumerate(sizes):
        for step, column in enumerate(("draft", "kept", "relabeled")):
            expected = int(rows["class_id"][i]) + step if i < 2 else UNLABELED
            assert out[column][i].shape == size and out[column][i].dtype == np.uint8 and (out[column][i] == expected).all()
    assert [json.loads(text) for text in out["labeling_audit"]] == [{"area": 24}, {"area": 25}, {}, {}]
