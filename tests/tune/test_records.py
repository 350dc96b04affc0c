"""Records of a sweep: what is damaged counts as not there; the best, the front and the importance are made of the others."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.config.loading import load
from tests.shared_study import record, study_of
from tune.records import SweepDir, compare_with_default, importance, optuna_study, pareto_front, summarise
from tune.space import Study, from_choices
from tune.study import choose_params


def test_best_default_and_the_spread_between_them():
    study = study_of()
    records = [
        record(0, {"labeling.beta": 0.5, "refinement.band_width": 3}, 0.5),
        record(1, {"labeling.beta": 0.2, "refinement.band_width": 3}, 0.6),
        record(2, {"labeling.beta": 0.9, "refinement.band_width": 3}, 0.9, state="pruned"),
        record(3, {"labeling.beta": 0.8, "refinement.band_width": 3}, state="failed"),
    ]
    found = summarise(study, records)
    assert found["best"]["number"] == 1 and found["default"]["number"] == 0
    assert (found["complete"], found["pruned"], found["failed"]) == (2, 1, 1)
    said = found["comparison"]["novel"]
    assert said["difference"] == pytest.approx(0.1) and said["beyond"] is True and said["n"] == 2
    close = compare_with_default(record(1, {}, 0.505, spread=0.05), record(0, {}, 0.5, spread=0.05), "novel")
    assert close["beyond"] is False
    one = [r | {"draws": {m: {"0": v["0"]} for m, v in r["draws"].items()}} for r in records[:2]]
    assert compare_with_default(one[1], one[0], "novel")["beyond"] is None


def test_the_front_holds_what_nothing_beats():
    study = study_of(objective=["novel", "base"])
    made = [record(n, {}) for n in range(4)]
    for r, (novel, base) in zip(made, [(0.5, 0.5), (0.6, 0.4), (0.4, 0.6), (0.45, 0.45)], strict=True):
        r["draws"] |= {"novel": {"0": novel}, "base": {"0": base}}
    assert [r["number"] for r in pareto_front(study, made)] == [1, 0, 2]


def test_importance_finds_the_key_that_matters():
    study, rng = study_of(), np.random.default_rng(0)
    records = []
    for n in range(40):
        params = {"labeling.beta": float(rng.random()), "refinement.band_width": int(rng.integers(0, 9))}
        records.append(record(n, params, params["labeling.beta"]))
    found = importance(study, records)
    assert found["labeling.beta"] > 0.8 and sum(found.values()) == pytest.approx(1, abs=1e-3)
    assert importance(study, records[:3]) == {}


def test_values_outside_of_the_space_are_kept_and_not_learned_from():
    study = Study.model_validate({"space": {"labeling.beta": {"low": 0.8, "high": 1.0, "fractional": True}}})
    made = [record(0, {"labeling.beta": 0.5}), record(1, {"labeling.beta": 0.9})]
    assert len(optuna_study(study, made).trials) == 1
    assert summarise(study, made)["default"]["number"] == 0


def test_a_list_need_not_have_the_value_of_the_configuration():
    config = load(None, ["labeling.lambda_keep={support_quantile: 0.1}"])
    study = Study.model_validate({"space": {"labeling.beta": [0.2, 0.8], "labeling.lambda_keep": [0.3]}, "sampler": "grid"})
    first = choose_params(study, config, 0, {})
    assert first is not None
    own = {"labeling.beta": 0.5, "labeling.lambda_keep": {"support_quantile": 0.1}}
    assert from_choices(study, first) == own
    made = [record(0, first), record(1, {"labeling.beta": 0.2, "labeling.lambda_keep": 0.3})]
    assert [t.user_attrs["number"] for t in optuna_study(study, made).trials] == [1]
    assert summarise(study, made)["default"]["params"] == own
    assert choose_params(study.model_copy(update={"sampler": "tpe", "startup": 1, "window": 1}), config, 2, dict(enumerate(made)))


def test_a_damaged_record_counts_as_a_trial_that_is_to_be_made(tmp_path):
    sweep = SweepDir(tmp_path)
    for n in range(3):
        sweep.write(record(n, {}))
    sweep.record(1).write_text('{"number": 1, "par')
    assert sorted(sweep.records()) == [0, 2]
