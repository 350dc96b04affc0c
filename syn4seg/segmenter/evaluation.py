"""Evaluation: one int64 confusion matrix per classifier, and every figure derived from it (method.md 6).

Features of a query are computed once and shared by all classifiers, so ablation rows and support draws cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from syn4seg.data.canvas import Canvas
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.labeling.refinement import boundary_band
from syn4seg.schema import UNLABELED
from syn4seg.segmenter.network import Classifier, Segmenter, frozen_features

EXACT = 2**24
"""Pixels that OpenCV counts at a time: its histograms are float32, which holds every whole number up to this one."""


def confusion(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Return int64 (classes, classes): row = label, column = prediction; pixels that are 255 in either are left out.

    Args:
        prediction: uint8, of any shape.
        label: uint8, of the same shape.

    Raises:
        ValueError: another value that is no class.
    """
    pairs, guesses, truth = np.zeros((256, 256), np.int64), np.ravel(prediction), np.ravel(label)
    for start in range(0, len(truth), EXACT):
        part = np.s_[start : start + EXACT]
        pairs += cv2.calcHist([truth[part], guesses[part]], [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    pairs = pairs[:UNLABELED, :UNLABELED]
    if pairs[classes:].any() or pairs[:, classes:].any():
        raise ValueError(f"label or prediction holds a value that is no class: expected 0 to {classes - 1}, or {UNLABELED}")
    return pairs[:classes, :classes].copy()


def abstentions(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Return int64 (classes,): the labelled pixels of each class for which the prediction is 255, so that no class is named."""
    return np.bincount(label[(label != UNLABELED) & (prediction == UNLABELED)], minlength=classes)


def class_iou(matrix: np.ndarray, missed: np.ndarray | None = None) -> np.ndarray:
    """Return intersection over union float64 (C,); nan for a class that no label holds, so that all rows average the same classes.

    Args:
        matrix: confusion (C, C).
        missed: `abstentions` (C,), which belong to the union; None: there are none.
    """
    labelled = matrix.sum(1) + (0 if missed is None else missed)
    hits = np.diag(matrix).astype(np.float64)
    union = labelled + matrix.sum(0) - np.diag(matrix)
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=labelled > 0)


class Metrics(TypedDict):
    """The figures of a table, as `metrics` returns them."""

    base: float
    base_with_background: float
    novel: float
    mean: float
    total: float
    harmonic: float
    harmonic_with_background: float
    per_class: list[float]


def metrics(matrix: np.ndarray, base: int, novel: int, missed: np.ndarray | None = None) -> Metrics:
    """Return every figure of a GFSS table, as shares in [0, 1] (method.md 6).

    Args:
        matrix: confusion (1+B+M, 1+B+M).
        base: B, the number of base classes.
        novel: M, the number of novel classes.
        missed: as in `class_iou`.

    Returns:
        base (foreground only, DIaM), base_with_background (CAPL, POP), novel, mean = (base+novel)/2, total (mean over all
        classes), harmonic = 2bn/(b+n), the same with base_with_background (as POP's figures give it), and per_class
        IoU. Absent classes are nan and left out of means.

    Raises:
        ValueError: the matrix has not 1+B+M rows and columns.
    """
    if matrix.shape != (1 + base + novel,) * 2:
        raise ValueError(
            f"confusion matrix is {matrix.shape}; expected {(1 + base + novel,) * 2} for {base} base and {novel} novel classes"
        )
    iou = class_iou(matrix, missed)
    b, n, with_background = _mean(iou[1 : 1 + base]), _mean(iou[1 + base :]), _mean(iou[: 1 + base])
    return {
        "base": b,
        "base_with_background": with_background,
        "novel": n,
        "mean": (b + n) / 2,
        "total": _mean(iou),
        "harmonic": _harmonic(b, n),
        "harmonic_with_background": _harmonic(with_background, n),
        "per_class": iou.tolist(),
    }


def _harmonic(a: float, b: float) -> float:
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


@dataclass(frozen=True)
class Query:
    """A real image to be segmented.

    Attributes:
        sample_id: its name.
        features: frozen features float16 (D, h, w) of the image on `canvas`.
        label: class indices uint8: on the canvas (size, size), or as large as the image.
        canvas: of the segmenter.
        shape: rows and columns of the original image where pixels are counted there; None: on the canvas.
    """

    sample_id: str
    features: Tensor
    label: np.ndarray
    canvas: Canvas
    shape: tuple[int, int] | None = None


Predictor = Callable[[Query], np.ndarray]
"""A query's class indices uint8, as large as its label."""


def iterate_queries(
    segmenter: Segmenter,
    dataset: Dataset,
    fold: Fold,
    ids: Sequence[str],
    *,
    canvas: Canvas,
    space: Literal["original", "canvas"] = "original",
    batch: int = 16,
) -> Iterator[Query]:
    """Yield query by query, features computed `batch` at a time.

    Args:
        space: where pixels are counted: the original image (CAPL, POP), or the canvas (DIaM).
    """
    table = fold.to_index
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        features = frozen_features(segmenter, np.stack([canvas.image(dataset.image(s)) for s in part]), batch=batch)
        for row, sample_id in zip(features, part, strict=True):
            label = table[dataset.mask(sample_id)]
            if space == "canvas":
                yield Query(sample_id, row, canvas.label(label), canvas)
            else:
                yield Query(sample_id, row, label, canvas, (label.shape[0], label.shape[1]))


def scores_to_classes(query: Query, scores: Tensor) -> np.ndarray:
    """Return class indices uint8, as large as the query's label, of scores (1, C, size, size) on its canvas."""
    planes = scores.split(1, 1)
    if query.shape is not None:
        planes = (scores_at_pixels(plane, query.canvas, query.shape) for plane in planes)
    return best_classes(plane[0, 0] for plane in planes)[0].cpu().numpy()


def best_classes(planes: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return where each pixel's score is highest, uint8 (H, W), and that score (H, W); ties go to the lower class.

    Equals `argmax(0)` of all planes, but only one is there at a time, so it is read again while it is in the cache.

    Args:
        planes: scores (H, W) of class 0, 1, ...
    """
    rest = iter(planes)
    best = next(rest).clone()
    label = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for index, values in enumerate(rest, 1):
        label.masked_fill_(values > best, index)
        torch.maximum(best, values, out=best)
    return label, best


def scores_at_pixels(scores: Tensor, canvas: Canvas, shape: tuple[int, int]) -> Tensor:
    """Return scores (N, C, H, W) of an original image of `shape` (H, W), of scores (N, C, size, size) on its canvas.

    Bilinear, by PyTorch: classes that are brought to the pixels alone get the values that they get together, but for the last bit.
    """
    rows, columns = canvas.shape(shape)
    scores = scores[:, :, :rows, :columns]
    return scores if (rows, columns) == shape else F.interpolate(scores, shape, mode="bilinear")


Name = TypeVar("Name")


def accumulate_confusion(
    stream: Iterable[Query],
    predictors: Mapping[Name, Predictor],
    classes: int,
    counts: Callable[[Name, str], bool] = lambda name, sample_id: True,
) -> dict[Name, np.ndarray]:
    """Return the confusion matrix int64 (classes, classes) of each predictor.

    Args:
        stream: `iterate_queries(...)`, or a list of them to be used again.
        predictors: by name, e.g. (draw, row); `predictor_of` makes one of a classifier.
        classes: 1+B+M, also where a classifier has the base rows only.
        counts: (name of the predictor, id of the query) -> whether this query is one of this predictor's.

    Raises:
        ValueError: a predictor names no class (255) for a labelled pixel.
    """
    total = {name: np.zeros((classes, classes), np.int64) for name in predictors}
    for query in stream:
        for name, predict in predictors.items():
            if counts(name, query.sample_id):
                prediction = predict(query)
                if abstentions(prediction, query.label, classes).any():
                    raise ValueError(f"the predictor {name} returned {UNLABELED} for labelled pixels; expected a class for each")
                total[name] += confusion(prediction, query.label, classes)
    return total


def predictor_of(classifier: Classifier) -> Predictor:
    """Return the predictor of a classifier."""

    def predict(query: Query) -> np.ndarray:
        with torch.no_grad():
            return scores_to_classes(query, classifier.pixels(query.features.to(classifier.weight)[None], query.canvas.size))

    return predict


def boundary_iou(labels: Sequence[np.ndarray], truths: Sequence[np.ndarray], classes: int, width: int) -> np.ndarray:
    """Return the boundary IoU per class (Cheng et al., CVPR 2021), over all images: float64 (classes,), nan if absent.

    Compared are the pixels of each mask within `width` pixels (chessboard distance) of its own outside; the image's
    frame counts as outside. Pixels that are 255 in label or truth are left out.
    """
    hits, union = np.zeros(classes), np.zeros(classes)
    for label, truth in zip(labels, truths, strict=True):
        use = (label != UNLABELED) & (truth != UNLABELED)
        for k in range(classes):
            a, b = (_inner_band(x == k, width) & use for x in (label, truth))
            hits[k] += (a & b).sum()
            union[k] += (a | b).sum()
    return np.divide(hits, union, out=np.full(classes, np.nan), where=union > 0)


def _inner_band(mask: np.ndarray, width: int) -> np.ndarray:
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (eroded == 0)


def trimap_iou(labels: Sequence[np.ndarray], truths: Sequence[np.ndarray], classes: int, width: int) -> np.ndarray:
    """Return the IoU per class, as `boundary_iou`, on the pixels within `width` pixels of a change of the true label."""
    total = np.zeros((classes, classes), np.int64)
    for label, truth in zip(labels, truths, strict=True):
        near = boundary_band(truth, width)
        total += confusion(np.where(near, label, UNLABELED).astype(np.uint8), truth, classes)
    return class_iou(total)
