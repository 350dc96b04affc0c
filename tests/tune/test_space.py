"""Studies: what may be swept, over which values; every mistake is found before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import syn4seg
from syn4seg.config.loading import load
from syn4seg.errors import UserError
from tune.space import (
    Range,
    apply_overrides,
    as_choice,
    check_study,
    default_value,
    distributions,
    from_choices,
    grid,
    read_study,
    study_path,
)

PACKAGED = Path(syn4seg.__file__).parent / "configs" / "studies"


def study_of(tmp_path, text, **changes):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return read_study(path, changes)


@pytest.mark.parametrize("name", sorted(p.stem for p in PACKAGED.glob("*.yaml")))
def test_every_packaged_study_fits_the_configuration(name):
    check_study(read_study(study_path(name, PACKAGED), {}), load(None, []))


def test_ranges_and_choices_become_optunas(tmp_path):
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    study = study_of(
        tmp_path,
        """
space:
  labeling.beta: {low: 0.0, high: 1.0}
  labeling.theta: {low: 0, high: 1, fractional: true}
  refinement.band_width: {low: 0, high: 8}
  novel.lr: {low: 0.001, high: 0.1, log: true}
  labeling.lambda_keep: [0.5, {support_quantile: 0.1}]
""",
    )
    found = distributions(study)
    assert found["labeling.beta"] == FloatDistribution(0.0, 1.0) == found["labeling.theta"]
    assert found["refinement.band_width"] == IntDistribution(0, 8)
    assert found["novel.lr"] == FloatDistribution(0.001, 0.1, log=True)
    text = as_choice({"support_quantile": 0.1})
    assert found["labeling.lambda_keep"] == CategoricalDistribution([0.5, text])
    assert from_choices(study, {"labeling.lambda_keep": text, "labeling.beta": 0.2}) == {
        "labeling.lambda_keep": {"support_quantile": 0.1},
        "labeling.beta": 0.2,
    }
    check_study(study, load(None, []))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("space: {}", "at least one key"),
        ("spice: {a: [1]}", "at least one key"),
        ("space: {labeling.beta: []}", "list of choices is empty"),
        ("space: {labeling.beta: {low: 1.0, high: 0.0}}", "low=1 is above high=0"),
        ("space: {labeling.beta: {low: 0.0, high: 1.0, log: true}}", "needs low above 0"),
        ("space: {labeling.beta: {low: 0.0, high: 1.0, step: 2.0}}", "wider than the range"),
        ("space: {labeling.beta: {low: 0.0}}", "high"),
        ("space: {labeling.beta: {low: 0.0, high: 1.0, stop: 3}}", "unknown key"),
        ("space: {labeling.betta: [0.1]}", "did you mean labeling.beta"),
        ("space: {labeling.beta: [0.1, 2.0]}", "less than or equal to 1"),
        ("space: {refinement.band_width: [wide]}", "integer"),
        ("space: {placement.synthesis.size: [1, 2]}", "cannot be swept"),
        ("space: {data.draws: [1, 2]}", "cannot be swept"),
        ("space: {labeling.beta: [0.1]}\nset: {labeling.beta: 0.2}", "both swept and set"),
        ("space: {labeling.beta: [0.1]}\nobjective: [nowel]", "did you mean novel"),
        ("space: {labeling.beta: [0.1]}\nobjective: [test.novel, novel]", "not both"),
        ("space: {labeling.beta: [0.1]}\nobjective: [base, novel]\npruning: median", "needs one objective"),
        ("space: {labeling.beta: [0.1]}\nvalidation: {novel_images: 0}", "needs novel classes"),
        ("space: {labeling.beta: {low: 0.0, high: 1.0}}\nsampler: grid", "needs a step"),
        ("space: {seed: {low: 0, high: 20000}}\nsampler: grid", "10000 at most"),
        ("space: {labeling.beta: [0.1]}\nset: {labeling.rounds: 2}", "every trial of a sweep has labeling.rounds=1"),
        ("space: {labeling.rounds: [1, 2]}", "cannot be swept"),
        ("space: {joint.lr: [0.1]}", "cannot be swept"),
        ("space: {labeling.beta: [0.1]}\nset: {novel.trains: all}", "novel.trains=classifier"),
        ("space: [1", "not readable as YAML"),
        ("surprise: 1\nspace: {labeling.beta: [0.1]}", "unknown key"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as caught:
        check_study(study_of(tmp_path, text), load(None, []))
    assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_study_that_is_not_there_names_those_that_are():
    with pytest.raises(UserError, match="beta, labels"):
        study_path("lables", PACKAGED)


def test_a_grid_is_every_combination_once(tmp_path):
    study = study_of(
        tmp_path,
        """
space:
  labeling.beta: {low: 0.0, high: 0.3, step: 0.1}
  data.shots: [1, 5]
  refinement.band_width: {low: 1, high: 3}
sampler: grid
""",
    )
    found = grid(study)
    assert len(found) == 4 * 2 * 3 == len({tuple(sorted(f.items())) for f in found})
    assert {f["labeling.beta"] for f in found} == {0.0, 0.1, 0.2, 0.3}
    assert {f["refinement.band_width"] for f in found} == {1, 2, 3}
    assert all(isinstance(f["refinement.band_width"], int) for f in found)


def test_overrides_change_their_keys_and_nothing_else():
    config = load(None, [])
    other = apply_overrides(config, {"labeling.beta": 0.25, "data.shots": 5})
    assert default_value(other, "labeling.beta") == 0.25 and default_value(other, "data.shots") == 5
    assert apply_overrides(other, {"labeling.beta": 0.5, "data.shots": 1}) == config
    with pytest.raises(UserError, match=r"labeling\.beta=7"):
        apply_overrides(config, {"labeling.beta": 7})


def test_whole_ends_mean_whole_numbers_unless_told_otherwise():
    assert Range(low=0, high=8).whole and not Range(low=0, high=1, fractional=True).whole
    assert not Range(low=0, high=1, step=0.5).whole
