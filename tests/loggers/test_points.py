"""Points on curves from lines of metrics.jsonl, and the parameters of a config without places on the machine."""

from __future__ import annotations

import json

import pytest

from syn4seg.config.loading import load
from syn4seg.loggers.points import flat_parameters, parse_point


@pytest.mark.parametrize(
    ("line", "step", "values"),
    [
        ({"stage": "base", "epoch": 2, "epochs": 5, "loss": 0.5, "lr": 1e-3, "time": 9.0}, 2, {"base/loss": 0.5, "base/lr": 1e-3}),
        ({"stage": "training", "kind": "pulse", "draw": 1, "done": 40, "total": 80, "loss": 1}, 40, {"training/draw1/loss": 1.0}),
        (
            {"stage": "stream", "draw": 0, "kind": "load", "stages": {"synthesis": {"queued": 3}}},
            7,
            {"stream/draw0/stages/synthesis/queued": 3.0},
        ),
        (
            {"stage": "stream", "draw": None, "done": 3, "reasons": {"": 2, "a: b+c": 1}},
            3,
            {"stream/reasons/none": 2.0, "stream/reasons/a_ b_c": 1.0},
        ),
        (
            {"stage": "prompts", "class_name": "ball", "accepted": 3, "stopped": "size", "max_cosine": None},
            7,
            {"prompts/ball/accepted": 3.0},
        ),
        ({"stage": "results", "apf": {"novel": 0.5}}, 7, {"results/apf/novel": 0.5}),
    ],
)
def test_a_line_is_a_point_on_curves_that_are_named_by_what_it_is_about(line, step, values):
    point = parse_point(json.dumps(line), 7)
    assert point is not None and (point.step, point.values, point.line) == (step, values, 7)
    assert "time" not in line or point.time == line["time"]


@pytest.mark.parametrize("text", ['{"kind": "begin", "stage": "base", "started": 3.5}', "not json", "[1]", "{}", '{"stage": "x'])
def test_a_line_without_numbers_is_no_point(text):
    assert parse_point(text, 0) is None


@pytest.mark.parametrize("odd", ["NaN", "Infinity", "-Infinity", "1" + "0" * 400])
def test_a_number_that_is_none_ends_no_logger(odd):
    point = parse_point(f'{{"stage": "base", "epoch": {odd}, "done": 4, "time": {odd}, "loss": 0.5, "lr": {odd}}}', 7)
    assert point is not None and (point.step, point.values) == (4, {"base/loss": 0.5})
    assert 0 < point.time < 1e12
    point = parse_point(f'{{"stage": "base", "epoch": {odd}, "loss": 0.5}}', 7)
    assert point is not None and point.step == 7


def test_parameters_are_the_science_alone_and_name_no_place_on_the_machine(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.touch()
    config = load(
        None,
        [
            f"data.root={tmp_path}/voc",
            "data.source=folder",
            f"base.checkpoint={weights}",
            "prompts.base_url=http://h/v1",
            "synthesis.model=stabilityai/stable-diffusion-3.5-large",
        ],
    )
    parameters = flat_parameters(config)
    assert parameters["base.checkpoint"] == "weights.pth" and parameters["data.root"] == "voc"
    assert parameters["synthesis.model"] == "stabilityai/stable-diffusion-3.5-large" and parameters["labeling.beta"] == 0.5
    assert not any(str(tmp_path) in str(value) or "http" in str(value) for value in parameters.values())
    assert not any(key.startswith(("placement", "logging", "name")) for key in parameters)
