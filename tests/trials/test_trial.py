"""A trial computes what a run computes, and nothing that its keys leave as it was."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.stages.checks import check
from syn4seg.store.rundir import RunDir
from syn4seg.trials.cache import StageCache
from syn4seg.trials.trial import Trials

SETTINGS = ("data.draws=2", "novel.steps=6")


def whole(config, root):
    """A finished run of a configuration."""
    from actors.pipeline import Pipeline
    from tune.objective import Silent

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


CHANGES = [
    ("labeling.lambda_keep=0.2", {"kept", "relabeled", "masks", "label", "classifier"}),
    ("labeling.beta=0.1", {"relabeled", "masks", "label", "classifier"}),
    ("labeling.theta=0.9", {"relabeled", "masks", "label", "classifier"}),
    ("refinement.margin=3", {"masks", "label", "classifier"}),
    ("refinement.band_width=1", {"label", "classifier"}),
    ("novel.synthetic_weight=0.5", {"classifier"}),
    ("refinement.images_per_pass=2", {"embedding", "masks", "label", "classifier"}),
    ("evaluation.space=canvas", {"classifier"}),
]


@pytest.fixture(scope="module")
def warm(finished, tmp_path_factory):
    config, run, _ = finished
    cache = tmp_path_factory.mktemp("warm")
    last(trials(StageCache(cache), run), config)
    return cache


@pytest.mark.parametrize(("word", "wanted"), CHANGES)
def test_a_trial_starts_at_the_first_stage_that_its_keys_change(finished, warm, small, word, wanted):
    _, run, _ = finished
    cache = StageCache(warm)
    last(trials(cache, run), changed(small, word))
    assert {stage for (stage, how), count in cache.counts.items() if how == "made" and count} == wanted
    again = StageCache(warm)
    last(trials(again, run), changed(small, word))
    assert not [stage for (stage, how), count in again.counts.items() if how == "made" and count]


def test_a_changed_trial_equals_a_run_with_that_configuration(finished, warm, small, tmp_path):
    _, run, _ = finished
    config = changed(small, "labeling.lambda_keep=0.3", "labeling.beta=0.2", "refinement.band_width=2", "data.draws=1")
    _, results = whole(config, tmp_path / "run")
    found = last(trials(StageCache(warm), run), config)
    assert found[0]["novel"] == pytest.approx(results["rows"]["syn4seg"]["novel"]["mean"], abs=1e-12)
    assert found[0]["base"] == pytest.approx(results["rows"]["syn4seg"]["base"]["mean"], abs=1e-12)


def test_a_damaged_or_pruned_cache_changes_no_score(finished, warm, small):
    config, run, _ = finished
    wanted = repr(last(trials(StageCache(warm), run), config))  # as texts: a class that is absent has nan
    for number, path in enumerate(sorted(warm.glob("*/*.bin"))):
        if number % 2:
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink()
    cache = StageCache(warm)
    assert repr(last(trials(cache, run), config)) == wanted
    assert sum(count for (_, how), count in cache.counts.items() if how == "made") > 5


def test_scores_while_training_do_not_change_the_end(finished, warm, small):
    config, run, _ = finished
    once = list(trials(StageCache(warm), run).scores(config, 1))
    often = list(trials(StageCache(warm), run).scores(config, 3))
    assert len(once) == 1 and len(often) == 3 and repr(once[-1]) == repr(often[-1])


def test_a_trial_that_changes_prompts_makes_a_run_of_its_own_once(finished, small, tmp_path):
    from tune.objective import make_run

    _, run, _ = finished
    config = changed(small, "prompts.bank_size=2", "data.draws=1")
    for _ in range(2):
        cache = StageCache(tmp_path / "cache")
        made = Trials(cache, run, None, lambda c, path: make_run(c, path, run, "cpu"), "cpu")
        found = last(made, config)
    assert cache.counts["runs", "made"] == 0 and len(list((tmp_path / "cache" / "runs").iterdir())) == 1
    _, results = whole(config, tmp_path / "run")
    assert found[0]["novel"] == pytest.approx(results["rows"]["syn4seg"]["novel"]["mean"], abs=1e-12)


def test_validation_images_are_scored_and_the_test_list_is_not_opened(finished, warm, small, monkeypatch):
    config, run, _ = finished
    made = trials(StageCache(warm), run, ["train-000003", "train-000007", "train-000020"])
    seen = []
    opened = type(made._world(config).dataset).image
    monkeypatch.setattr(type(made._world(config).dataset), "image", lambda self, i: seen.append(i) or opened(self, i))
    assert 0 <= last(made, config)[0]["base"] <= 1
    assert not [i for i in seen if i.startswith("val-")]
