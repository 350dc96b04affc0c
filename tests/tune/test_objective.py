"""What a trial does in its process: its own exceptions end it alone."""

from __future__ import annotations

import json

from syn4seg.config.loading import load


def test_a_trials_own_exception_ends_that_trial_alone(tmp_path):
    from tune.objective import TrialObjective

    config = load(None, []).model_dump(mode="json")
    given = {
        "config": config,
        "reference": str(tmp_path / "run"),
        "cache": str(tmp_path / "cache"),
        "cache_bytes": 2**30,
        "validation": [],
        "metrics": ["novel"],
        "study_reports": 1,
        "cpus": 1,
        "device": "cpu",
        "number": 3,
        "params": {},
        "overrides": {"labeling.beta": 7},
        "stop_below": [None],
    }
    trial = TrialObjective({"trial": json.dumps(given)})
    ended = trial.step()
    assert ended["done"] and json.loads(ended["record"])["state"] == "failed"
    assert "labeling.beta=7" in json.loads(ended["record"])["error"]
    assert trial.reset_config({"trial": json.dumps(given | {"number": 4})}) and json.loads(trial.step()["record"])["number"] == 4
