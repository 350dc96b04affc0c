"""Trials of a small finished run, and whole runs to compare them with."""

from __future__ import annotations

from syn4seg.config.loading import load
from syn4seg.stages.checks import check
from syn4seg.store.rundir import RunDir
from syn4seg.trials.trial import Trials

SETTINGS = ("data.draws=2", "novel.steps=6")


def whole(config, root):
    """A finished run of a configuration."""
    from actors.pipeline import Pipeline
    from tune.objective import SilentDisplay

    run = RunDir(root)
    run.open(config)
    dataset, fold = check(config, run)
    pipeline = Pipeline(config, run, dataset, fold, SilentDisplay())
    return run, pipeline.run_all()


def trials(cache, run, validation=None):
    def never(config, path):
        raise AssertionError("no trial here changes prompts, images or base checkpoint")

    return Trials(cache, run, validation, never, "cpu")


def changed(small, *words):
    return load(None, [*small, *SETTINGS, *words])


def last(made, config, reports=2):
    return list(made.scores(config, reports))[-1]
