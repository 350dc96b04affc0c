"""Scores of predictions: one confusion matrix over a stream of images, and every figure of a GFSS table."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.library.arrays import check_class_index, check_label_map, like_input
from syn4seg.library.progress import Progress, reporting
from syn4seg.schema import BACKGROUND, UNLABELED

if TYPE_CHECKING:
    from syn4seg.library.arrays import Array


@dataclasses.dataclass(frozen=True)
class Scores:
    """IoU as shares in [0, 1]; nan where there is no class.

    Attributes:
        base, novel: mean IoU over the base classes and over the novel classes, without background.
        mean, harmonic: of `base` and `novel`.
        base_with_background, harmonic_with_background: the same with background among the base classes (CAPL, POP).
        total: mean over all classes and background.
        per_class: class index -> IoU, background (0) first.
        confusion: pixels, int64 (1+B+M, 1+B+M), row = label, column = prediction, in the order of `per_class`.
        missed: labelled pixels, int64 (1+B+M,), for which the prediction is 255; they count as wrong.
    """

    base: float
    novel: float
    mean: float
    harmonic: float
    base_with_background: float
    harmonic_with_background: float
    total: float
    per_class: dict[int, float]
    confusion: Array
    missed: Array


def evaluate(
    labels: Iterable[Any],
    predictions: Iterable[Any] | None = None,
    *,
    base: Iterable[int],
    novel: Iterable[int],
    progress: Progress = False,
) -> Scores:
    """Score predictions: one confusion matrix over all pixels of all images, and every figure of a GFSS table from it.

    Args:
        labels: label maps (H, W), whose sizes may differ: a list, (N, H, W), one map, or a stream; without `predictions`, pairs of
            a label map and its prediction. One pair at a time is in memory.
        predictions: class indices, as large as their label maps.
        base, novel: the class indices of each; background (0) belongs to neither.

    Returns:
        `Scores`. Pixels that are 255 in the label are left out; where only the prediction is 255, it is wrong.

    Raises:
        ValueError: a class in two groups, a value that is no class, sizes or counts that differ, or no image.

    Source: method.md 6; the same figures as `syn4seg.segmenter.evaluation.metrics`.
    """
    from syn4seg.segmenter import evaluation

    groups = {"base": _indices(base, "base"), "novel": _indices(novel, "novel")}
    classes = [BACKGROUND, *groups["base"], *groups["novel"]]
    if len(set(classes)) < len(classes) or len(classes) == 1:
        raise ValueError(f"base is {groups['base']} and novel {groups['novel']}; expected different classes, at least one")
    table = np.full(256, -1, np.int16)
    table[[*classes, UNLABELED]] = [*range(len(classes)), UNLABELED]
    matrix, missed = np.zeros((len(classes),) * 2, np.int64), np.zeros(len(classes), np.int64)
    kind, count, total = None, 0, _length(labels)
    with reporting(progress, "images") as report:
        for count, (label, prediction) in enumerate(_pairs(labels, predictions), 1):
            truth = check_label_map(label, f"labels[{count - 1}]")
            guess = check_label_map(prediction, f"predictions[{count - 1}]", truth.shape)
            rows = [_to_rows(table, array, f"{name}[{count - 1}]") for name, array in (("labels", truth), ("predictions", guess))]
            matrix += evaluation.confusion(rows[1], rows[0], len(classes))
            missed += evaluation.abstentions(rows[1], rows[0], len(classes))
            kind = label if kind is None else kind
            report(count, total)
    if not count:
        raise ValueError("labels is empty; expected at least one label map with its prediction")
    figures: dict[str, Any] = {**evaluation.metrics(matrix, len(groups["base"]), len(groups["novel"]), missed)}
    figures["per_class"] = dict(zip(classes, figures["per_class"], strict=True))
    return Scores(**figures, confusion=like_input(matrix, kind), missed=like_input(missed, kind))


def _indices(classes: Iterable[int], what: str) -> list[int]:
    if not isinstance(classes, Iterable):
        raise ValueError(f"{what} is {classes!r}; expected the class indices themselves, e.g. range(1, 16)")
    return [check_class_index(k, f"a class in {what}") for k in classes]


def _to_rows(table: np.ndarray, label: np.ndarray, what: str) -> np.ndarray:
    """Return the rows of the confusion matrix uint8 (H, W) for a label map."""
    rows = table[label]
    if (rows < 0).any():
        raise ValueError(
            f"{what} holds {label[rows < 0][0]}, which is neither background nor in base or novel; add it there, or "
            "set the pixels of the label to 255 to leave them out"
        )
    return rows.astype(np.uint8)


def _length(labels: Any) -> int | None:
    if getattr(labels, "ndim", 3) == 2:
        return 1
    return len(labels) if hasattr(labels, "__len__") else None


def _pairs(labels: Iterable[Any], predictions: Iterable[Any] | None) -> Iterator[tuple[Any, Any]]:
    if predictions is None:
        for index, pair in enumerate(labels):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ValueError(
                    f"labels[{index}] is a {type(pair).__name__}; without predictions, expected pairs (label, prediction)"
                )
            yield pair[0], pair[1]
        return
    ended = object()
    streams = ([maps] if getattr(maps, "ndim", 3) == 2 else maps for maps in (labels, predictions))
    for label, prediction in itertools.zip_longest(*streams, fillvalue=ended):
        if label is ended or prediction is ended:
            raise ValueError(f"{'labels' if label is ended else 'predictions'} ended first; expected one prediction per label map")
        yield label, prediction
