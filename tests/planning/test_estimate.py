"""The plan: counts and hours as properties, a simulated stream as reference, the origin of every figure, the table."""

from __future__ import annotations

import dataclasses
import heapq
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.config.loading import load
from syn4seg.planning.estimate import HEADER, STREAMED, estimate, table
from syn4seg.planning.rates import stated_rates
from tests.shared_planning import FACTS, GIB, TRUE, fake_rates, lines


# --------------------------------------------------------------------------------------------------------- counts
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_images_and_labels_are_linear_in_classes_banks_and_draws(per_class, batch, draws, plain):
    words = [
        f"synthesis.images_per_class={per_class}",
        f"synthesis.batch={batch}",
        f"data.draws={draws}",
        f"synthesis.class_name_bank={plain}",
    ]
    config = load(None, words)
    found = lines(config)
    samples = FACTS.novel * per_class * (2 if plain else 1)
    assert found["synthesis"].count == -(-samples // batch) * batch
    assert found["labeling"].count == found["refinement"].count == samples * draws
    assert found["evaluation"].count == FACTS.queries * draws * (6 if plain else 5)
    for line in found.values():
        assert line.device_hours == pytest.approx(line.count * line.unit_seconds / 3600)
    one = lines(load(None, [*words, "data.draws=1"]))
    assert one["synthesis"] == found["synthesis"], "images are made once"
    assert found["novel"].device_hours == pytest.approx(draws * one["novel"].device_hours)


def test_more_images_steps_or_pixels_never_cost_less():
    plain = estimate(load(None, TRUE), FACTS, stated_rates())
    for word in (
        "synthesis.images_per_class=96",
        "synthesis.steps=40",
        "data.draws=2",
        "base.epochs=9",
        "novel.steps=900",
        "prompts.bank_size=99",
        "segmenter.size=473",
        "evaluation.baselines=[bcm]",
    ):
        more = estimate(load(None, [*TRUE, word]), FACTS, stated_rates())
        assert more.wall_hours >= plain.wall_hours and more.gpu_hours >= plain.gpu_hours and more.disk >= plain.disk, word
        assert word.startswith("evaluation") or more.wall_hours > plain.wall_hours, word


def test_what_is_not_done_costs_nothing():
    assert "base" not in lines(load(None, [])), "a packaged checkpoint is not trained"
    imported = lines(load(None, ["synthesis.source=folder", "synthesis.root=/nowhere"]))
    assert "synthesis" not in imported and "encoding" not in imported and imported["labeling"].count == 5 * 48
    frozen = lines(load(None, [*TRUE, "segmenter.freeze_backbone=true"]))["base"]
    assert frozen.device_hours < lines(load(None, TRUE))["base"].device_hours
    assert "joint" not in lines(load(None, [])), "classifiers alone learn"
    whole, decoder = (lines(load(None, [f"novel.trains={part}"]))["joint"] for part in ("all", "decoder"))
    assert whole.count == decoder.count and decoder.device_hours < whole.device_hours and decoder.memory < whole.memory


# ----------------------------------------------------------------------------------------------------------- hours
def test_half_of_a_pool_takes_twice_the_wall_time_and_the_same_gpu_time():
    two, one = (lines(load(None, [*TRUE, f"placement.synthesis.size={n}"]))["synthesis"] for n in (2, 1))
    assert one.wall_hours == pytest.approx(2 * two.wall_hours) and one.device_hours == two.device_hours
    big, small = (estimate(load(None, [*TRUE, f"placement.synthesis.size={n}"]), FACTS, stated_rates()) for n in (2, 1))
    assert small.gpu_hours == pytest.approx(big.gpu_hours) and big.gpus == 3 and small.gpus == 2


def simulated(count: int, pools: list[tuple[float, int]]) -> float:
    """Wall seconds of `count` images that go through the stages in order; each stage is (seconds, actors)."""
    ready = [0.0] * count
    for seconds, actors in pools:
        free = [0.0] * actors
        for i, arrived in enumerate(sorted(ready)):
            ready[i] = max(arrived, heapq.heappop(free)) + seconds
            heapq.heappush(free, ready[i])
    return max(ready)


@pytest.mark.parametrize(
    ("rates", "sizes"), [((2.0, 0.5, 0.7), (1, 1, 1)), ((2.0, 0.5, 1.5), (4, 1, 1)), ((0.1, 3.0, 0.7), (1, 2, 3))]
)
def test_a_measured_sample_predicts_a_simulated_stream(rates, sizes):
    words = [f"placement.{stage}.size={n}" for stage, n in zip(STREAMED, sizes, strict=True)]
    config = load(None, [*words, "synthesis.images_per_class=40", "synthesis.batch=1"])
    plan = estimate(config, FACTS, fake_rates(config, FACTS, **dict(zip(STREAMED, rates, strict=True))))
    found = {line.stage: line for line in plan.lines}
    for stage, seconds in zip(STREAMED, rates, strict=True):
        assert found[stage].device_hours * 3600 == pytest.approx(400 * seconds)
        assert found[stage].source == "measured on a fake"
    streamed = plan.wall_hours * 3600 - sum(line.wall_hours for line in plan.lines if line.stage not in STREAMED) * 3600
    wall = simulated(400, list(zip(rates, sizes, strict=True)))
    assert streamed <= wall <= streamed + sum(rates) + max(rates), "all but filling and emptying the pipeline"


def test_later_draws_make_no_images_and_inline_nothing_overlaps():
    def streamed(*words):
        config = load(None, ["synthesis.images_per_class=40", "synthesis.batch=1", *words])
        plan = estimate(config, FACTS, fake_rates(config, FACTS, synthesis=9.0, labeling=1.0, refinement=2.0))
        return 3600 * (plan.wall_hours - sum(line.wall_hours for line in plan.lines if line.stage not in STREAMED))

    assert streamed() == pytest.approx(400 * 9)
    assert streamed("data.draws=3") == pytest.approx(400 * (9 + 2 * 2))
    assert streamed("placement.runner=inline", "placement.synthesis.size=4") == pytest.approx(400 * (9 + 1 + 2))


def test_pools_that_share_a_gpu_share_its_time():
    shares = [f"placement.{stage}.gpus={share}" for stage, share in zip(STREAMED, (0.5, 0.25, 0.25), strict=True)]
    config = load(None, [*TRUE, *shares])
    plan = estimate(config, FACTS, fake_rates(config, FACTS, synthesis=3.0, labeling=1.0, refinement=2.0))
    streamed = plan.wall_hours - sum(line.wall_hours for line in plan.lines if line.stage not in STREAMED)
    assert plan.gpus == 1 and streamed * 3600 == pytest.approx(480 * (3 + 1 + 2))


# ------------------------------------------------------------------------------------------- rates and their origin
def test_every_figure_says_measured_or_stated():
    for words in ([], TRUE):
        config = load(None, list(words))
        for rates in (stated_rates("a100", 0.3), fake_rates(config, FACTS)):
            for line in estimate(config, FACTS, rates).lines:
                assert line.source.startswith(("measured on", "stated: ")) and line.memory_source.startswith(("measured", "stated"))


# ----------------------------------------------------------------------------------------- memory, disk, the table
def test_a_stage_that_does_not_fit_says_what_to_do():
    config = load(None, TRUE)
    assert not any(line.warning for line in estimate(config, FACTS, stated_rates("h100")).lines)
    plan = estimate(load(None, [*TRUE, "synthesis.batch=8"]), FACTS, stated_rates("4090"))
    warning = next(line.warning for line in plan.lines if line.stage == "synthesis")
    assert "but 4090 has 24.0 GiB" in warning and "nf4" in warning and warning in table(plan)[2]
    halved = [*TRUE, "placement.synthesis.gpus=0.5", "synthesis.batch=1", "synthesis.size=512"]
    small = {line.stage: line.warning for line in estimate(load(None, halved), FACTS, stated_rates("l4")).lines}
    assert "its share (0.5)" in small["synthesis"]
    nf4 = [*halved, "synthesis.weights=nf4"]
    assert not lines(load(None, nf4), FACTS, stated_rates("l4"))["synthesis"].warning


def test_measured_memory_and_files_take_the_place_of_stated_ones():
    config = load(None, TRUE)
    rates = fake_rates(config, FACTS)
    known = tuple(dataclasses.replace(r, memory=5 * GIB, file_bytes=1000.0) for r in rates.measured)
    found = lines(config, FACTS, dataclasses.replace(rates, measured=known))
    assert found["synthesis"].memory == 5 * GIB and found["synthesis"].memory_source == "measured on a fake"
    assert found["synthesis"].disk == 480 * 1000 and found["refinement"].disk == 480 * 1000


def test_the_plan_is_plain_json_and_a_table():
    plan = estimate(load(None, TRUE), FACTS, stated_rates())
    assert json.loads(json.dumps(plan.as_json()))["lines"][1]["stage"] == "synthesis"
    header, rows, notes = table(plan)
    assert header == HEADER and all(len(row) == len(header) for row in rows) and rows[-1][0] == "total"
    assert any(note.startswith("memory of synthesis: stated: weights +") for note in notes)
