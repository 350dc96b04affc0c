"""The result as pictures: queries chosen by their truth, predictions those of the trained networks, and pages without them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.report.gallery import label_iou
from syn4seg.report.outcome import LEAST, choose_queries, read_outcome
from syn4seg.report.page import _headline
from syn4seg.schema import UNLABELED
from syn4seg.stages.setup import load_dataset
from tests.shared_reports import page_of


class Shares:
    """A data set that knows the shares of the classes in its images, and counts who asks."""

    def __init__(self, shares: dict[str, dict[int, float]]):
        self.shares, self.asked = shares, []

    def areas(self, image_id: str) -> dict[int, float]:
        self.asked.append(image_id)
        return self.shares[image_id]


def test_each_class_has_the_first_query_that_shows_enough_of_it_and_no_two_the_same_if_others_do():
    dataset = Shares({"a": {1: 0.001}, "b": {1: LEAST, 2: 0.5}, "c": {2: LEAST}, "d": {3: LEAST / 2}, "e": {3: LEAST / 3}})
    assert choose_queries(dataset, list("abcde"), [1, 2, 3, 4]) == {1: "b", 2: "c", 3: "d"}
    assert choose_queries(dataset, ["b"], [1, 2]) == {1: "b", 2: "b"}
    many = Shares({str(i): {1: 1.0} for i in range(5000)})
    choose_queries(many, list(many.shares), [1])
    assert len(many.asked) < 1000


def test_the_iou_of_a_class_leaves_out_what_has_no_true_label():
    truth = np.array([[1, 1, UNLABELED, 0]], np.uint8)
    assert label_iou(np.array([[1, 0, 1, 1]], np.uint8), truth, 1) == pytest.approx(1 / 3)
    assert label_iou(truth, truth, 1) == 1 and label_iou(truth, truth, 7) == 0


def test_the_pictures_are_the_images_and_what_the_trained_networks_say(run):
    import torch

    from syn4seg.segmenter.evaluation import iterate_queries, predictor_of
    from syn4seg.stages.classifiers import best_row, trained_segmenter
    from syn4seg.stages.setup import canvas_of

    config = load(run.config)
    dataset, fold = load_dataset(config)
    outcome, support = read_outcome(run, config, 0), json.loads(run.draw(0).support_json.read_text())["support"]
    assert not outcome.problem and outcome.left_out == 0
    assert [name for name, _ in outcome.rows] == [fold.names[k - 1] for k in fold.novel]
    ids = json.loads(run.draw(0).queries.read_text())
    titles = ["support", "query", "truth", "support only", "with synthetic"]
    networks = [trained_segmenter(config, run, 0, row)[0].eval() for row in ("support_only", best_row(config, run, 0))]
    assert any(len(panes) == 5 for _, panes in outcome.rows)
    for name, panes in outcome.rows:
        assert np.array_equal(panes[0].image, dataset.image(support[name][0]))
        if len(panes) == 1:
            continue
        assert [pane.title for pane in panes] == titles
        query = next(i for i in ids if np.array_equal(dataset.image(i), panes[1].image))
        assert np.array_equal(panes[2].label, fold.to_index[dataset.mask(query)])
        for network, pane in zip(networks, panes[3:], strict=True):
            (seen,) = iterate_queries(network, dataset, fold, [query], canvas=canvas_of(config))
            with torch.no_grad():
                expected = predictor_of(network.classifier)(seen)
            assert (expected == pane.label).mean() > 0.999
            iou = label_iou(pane.label, panes[2].label, int(fold.to_index[fold.names.index(name) + 1]))
            assert pane.note == f"IoU {100 * iou:.0f} %"


def test_a_run_that_is_registered_shows_its_support_and_says_that_nothing_is_trained(fresh):
    run, _ = fresh
    outcome = read_outcome(run, load(run.config), 0)
    assert outcome.problem == "no row is trained yet" and {panes[0].title for _, panes in outcome.rows} == {"support"}
    assert "no row is trained yet" in page_of(run)
    run.draw(0).support_json.unlink()
    assert read_outcome(run, load(run.config), 0).rows == [] and 'id="outcome"' not in page_of(run)


def test_a_damaged_network_costs_its_pictures_and_not_the_page(run):
    run.draw(0).checkpoint("support_only").write_bytes(b"no classifier")
    html = page_of(run)
    assert "Predictions cannot be shown" in html and 'id="outcome"' in html and 'id="scores"' in html


def test_the_pictures_stand_above_the_tables_with_the_gain_in_words(run):
    html, rows = page_of(run), json.loads(run.results.read_text())["rows"]
    assert html.index('id="outcome"') < html.index('id="scores"')
    headline = html[html.index('class="headline"') :].split("</p>")[0]
    for row in ("support_only", "syn4seg"):  # one layer each, whatever else was trained
        assert f"{100 * rows[row]['novel']['mean']:.1f}" in headline


def test_the_gain_in_words_is_of_rows_that_train_the_same_part():
    spread = {"std": 0.0, "n": 1}
    rows = {
        row: {"novel": {"mean": mean, **spread}} for row, mean in (("support_only", 0.4), ("syn4seg", 0.7), ("syn4seg_all", 0.8))
    }
    assert _headline({"rows": rows}) == (
        "Novel classes: mIoU 40.0 % from the support images alone; with synthetic images 70.0 % "
        '(row "+ SABR (Syn4Seg)"), 80.0 % (row "Syn4Seg, all trained").'
    )
    del rows["syn4seg"]
    assert _headline({"rows": rows}) == "" == _headline(None)
