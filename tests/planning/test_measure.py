"""Measured rates: a real sample on this machine fits the plan, and planning stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.planning.estimate import estimate
from syn4seg.planning.measure import measure, plan_run
from syn4seg.planning.workload import facts_of, workload
from tests.shared_planning import TRUE


def test_planning_loads_no_ray():
    code = "import sys, syn4seg.planning.measure; sys.exit(any(m in sys.modules for m in ('ray', 'diffusers', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SAMPLE = (
    "data.train_images=200",
    "synthesis.images_per_class=3",
    "synthesis.batch=4",
    "base.checkpoint=train",
    "base.batch=4",
    "placement.device=cpu",
    "data.val_images=12",
)


def test_a_sample_is_measured_on_the_real_models_and_fits_the_plan_exactly():
    from syn4seg.stages.setup import load_dataset

    config = load(None, list(SAMPLE))
    dataset, fold = load_dataset(config)
    before = list(dataset.train), list(dataset.val)
    rates = measure(config, 4, dataset, fold)
    assert (dataset.train, dataset.val) == before
    facts = facts_of(config, dataset, fold)
    assert {r.stage for r in rates.measured} == {w.stage for w in workload(config, facts)}
    plan = estimate(config, facts, rates)
    assert all(line.source.startswith("measured on") and line.unit_seconds > 0 for line in plan.lines)
    image = next(r.file_bytes for r in rates.measured if r.stage == "synthesis")
    assert 1000 < image < 64 * 64 * 3 + 200


def test_a_plan_without_its_data_set_measures_the_generator_alone_and_states_the_rest(tmp_path):
    words = [
        "data.source=pascal",
        f"data.root={tmp_path}",
        "base.checkpoint=train",
        "synthesis.model=embedded-sd3",
        "synthesis.steps=2",
        "synthesis.batch=2",
        "placement.device=cpu",
    ]
    plan = plan_run(load(None, words), measured=2)
    origin = {line.stage: line.source.split(" ")[0] for line in plan.lines}
    assert origin.pop("encoding") == origin.pop("synthesis") == "measured" and set(origin.values()) == {"stated:"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_measuring_a_gpu_placement_without_a_gpu_is_an_error():
    with pytest.raises(UserError, match=r"--measure: .*placement\.device=cpu"):
        measure(load(None, TRUE), 2)
