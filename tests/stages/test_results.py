"""Manifests, digests and results.json."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.segmenter.evaluation import metrics
from syn4seg.stages.checks import check
from syn4seg.stages.results import count_values, protocol, spread, summarise, verify_run
from syn4seg.stages.rows import BASELINE, rows_of
from syn4seg.store.rundir import RunDir


def test_spread_leaves_nan_out_and_counts_what_is_left():
    assert spread([1.0, float("nan"), 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "n": 2}
    assert spread([0.5]) == {"mean": 0.5, "std": 0.0, "n": 1}
    assert spread([float("nan")]) == {"mean": None, "std": None, "n": 0}


def test_results_are_means_of_the_metrics_of_each_draw(small):
    config = load(None, small)
    _, fold = check(config)
    rng = np.random.default_rng(1)
    matrices = {d: {row: rng.integers(0, 99, (17, 17)) for row in rows_of(config)} for d in (0, 1, 2)}
    results = summarise(config, fold, matrices)
    for name, row in (("syn4seg", "syn4seg"), ("apr", "apf_apr")):
        values = [metrics(matrices[d][row], 12, 4)["harmonic"] for d in (0, 1, 2)]
        assert results["rows"][name]["harmonic"] == {
            "mean": pytest.approx(np.mean(values)),
            "std": pytest.approx(np.std(values, ddof=1)),
            "n": 3,
        }


def test_a_baseline_has_its_source_and_its_deviations_in_the_results(small):
    config = load(None, [*small, "evaluation.baselines=[imprinting]"])
    _, fold = check(config)
    rows = [*rows_of(config), BASELINE + "imprinting"]
    results = summarise(config, fold, {0: {row: np.eye(17, dtype=int) for row in rows}})
    assert set(results["baselines"]) == {"imprinting"} and "imprinting" not in results["rows"]
    baseline = results["baselines"]["imprinting"]
    assert baseline["metrics"]["novel"] == {"mean": 1.0, "std": 0.0, "n": 1} and baseline["source"]
    assert set(baseline["per_class"]) == set(fold.index_names)


def test_the_protocol_names_every_list_that_is_not_published_only_where_a_protocol_is_claimed(small, tmp_path):
    config = load(None, small)
    _, fold = check(config)
    assert protocol(config, fold, ["val list: 6 images"])["deviations"] == config.deviations()
    assert protocol(config, fold)["transductive"] is False
    imported = load(None, [*small, "synthesis.source=folder", f"synthesis.root={tmp_path}"])
    assert protocol(imported, fold)["transductive"] is True


def test_values_are_counted():
    assert count_values(pa.chunked_array([["a", "", "a"], ["b"]])) == {"a": 2, "": 1, "b": 1}


def test_a_run_without_a_manifest_cannot_be_verified(tmp_path):
    with pytest.raises(UserError, match="no manifest; expected a run that has finished `refine`"):
        verify_run(RunDir(tmp_path))
