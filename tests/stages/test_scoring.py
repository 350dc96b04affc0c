"""The evaluation in chunks: sums of whole numbers that do not depend on who scored which chunk, or when."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.segmenter.evaluation import accumulate_confusion, iterate_queries
from syn4seg.stages.classifiers import save_classifier
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.rows import BASELINE, rows_of
from syn4seg.stages.scoring import CHUNK, Scorer, queries_by_draw, score_in_process, score_run
from syn4seg.stages.setup import canvas_of, load_dataset
from syn4seg.stages.support import Registration

KEYS = ["data.val_images=37", "data.draws=2", "evaluation.baselines=[imprinting]", "evaluation.queries=34"]


@pytest.fixture
def scored(fresh, small):
    """A run of two draws with a classifier per row: (config, run, data set, fold); 37 queries are two chunks and five."""
    run, _ = fresh
    config = load(None, [*small, *KEYS])
    dataset, fold = load_dataset(config)
    NovelStage(config, run, dataset, fold).register(1)
    torch.manual_seed(0)
    for draw in (0, 1):
        classifier = Registration.load(run.draw(draw)).classifier_on("cpu")
        for row in rows_of(config):
            noisy = classifier.weight + 0.1 * torch.randn_like(classifier.weight)
            save_classifier(run.draw(draw).checkpoint(row), classifier.replaced(noisy, classifier.bias))
    return config, run, dataset, fold


def quiet(*_):
    """Takes no notice."""


def _same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[d][row], b[d][row]) for d in a for row in a[d] | b[d])


def test_chunks_in_any_order_sum_to_one_pass_over_all_queries(scored):
    config, run, dataset, fold = scored
    scorer = Scorer(config, run, dataset, fold)
    wanted = queries_by_draw(config, dataset, fold)
    ids = [s for s in dataset.val if any(s in chosen for chosen in wanted.values())]
    stream = iterate_queries(scorer.segmenter, dataset, fold, ids, canvas=canvas_of(config), batch=CHUNK)
    whole = accumulate_confusion(stream, scorer.predictors, 17, lambda key, s: s in wanted[key[0]])

    def backwards(chunks):
        assert [len(c) for c in chunks] == [16, 16, len(ids) - 32] and len(ids) > 34
        return score_in_process(scorer)(chunks[::-1])

    steps = []
    found = score_run(config, run, dataset, fold, backwards, lambda *done: steps.append(done))
    assert steps == [(len(ids) - 32, len(ids)), (len(ids) - 16, len(ids)), (len(ids), len(ids))]
    assert set(found[1]) == {*rows_of(config), BASELINE + "imprinting"}
    for (draw, row), matrix in whole.items():
        assert matrix.dtype == found[draw][row].dtype == np.int64 and np.array_equal(found[draw][row], matrix)
        pixels = sum(int((dataset.mask(s) != 255).sum()) for s in wanted[draw])
        assert matrix.sum() == pixels
    assert not np.array_equal(found[0]["apf"], found[1]["apf"])


def test_the_stage_itself_scores_the_same_and_leaves_its_files(scored):
    config, run, dataset, fold = scored
    found = NovelStage(config, run, dataset, fold).score_queries(quiet)
    again = score_run(config, run, dataset, fold, score_in_process(Scorer(config, run, dataset, fold)), quiet)
    assert _same(found, again)
    for draw, chosen in queries_by_draw(config, dataset, fold).items():
        assert json.loads(run.draw(draw).queries.read_text()) == chosen and len(chosen) == 34
        stored = json.loads((run.draw(draw).root / "confusion.json").read_text())
        assert {row: np.array(matrix).tolist() for row, matrix in found[draw].items()} == stored


def test_a_classifier_that_is_missing_is_named(scored):
    config, run, dataset, fold = scored
    run.draw(1).checkpoint("apf").unlink()
    with pytest.raises(UserError, match=r"apf.safetensors: missing; run `syn4seg train`"):
        Scorer(config, run, dataset, fold)
