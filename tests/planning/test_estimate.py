"""The plan: counts and hours as properties, a simulated stream as reference, true models' figures, rates files, a real sample."""

from __future__ import annotations

import dataclasses
import heapq
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.planning.estimate import HEADER, STREAMED, estimate, table
from syn4seg.planning.footprint import memory_of
from syn4seg.planning.measure import measure, plan_run
from syn4seg.planning.rates import GPUS, Card, Rate, Rates, merge_rates, read_rates, stated_rates, write_rates
from syn4seg.planning.sizes import STABILITY
from syn4seg.planning.workload import WorkloadFacts, facts_of, prompts_of, samples_of, workload

GIB = 2**30
FACTS = WorkloadFacts(novel=5, base=15, train_images=5953, queries=1449)
TRUE = (
    "data.source=pascal",
    "data.root=/nowhere",
    "base.checkpoint=train",
    f"synthesis.model={STABILITY}large",
    "synthesis.size=1024",
    "synthesis.batch=4",
    "synthesis.steps=28",
    "segmenter.backbone=resnet101",
    "segmenter.size=417",
    "segmenter.channels=512",
    "refinement.model=vit-h",
    "placement.encoding.gpus=1",
    "placement.synthesis.gpus=1",
    "placement.labeling.gpus=0.5",
    "placement.refinement.gpus=0.5",
)


def lines(config, facts=FACTS, rates=None):
    return {line.stage: line for line in estimate(config, facts, rates or stated_rates()).lines}


def fake_rates(config, facts, **seconds: float) -> Rates:
    """A measurement of everything: a given number of seconds per unit, else one."""
    made = [Rate(w.stage, w.kind, w.what, seconds.get(w.stage, 1.0), w.flops) for w in workload(config, facts)]
    return Rates("a fake", Card(1e12, 10 * GIB), tuple(made))


# --------------------------------------------------------------------------------------------------------- counts
def test_published_data_sets_need_no_files():
    def of(*words):
        return facts_of(load(None, ["data.root=/nowhere", "base.checkpoint=train", *words]))

    assert of("data.source=pascal") == WorkloadFacts(5, 15, 5953, 1449)
    assert of("data.source=pascal", "data.train_list=trainaug") == WorkloadFacts(5, 15, 10582, 1449)
    assert of("data.source=coco") == WorkloadFacts(20, 60, 82081, 40137)
    assert of("data.source=coco", "data.train_images=100", "data.val_images=7") == WorkloadFacts(20, 60, 100, 7)
    with pytest.raises(UserError, match=r"data\.source=folder.*data\.root"):
        of("data.source=folder")


def test_the_embedded_world_is_known_as_it_is():
    from syn4seg.stages.setup import load_dataset

    for words in ([], ["data.train_images=50", "data.val_images=9"]):
        config = load(None, words)
        assert facts_of(config) == facts_of(config, *load_dataset(config))


def test_the_counts_are_those_of_a_real_plan(prepared, small):
    import pyarrow.parquet as pq

    run, _ = prepared
    config = load(None, small)
    plan = pq.read_table(run.plan)
    samples, images = samples_of(config, facts_of(config))
    assert images == plan.num_rows and images % config.synthesis.batch == 0
    assert samples == plan.num_rows - sum(plan["padding"].to_pylist())
    assert prompts_of(config, facts_of(config)) == len(set(plan["prompt"].to_pylist())) + 1


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


def test_every_figure_says_measured_or_stated():
    for words in ([], TRUE):
        config = load(None, list(words))
        for rates in (stated_rates("a100", 0.3), fake_rates(config, FACTS)):
            for line in estimate(config, FACTS, rates).lines:
                assert line.source.startswith(("measured on", "stated: ")) and line.memory_source.startswith(("measured", "stated"))


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


# ----------------------------------------------------------------------------------------- memory, disk, the table
def test_the_paper_s_models_give_sane_figures():
    found = lines(load(None, TRUE))
    assert found["synthesis"].weights / GIB == pytest.approx(15.33, abs=0.01), "transformer, positions and VAE"
    assert found["encoding"].weights / GIB == pytest.approx(25.6 - 15.2, abs=0.1)
    assert 15.4 < found["synthesis"].memory / GIB < 32 and found["refinement"].memory / GIB < 10
    assert found["labeling"].weights / GIB == pytest.approx(0.245, abs=0.01) and 8 < found["base"].memory / GIB < 32
    assert 3 < found["synthesis"].unit_seconds < 6, "28 steps at 1024 pixels on an H100"
    assert found["encoding"].disk == (5 * 49 + 1) * (333 * 4096 + 2048) * 2
    assert found["synthesis"].disk == pytest.approx(480 * 1024**2 * 14 / 8)


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


def test_vae_slicing_and_smaller_batches_need_less_memory():
    def synthesis(*words):
        return sum(memory_of(load(None, [*TRUE, *words]), FACTS)["synthesis"])

    assert synthesis("synthesis.vae_slicing=true") < synthesis() < synthesis("synthesis.batch=8")
    assert synthesis("placement.device=cpu") > 1.9 * synthesis(), "float32 on a CPU"


def test_the_plan_is_plain_json_and_a_table():
    plan = estimate(load(None, TRUE), FACTS, stated_rates())
    assert json.loads(json.dumps(plan.as_json()))["lines"][1]["stage"] == "synthesis"
    header, rows, notes = table(plan)
    assert header == HEADER and all(len(row) == len(header) for row in rows) and rows[-1][0] == "total"
    assert any(note.startswith("memory of synthesis: stated: weights +") for note in notes)


def test_planning_loads_no_ray():
    code = "import sys, syn4seg.planning.measure; sys.exit(any(m in sys.modules for m in ('ray', 'diffusers', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------- a real sample here
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
