"""A trial computes what a run computes, and nothing that its keys leave as it was."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.cache import StageCache
from syn4seg.config import load
from syn4seg.rundir import RunDir
from syn4seg.stages.setup import check
from syn4seg.stages.trial import Trials

SETTINGS = ("data.draws=2", "novel.steps=6")


class Silent:
    """A display that shows nothing."""

    def note(self, text):
        pass

    def funnel(self, draw, reasons):
        pass

    def results(self, results):
        pass

    def bar(self, title):
        import contextlib

        return contextlib.nullcontext(lambda *_: None)

    def bars(self, *titles):
        import contextlib

        return contextlib.nullcontext([lambda *_: None for _ in titles])


def whole(config, root):
    """A finished run of a configuration."""
    from actors.pipeline import Pipeline

    run = RunDir(root)
    run.open(config)
    dataset, fold = check(config, run)
    pipeline = Pipeline(config, run, dataset, fold, Silent())
    return run, pipeline.whole()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small):
    config = load(None, [*small, *SETTINGS])
    run, results = whole(config, tmp_path_factory.mktemp("trial") / "run")
    return config, run, results


def trials(cache, run, validation=None):
    def never(config, path):
        raise AssertionError("no trial here changes prompts, images or base checkpoint")

    return Trials(cache, run, validation, never, "cpu")


def changed(small, *words):
    return load(None, [*small, *SETTINGS, *words])


def last(made, config, reports=2):
    return list(made.scores(config, reports))[-1]


def test_a_trial_scores_what_the_run_scored_and_labels_what_it_labelled(finished, tmp_path):
    config, run, results = finished
    made = trials(StageCache(tmp_path / "cache"), run)
    found = last(made, config)
    for name in ("base", "novel", "mean", "harmonic", "total"):
        mean = np.mean([found[draw][name] for draw in (0, 1)])
        assert mean == pytest.approx(results["rows"]["syn4seg"][name]["mean"], abs=1e-12), name
