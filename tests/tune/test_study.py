"""A sweep is the same set of trials however it ran: choices from ended trials alone, and failures that end it or not."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.errors import StoreError, UserError
from syn4seg.store.rundir import RunDir
from tests.shared_study import record, study_of
from tune.records import SweepDir
from tune.space import Study
from tune.study import choose_params, stop_below
from tune.validation import open_sweep, trial_count


def bowl(params):
    """An objective that is best at beta 0.3 and band 5."""
    return 0.8 - (params["labeling.beta"] - 0.3) ** 2 - 0.01 * (params["refinement.band_width"] - 5) ** 2


def played(study, count, order):
    """All records of a study whose ready trials run in an order that `order` (a random.Random) decides."""
    config, ended, running = load(None, []), {}, {}
    waiting = list(range(count))
    while len(ended) < count:
        ready = [n for n in waiting if choose_params(study, config, n, ended) is not None][: study.window]
        for n in ready:
            running[n] = choose_params(study, config, n, ended)
            waiting.remove(n)
        assert running, "the study waits for nothing"
        n = order.choice(sorted(running))
        params = running.pop(n)
        ended[n] = record(n, params, bowl(params))
        if order.random() < 0.2:  # the driver dies: what ran is begun again
            waiting = sorted([*waiting, *running])
            running = {}
    return ended


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("window", [1, 3])
def test_a_study_is_the_same_whatever_ends_first_and_however_often_it_is_stopped(sampler, window):
    study = study_of(sampler=sampler, window=window)
    first, second = (played(study, 12, random.Random(seed)) for seed in (1, 2))
    assert {n: r["params"] for n, r in first.items()} == {n: r["params"] for n, r in second.items()}
    assert len({json.dumps(r["params"]) for r in first.values()}) == 12


def test_another_seed_gives_other_trials_and_the_first_is_always_the_configurations_own():
    config = load(None, [])
    one, other = (choose_params(study_of(seed=seed), config, 1, {0: record(0, {})}) for seed in (0, 1))
    assert one != other
    assert choose_params(study_of(), config, 0, {}) == {
        "labeling.beta": config.labeling.beta,
        "refinement.band_width": config.refinement.band_width,
    }


def test_tpe_finds_better_values_than_chance():
    found = [
        max(bowl(r["params"]) for r in played(study_of(sampler=s, startup=8), 40, random.Random(0)).values())
        for s in ("tpe", "random")
    ]
    late = [
        np.mean([bowl(r["params"]) for n, r in played(study_of(sampler=s, startup=8), 40, random.Random(0)).items() if n >= 20])
        for s in ("tpe", "random")
    ]
    assert late[0] > late[1] + 0.05 and found[0] >= found[1] - 0.02


def test_a_trial_is_stopped_below_the_median_of_what_it_may_know_and_never_at_its_last_report():
    study = study_of(pruning="median", reports=3, window=2)
    ended = {n: record(n, {}, reports=[0.1 * n, 0.2 * n, 0.3 * n]) for n in range(8)}
    assert stop_below(study, 6, ended) == pytest.approx([0.2, 0.4, None])  # trials 0 to 4
    assert stop_below(study, 3, ended) == [None, None, None]  # too few
    assert stop_below(study_of(reports=3), 6, ended) == [None] * 3
    thirds = stop_below(study_of(pruning="thirds", reports=3, window=1), 7, ended)
    assert thirds[0] == pytest.approx(np.quantile([0.1 * n for n in range(7)], 2 / 3))


def test_a_grid_has_the_default_and_every_combination():
    study = Study.model_validate({"space": {"data.shots": [1, 5], "labeling.beta": [0.0, 1.0]}, "sampler": "grid"})
    config = load(None, [])
    ended = {n: record(n, {}) for n in range(5)}
    assert trial_count(study, 3) == 5
    assert [choose_params(study, config, n, ended) for n in (1, 4)] == [
        {"data.shots": 1, "labeling.beta": 0.0},
        {"data.shots": 5, "labeling.beta": 1.0},
    ]


# ------------------------------------------------------------------------------------------------ without Ray
class Given:
    """Trials that end as the test says, without Ray."""

    def __init__(self, states):
        self.states = states

    def __call__(self, chooser, config, concurrency, failed):
        while chooser.missing and not failed():
            given = json.loads(chooser.suggest("a")["trial"])
            made = record(given["number"], given["params"], state=self.states[given["number"]])
            chooser.on_trial_complete("a", {"record": json.dumps(made)})


@pytest.fixture
def without_ray(monkeypatch, tmp_path):
    from tune import study

    monkeypatch.setattr(study, "check_room", lambda *_: None)
    monkeypatch.setattr(study, "check_shared", lambda *_: None)
    monkeypatch.setattr(study, "validation_images", lambda *_: [])

    def run(sweep, states, fail_fast=False):
        monkeypatch.setattr(study, "_tune", Given(states))
        open_sweep(sweep, study_of(), load(None, []), resume=sweep.study.exists())
        return study.run_sweep(
            sweep,
            study_of(),
            load(None, []),
            trials=len(states),
            concurrency=1,
            cache=tmp_path / "cache",
            cache_bytes=2**30,
            reference=RunDir(sweep.run),
            fail_fast=fail_fast,
            on_record=print,
        )

    return run


def test_a_trial_that_fails_is_recorded_and_the_study_goes_on(without_ray, tmp_path):
    summary = without_ray(SweepDir(tmp_path / "sweep"), ["complete", "failed", "complete"])
    assert (summary["complete"], summary["failed"]) == (2, 1)
    assert SweepDir(tmp_path / "sweep").records()[1]["error"] == "no"


def test_fail_fast_stops_at_the_first_failure(without_ray, tmp_path):
    sweep = SweepDir(tmp_path / "sweep")
    with pytest.raises(UserError, match="--fail-fast: trial 1 failed: no"):
        without_ray(sweep, ["complete", "failed", "complete"], fail_fast=True)
    assert sorted(sweep.records()) == [0, 1]


def test_a_full_disk_stops_the_sweep_and_is_no_trials_fault(without_ray, tmp_path, monkeypatch):
    from tune import study

    def full(chooser, config, concurrency, failed):
        chooser.suggest("a")
        chooser.on_trial_complete("a", {"stopped": "no space left; free some"})
        assert failed()

    sweep = SweepDir(tmp_path / "sweep")
    monkeypatch.setattr(study, "_tune", full)
    open_sweep(sweep, study_of(), load(None, []), resume=False)
    with pytest.raises(StoreError, match="no space left; free some; then go on with --resume"):
        study.run_sweep(
            sweep,
            study_of(),
            load(None, []),
            trials=2,
            concurrency=1,
            cache=tmp_path / "cache",
            cache_bytes=2**30,
            reference=RunDir(sweep.run),
            fail_fast=False,
            on_record=print,
        )
    assert sweep.records() == {}


def test_a_study_whose_trials_all_fail_ends_badly(without_ray, tmp_path):
    with pytest.raises(UserError, match="no trial of 2 ended well: no"):
        without_ray(SweepDir(tmp_path / "sweep"), ["failed", "failed"])
