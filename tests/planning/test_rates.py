"""Rates: measured ones from a file, else stated ones; each says which it is, and a file with a fault is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.planning.rates import GPUS, Rates, merge_rates, read_rates, stated_rates, write_rates
from syn4seg.planning.workload import workload
from tests.shared_planning import FACTS, TRUE, fake_rates, lines


def test_a_rate_of_other_conditions_is_scaled_by_flops_and_says_so():
    few, many = (load(None, [*TRUE, f"synthesis.steps={n}"]) for n in (4, 28))
    measured = [r for r in fake_rates(few, FACTS, synthesis=2.0).measured if r.stage == "synthesis"]
    rates = Rates("an H200", GPUS["H200"], tuple(measured))
    flops = {n: next(w.flops for w in workload(c, FACTS) if w.stage == "synthesis") for n, c in ((4, few), (28, many))}
    line = lines(many, FACTS, rates)["synthesis"]
    assert line.unit_seconds == pytest.approx(2.0 * flops[28] / flops[4])
    assert line.source == "measured on an H200 with steps=4, scaled by FLOPs"
    assert lines(many, FACTS, rates)["labeling"].source.startswith("stated: an H200, 494 TFLOP/s")
    on_cpu = dataclasses.replace(measured[0], kind="cpu")
    assert lines(many, FACTS, dataclasses.replace(rates, measured=(on_cpu,)))["synthesis"].source.startswith("stated")


def test_stated_time_is_flops_over_the_stated_share_of_the_card():
    config = load(None, TRUE)
    flops = next(w.flops for w in workload(config, FACTS) if w.stage == "synthesis")
    for card, share in (("h100", 0.4), ("RTX4090", 0.2)):
        line = lines(config, FACTS, stated_rates(card, share))["synthesis"]
        assert line.unit_seconds == pytest.approx(flops / (GPUS[card.upper().removeprefix("RTX")].flops * share))
    with pytest.raises(UserError, match="'h900' is not known; expected one of H200"):
        stated_rates("h900")
    with pytest.raises(UserError, match="utilisation 2"):
        stated_rates("h100", 2)


def test_rates_come_back_from_their_file_and_newer_ones_win(tmp_path):
    config = load(None, [])
    rates = dataclasses.replace(fake_rates(config, FACTS, labeling=0.25), date="2026-11-23", about="a test")
    write_rates(tmp_path / "rates.json", rates)
    assert read_rates(tmp_path / "rates.json") == rates
    newer = merge_rates(rates, [dataclasses.replace(r, seconds=7.0) for r in rates.measured if r.stage == "labeling"])
    assert len(newer.measured) == len(rates.measured) and lines(config, FACTS, newer)["labeling"].unit_seconds == 7.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2; expected 1"),
        ({"rates": [{}]}, "missing"),
        ({"device": None, "rates": 3}, "not iterable"),
        ({"rates": [{"stage": "base", "kind": "tpu", "what": {}, "seconds": 1}]}, "kind 'tpu'"),
        ({"rates": [{"stage": "base", "kind": "cpu", "what": {}, "seconds": 0}]}, "seconds 0"),
        ({"rates": [{"stage": "base", "kind": "cpu", "what": {}, "seconds": "fast"}]}, "seconds 'fast'"),
    ],
)
def test_a_rates_file_with_a_fault_is_an_error_that_names_it(tmp_path, change, said):
    path = tmp_path / "rates.json"
    write_rates(path, stated_rates())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"rates {path}.*{said}"):
        read_rates(path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_rates(path)
