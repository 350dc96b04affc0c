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
    labeler.enhancer, labeler.check = enhance, None  # type: ignore[assignment]
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


def test_an_image_that_does_not_show_its_class_is_rejected_with_the_figures_and_labeled_all_the_same():
    labeler = Labeler.__new__(Labeler)
    seen = []

    def judge(image: np.ndarray, target: int):
        seen.append(target)
        if image.max() > 100:
            raise FloatingPointError("the picture check's answer is not finite")
        return ("class_not_shown" if target == 2 else ""), {"ahead": -0.1}

    labeler.enhancer, labeler.check = enhance, judge  # type: ignore[assignment]
    images = [np.full((4, 4, 3), value, np.uint8) for value in (0, 0, 0, 150, 0)]
    rows = {"image": array_column(images), "class_id": np.array([1, 2, 3, 1, 1]), "traceback": string_column([""] * 5)}
    out = labeler(rows | {"reason": string_column(["", "", "", "", "earlier"])})
    assert list(out["reason"][[0, 1, 2, 4]]) == ["", "class_not_shown", "too small", "earlier"] and seen == [1, 2, 3, 1]
    assert out["reason"][3].startswith(FAULT + "labeling: FloatingPointError: the picture check")
    assert [json.loads(text) for text in out["labeling_audit"][:2]] == [{"area": 16, "check": {"ahead": -0.1}}] * 2
    assert (out["draft"][1] == 2).all(), "rows that take no verdict train on it as on other rejected images"
