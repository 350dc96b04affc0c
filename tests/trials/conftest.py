"""Shared by the tests of trials: a finished run of two draws, and a cache that holds everything a trial of it needs."""

from __future__ import annotations

import pytest

from syn4seg.config.loading import load
from syn4seg.trials.cache import StageCache
from tests.shared_trials import SETTINGS, last, trials, whole


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small):
    config = load(None, [*small, *SETTINGS])
    run, results = whole(config, tmp_path_factory.mktemp("trial") / "run")
    return config, run, results


@pytest.fixture(scope="module")
def warm(finished, tmp_path_factory):
    config, run, _ = finished
    cache = tmp_path_factory.mktemp("warm")
    last(trials(StageCache(cache), run), config)
    return cache
