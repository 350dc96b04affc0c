"""The result as pictures: for each novel class a support image, a query, its truth, and what two trained rows make of the query.

Queries are chosen by their truth alone, never by a prediction: the first one of the draw that shows enough of the class. Networks
and classifiers are those that the run keeps; a run that has trained nothing yet shows its support images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from syn4seg.config.tree import Config
from syn4seg.data.support import support_label
from syn4seg.errors import UserError
from syn4seg.report.gallery import label_iou
from syn4seg.report.sheets import encode_labels, encode_photo, shrink
from syn4seg.schema import BACKGROUND, UNLABELED
from syn4seg.stages.classifiers import best_row, load_classifier
from syn4seg.stages.labels import load_on_device
from syn4seg.stages.rows import joint_rows
from syn4seg.stages.setup import canvas_of, load_dataset
from syn4seg.store.files import exists
from syn4seg.store.readback import Names, SupportFacts, read_checked
from syn4seg.terminal import TITLES

if TYPE_CHECKING:
    from syn4seg.data.datasets import Dataset, Fold
    from syn4seg.segmenter.evaluation import Predictor
    from syn4seg.segmenter.network import Segmenter
    from syn4seg.store.rundir import Draw, RunDir

CLASSES = 8
"""Number of novel classes that have a row of pictures, the first ones."""
LOOKED_AT = 400
"""Number of queries among which one is sought for each class."""
LEAST = 0.02
"""Share of a query that a class covers at least, if such a query is found; else the query with the largest share is taken."""
SIDE = 192
"""Longer side of a picture in pixels."""
ALONE = "support_only"
UNSHOWABLE = (UserError, ValueError, LookupError, RuntimeError, OSError)
"""What a damaged or changed run may raise here: names of no image, weights that do not fit each other (RuntimeError of torch)."""


@dataclass(frozen=True)
class OutcomePane:
    """One picture: an image with a label over it.

    Attributes:
        title: above it.
        image: RGB uint8 (H, W, 3).
        label: class indices uint8 (H, W).
        note: a few words below it.
    """

    title: str
    image: np.ndarray
    label: np.ndarray | None = None
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """The pictures of a run.

    Attributes:
        rows: (class name, its pictures from left to right).
        left_out: number of novel classes without a row.
        titles: of the two rows of the results that predicted.
        problem: why there are no predictions, or "".
    """

    rows: list[tuple[str, list[OutcomePane]]] = field(default_factory=list)
    left_out: int = 0
    titles: tuple[str, ...] = ()
    problem: str = ""


def read_outcome(run: RunDir, config: Config, draw: int) -> Outcome:
    """Return the pictures of a draw, as far as the run has come; what cannot be shown is named in `problem`, never raised."""
    paths = run.draw(draw)
    if not exists(paths.support_json):
        return Outcome()
    try:
        dataset, fold = load_dataset(config)
        support = read_checked(paths.support_json, SupportFacts)["support"]
        names = [(k, fold.names[k - 1]) for k in fold.novel]
        shown = [(k, name) for k, name in names if support.get(name)][:CLASSES]
        chosen = choose_queries(dataset, _query_ids(paths, dataset, support), [k for k, _ in shown])
        panes = {k: [_support_pane(config, dataset, fold, k, support[name])] for k, name in shown}
    except UNSHOWABLE as error:
        return Outcome(problem=str(error))
    titles, problem = (), ""
    try:
        titles, problem = _add_queries(run, config, draw, (dataset, fold), chosen, panes)
    except UNSHOWABLE as error:
        problem = str(error)
    return Outcome([(name, panes[k]) for k, name in shown], len(names) - len(shown), titles, problem)


def _query_ids(paths: Draw, dataset: Dataset, support: dict[str, list[str]]) -> list[str]:
    """Return the queries of a draw; before its evaluation the val list without its support images."""
    if exists(paths.queries):
        return read_checked(paths.queries, Names)
    taken = {image_id for ids in support.values() for image_id in ids}
    return [image_id for image_id in dataset.val if image_id not in taken]


def choose_queries(dataset: Dataset, ids: Sequence[str], classes: Iterable[int]) -> dict[int, str]:
    """Return dataset class id -> query: the first that shows at least `LEAST` of it and that no class before it has, if any.

    A class without one has the query, of the first `LOOKED_AT`, that shows most of it; a class that none shows is left out.
    """
    shares = {image_id: dataset.areas(image_id) for image_id in ids[:LOOKED_AT]}
    chosen: dict[int, str] = {}
    for k in classes:
        able = [image_id for image_id, areas in shares.items() if areas.get(k, 0) >= LEAST]
        most = max(shares, key=lambda image_id: shares[image_id].get(k, 0), default=None)
        able += [most] if most is not None and shares[most].get(k, 0) > 0 else []
        if able:
            chosen[k] = next((image_id for image_id in able if image_id not in chosen.values()), able[0])
    return chosen


def _support_pane(config: Config, dataset: Dataset, fold: Fold, target: int, ids: list[str]) -> OutcomePane:
    label = support_label(dataset.mask(ids[0]), fold, target, base_in_support=config.data.base_in_support)
    return OutcomePane("support", dataset.image(ids[0]), label, f"1 of {len(ids)}" if len(ids) > 1 else "")


def _add_queries(
    run: RunDir, config: Config, draw: int, data: tuple[Dataset, Fold], chosen: dict[int, str], panes: dict[int, list[OutcomePane]]
) -> tuple[tuple[str, ...], str]:
    """Add query, truth and predictions of each class; return the titles of the rows that predicted, and why there are none."""
    dataset, fold = data
    for k, image_id in chosen.items():
        image = dataset.image(image_id)
        panes[k] += [OutcomePane("query", image), OutcomePane("truth", image, fold.to_index[dataset.mask(image_id)])]
    trained = _predicting_rows(run, config, draw)
    if not trained or not chosen:
        return (), "" if trained else "no row is trained yet"
    for title, row in trained.items():
        labels = _predict(run, config, draw, row, data, sorted(set(chosen.values())))
        for k, image_id in chosen.items():
            truth = panes[k][2]
            assert truth.label is not None
            note = f"IoU {100 * label_iou(labels[image_id], truth.label, int(fold.to_index[k])):.0f} %"
            panes[k].append(OutcomePane(title, truth.image, labels[image_id], note))
    return tuple(TITLES.get("apr" if row == "apf_apr" else row, row) for row in trained.values()), ""


def _predicting_rows(run: RunDir, config: Config, draw: int) -> dict[str, str]:
    """Return title -> row: support only, and the row that is trained in the fullest way; without those that are not trained."""
    try:
        best = best_row(config, run, draw)
    except UserError:
        return {}
    alone = next((name for name, row in joint_rows(config).items() if row == ALONE and best in joint_rows(config)), ALONE)
    rows = {"support only": alone} if exists(run.draw(draw).checkpoint(alone)) else {}
    return rows | ({"with synthetic" if best not in (alone, ALONE) else "support only": best})


def _predict(run: RunDir, config: Config, draw: int, row: str, data: tuple[Dataset, Fold], ids: list[str]) -> dict[str, np.ndarray]:
    """Return query -> class indices uint8 (H, W), as large as the image, by the networks of the evaluation."""
    from syn4seg.segmenter.evaluation import iterate_queries, predictor_of
    from syn4seg.segmenter.network import load_segmenter

    path = run.draw(draw).checkpoint(row)
    if row in joint_rows(config):
        network: Segmenter = load_segmenter(path)[0].eval()
        predict: Predictor = predictor_of(network.classifier)
    else:
        network, predict = load_on_device(run, "cpu"), predictor_of(load_classifier(path))
    return {query.sample_id: predict(query) for query in iterate_queries(network, *data, ids, canvas=canvas_of(config), batch=4)}


def draw_outcome(outcome: Outcome, names: Sequence[str], colors: Sequence[str]) -> dict[str, Any]:
    """Return the values of the template: rows with data URLs, the legend of the classes that occur, and sentences.

    Args:
        names: of the class indices.
        colors: of the class indices, `#rrggbb`.
    """
    found: set[int] = set()
    rows = [{"name": name, "panes": [_encoded(pane, colors, found) for pane in panes]} for name, panes in outcome.rows]
    legend = [(names[k] if k < len(names) else f"class {k}", colors[k]) for k in sorted(found) if k < len(colors)]
    width = max((len(row["panes"]) for row in rows), default=0)
    return {
        "rows": rows,
        "legend": legend,
        "left_out": outcome.left_out,
        "titles": outcome.titles,
        "problem": outcome.problem,
        "width": width,
    }


def _encoded(pane: OutcomePane, colors: Sequence[str], found: set[int]) -> dict[str, Any]:
    small = shrink(pane.image, SIDE)
    facts = {"title": pane.title, "note": pane.note, "height": small.shape[0], "width": small.shape[1]}
    values: dict[str, Any] = facts | {"photo": Markup(encode_photo(small))}
    if pane.label is not None:
        found |= {int(k) for k in np.unique(pane.label)} - {BACKGROUND, UNLABELED}
        values["label"] = Markup(encode_labels(shrink(pane.label, SIDE), colors))
    return values
