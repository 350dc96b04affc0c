"""The GPU benchmark on tiny networks: every section runs, pixels agree, its rates can be planned with; without a GPU it says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from syn4seg.config.loading import load
from syn4seg.planning.estimate import estimate
from syn4seg.planning.rates import read_rates
from syn4seg.planning.workload import WorkloadFacts

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def benchmark(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The result of `--tiny` and its rates."""
    out = tmp_path_factory.mktemp("gpu")
    done = benchmark("--tiny", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rates = next(out.glob("*-gpu-rates.json"))
    return json.loads(next(out.glob("*-gpu.json")).read_text()), rates


def test_every_section_runs_to_its_end_and_is_marked_as_a_test(measured):
    result, rates = measured
    for section in ("matmul", "generation", "sam", "segmenter", "stream"):
        assert "skipped" not in result[section] and "stopped" not in result[section], result[section]
    assert result["tiny"] and "mean nothing" in result["weights"] and "mean nothing" in rates.read_text()
    assert 0 < result["stream"]["generator_busy_share"] <= 1 and result["stream"]["labelled"] == result["stream"]["images"]


def test_ours_makes_the_pixels_of_the_plain_pipeline_and_masks_of_the_plain_loop(measured):
    result, _ = measured
    for at in result["generation"]["sizes"].values():
        assert at["pixels"]["differ_from_the_plain_batch"] == 0 and at["pixels"]["largest_difference_from_batch_of_1"] <= 1
        assert at["ratio"]["plain"] == pytest.approx(at["ours"]["images_per_second"] / at["plain"]["images_per_second"], rel=0.01)
    assert all(at["share_of_pixels_that_differ"] < 0.001 for at in result["sam"].values() if isinstance(at, dict))


def test_every_speed_is_beside_the_arithmetic_limit(measured):
    result, _ = measured
    limit = result["matmul"]["flops_per_second"]
    speeds = [at[way] for at in result["generation"]["sizes"].values() for way in ("plain", "plain_batched", "ours")]
    assert limit > 0 and all(speed["share_of_limit"] > 0 for speed in speeds)


def test_its_rates_are_what_a_plan_takes(measured):
    _, path = measured
    rates = read_rates(path)
    assert {r.stage for r in rates.measured} == {"synthesis", "labeling", "refinement", "base", "features"}
    words = ["placement.device=cpu", "synthesis.size=64", "refinement.images_per_pass=2", "segmenter.channels=32"]
    plan = estimate(load(None, words), WorkloadFacts(5, 15, 100, 10), rates)
    source = {line.stage: line.source for line in plan.lines}
    assert source["refinement"] == source["labeling"] == source["features"] == "measured on cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_ends_with_one_line(tmp_path):
    done = benchmark("--out", str(tmp_path / "out"))
    assert done.returncode == 2 and not done.stdout and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: no usable GPU") and "--tiny" in done.stderr
