"""A small study and records of its trials as a test says them."""

from __future__ import annotations

from syn4seg.stages.results import METRICS
from tune.space import Study

SPACE = {"labeling.beta": {"low": 0.0, "high": 1.0, "fractional": True}, "refinement.band_width": {"low": 0, "high": 8}}


def study_of(**keys):
    return Study.model_validate({"space": SPACE, "startup": 3, **keys})


def record(number, params, value=0.5, state="complete", reports=(), spread=0.01):
    draws = {m: {"0": value - spread, "1": value + spread} for m in METRICS} if state != "failed" else {}
    return {
        "number": number,
        "params": params,
        "overrides": params,
        "state": state,
        "draws": draws,
        "stages": {},
        "reports": [{"novel": v} for v in reports],
        "seconds": 1.0,
        "error": "" if state != "failed" else "no",
    }
