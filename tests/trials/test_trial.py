"""A trial computes what a run computes, and nothing that its keys leave as it was."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.trials.cache import StageCache
from syn4seg.trials.trial import Trials
from tests.shared_clip import save_clip
from tests.shared_trials import changed, last, trials, whole


def test_a_trial_scores_what_the_run_scored_and_labels_what_it_labelled(finished, tmp_path):
    config, run, results = finished
    made = trials(StageCache(tmp_path / "cache"), run)
    found = last(made, config)
    for name in ("base", "novel", "mean", "harmonic", "total"):
        mean = np.mean([found[draw][name] for draw in (0, 1)])
        assert mean == pytest.approx(results["rows"]["syn4seg"][name]["mean"], abs=1e-12), name


def test_a_trial_of_known_entries_makes_none(finished, warm, small):
    _, run, _ = finished
    for _ in range(2):
        cache = StageCache(warm)
        last(trials(cache, run), changed(small, "labeling.beta=0.15"))
    assert not [kind for (kind, how), count in cache.counts.items() if how == "made" and count]


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
    opened = type(made._context(config).dataset).image
    monkeypatch.setattr(type(made._context(config).dataset), "image", lambda self, i: seen.append(i) or opened(self, i))
    assert 0 <= last(made, config)[0]["base"] <= 1
    assert not [i for i in seen if i.startswith("val-")]


@pytest.mark.slow
def test_a_trial_leaves_out_what_the_picture_check_of_the_run_rejects(finished, small, tmp_path):
    _, reference, _ = finished
    save_clip(tmp_path / "clip")
    config = changed(small, "data.draws=1", f"synthesis.check={tmp_path / 'clip'}")
    run, results = whole(config, tmp_path / "run")
    assert "class_not_shown" in results["funnel"]["draws"]["0"]["rejected"]
    made = trials(StageCache(tmp_path / "cache"), reference)
    scores = last(made, config)[0]
    for name in ("base", "novel"):
        assert scores[name] == pytest.approx(results["rows"]["syn4seg"][name]["mean"], abs=1e-12), name
    shown = {image.sample_id for image in next(iter(made.contexts.values())).images}
    judged = {r["sample_id"] for r in run.draw(0).records() if r["reason"] != "class_not_shown"}
    assert shown == {sample for sample in judged if sample.startswith("hdig")} and shown
    last(made, changed(small, "data.draws=1"))
    assert len(next(iter(made.contexts.values())).images) > len(shown), "another check, another choice of images"
