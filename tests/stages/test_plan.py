"""The plan: which images will be made, from which prompts and noise; a stopped or failed prompt stage goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.models import generators
from syn4seg.models.embeddings import EmbeddingStore
from syn4seg.models.renderer import BagOfWords
from syn4seg.prompts.bank import unit_rows
from syn4seg.prompts.grammar import GrammarAgent
from syn4seg.prompts.protocol import PromptAgent
from syn4seg.seeds import noise_seed
from syn4seg.stages.checks import check
from syn4seg.stages.plan import make_plan
from syn4seg.store.rundir import RunDir


class Moody:
    """An agent that never says the same twice: its sentences depend on how often it was asked in its life, and on its age."""

    def __init__(self, age: int, asks_before_failing: int = 10**9):
        self.age, self.left, self.asked = age, asks_before_failing, []

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        if self.left == 0:
            raise UserError("the endpoint is gone")
        self.left -= 1
        self.asked.append((class_name, round_index))
        return GrammarAgent("embedded", self.age, 2).propose(class_name, len(self.asked), accepted, refused)


def planned_by(config: Config, run: RunDir, agent: PromptAgent) -> list[str]:
    """Opens the run and makes its plan; the notes."""
    notes: list[str] = []
    run.open(config)
    make_plan(config, run, check(config)[1], notes.append, agent, BagOfWords())
    return notes


def contents(run: RunDir) -> tuple:
    """Plan, prompts and embeddings."""
    rows = EmbeddingStore(run.embeddings)
    return pq.read_table(run.plan), pq.read_table(run.prompts), rows.rows(range(len(rows))).pooled.tobytes()


def test_the_plan_does_not_depend_on_placement_and_names_every_noise_seed(prepared, small, tmp_path):
    run, _ = prepared
    config = load(None, [*small, "placement.synthesis.size=7", "placement.synthesis.batch=64"])
    other = RunDir(tmp_path / "other")
    other.open(config)
    planned_by(config, other, GrammarAgent("embedded", config.seed))
    plan = pq.read_table(run.plan)
    assert plan.equals(pq.read_table(other.plan))
    for row in plan.to_pylist():
        assert row["noise_seed"] == noise_seed(config.seed, row["sample_id"])


def test_ids_and_seeds_of_a_class_do_not_change_when_more_images_are_asked_for(prepared, small, tmp_path):
    run, _ = prepared
    config = load(None, [*small, "synthesis.images_per_class=5", "prompts.bank_size=5"])
    more = RunDir(tmp_path / "more")
    more.open(config)
    planned_by(config, more, GrammarAgent("embedded", config.seed))
    few, many = ({r["sample_id"]: (r["prompt"], r["noise_seed"]) for r in pq.read_table(p.plan).to_pylist()} for p in (run, more))
    assert few.items() <= many.items()


def test_prompts_of_a_bank_are_pairwise_less_similar_than_lambda(prepared, small):
    run, _ = prepared
    rows = [r for r in pq.read_table(run.plan).to_pylist() if r["bank"] == "hdig"]
    store, limit = EmbeddingStore(run.embeddings), load(None, small).prompts.lambda_prompt
    for class_id in {r["class_id"] for r in rows}:
        used = sorted({r["prompt_row"] for r in rows if r["class_id"] == class_id})
        cosine = np.triu(unit_rows(store.rows(used).pooled) @ unit_rows(store.rows(used).pooled).T, 1)
        assert cosine.max() < limit


def test_a_stopped_prompt_stage_goes_on_where_it_was_and_ends_with_the_same_bank(small, tmp_path):
    config = load(None, small)
    whole, cut = RunDir(tmp_path / "whole"), RunDir(tmp_path / "cut")
    steady = Moody(0)
    planned_by(config, whole, steady)
    rounds = len(steady.asked)
    assert rounds > 4
    with pytest.raises(UserError, match="the endpoint is gone"):
        planned_by(config, cut, Moody(0, asks_before_failing=3))
    assert not cut.plan.exists()
    files = sorted((cut.root / "proposals").iterdir())
    kept = [line for path in files for line in path.read_text().splitlines()]
    assert len(kept) == 3
    with files[-1].open("ab") as f:
        f.write(b'{"class": "x", "rou')  # the machine went down in the middle of a line
    resumed = Moody(0)
    resumed.asked = [("", 0)] * 3  # as old as the one that failed
    planned_by(config, cut, resumed)
    assert len(resumed.asked) == rounds  # nothing was asked twice
    assert contents(cut) == contents(whole)


def test_a_run_with_a_language_model_is_repeated_from_its_record_without_asking(small, tmp_path):
    config, run = load(None, small), RunDir(tmp_path / "run")
    planned_by(config, run, Moody(0))
    before = contents(run)
    for path in (run.plan, run.prompts, run.embeddings):
        path.unlink()
    planned_by(config, run, Moody(7, asks_before_failing=0))
    assert contents(run) == before


def test_a_grammar_is_not_recorded(small, tmp_path):
    run = RunDir(tmp_path / "run")
    planned_by(load(None, small), run, GrammarAgent("embedded", 0))
    assert not (run.root / "proposals").exists()


def test_every_class_is_noted_with_its_diversity_beside_the_class_name_prompt(small, tmp_path):
    config, run = load(None, small), RunDir(tmp_path / "run")
    notes = planned_by(config, run, GrammarAgent("embedded", 0))
    assert len(notes) == 4
    logged = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    store, rows = EmbeddingStore(run.embeddings), pq.read_table(run.plan).to_pylist()
    for note, entry in zip(notes, logged, strict=True):
        mine = f"hdig-{entry['class_name']}-"
        used = dict.fromkeys(r["prompt_row"] for r in rows if r["sample_id"].startswith(mine))
        vectors = unit_rows(store.rows(list(used)).pooled).astype(float)
        shares = np.linalg.eigvalsh(vectors @ vectors.T / len(vectors)).clip(1e-12)
        assert math.isclose(entry["vendi"], math.exp(-(shares * np.log(shares)).sum()), abs_tol=1e-4)
        assert note.startswith(f"{entry['class_name']}: 3 prompts") and f"Vendi {entry['vendi']:.1f} (its class-name" in note
        assert note.endswith("prompt 3 times: mean cosine 1.000, Vendi 1.0)")
        assert math.isclose(entry["class_name_prompt"]["vendi"], 1, abs_tol=1e-4)


class Babbler:
    """Names the class only now and then."""

    def __init__(self, sense: int):
        self.sense = sense

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        return [f"a red {class_name} on sand"] if round_index < self.sense else ["qwerty", ""]


def test_a_bank_that_falls_short_is_noted_and_used_in_turn(small, tmp_path):
    run = RunDir(tmp_path / "run")
    notes = planned_by(load(None, [*small, "prompts.patience=9"]), run, Babbler(sense=1))
    warnings = [note for note in notes if note.startswith("warning:")]
    assert len(warnings) == 4 and "1 of 3 prompts" in warnings[0] and "off class" in warnings[0]
    prompts = [r["prompt"] for r in pq.read_table(run.plan).to_pylist() if r["bank"] == "hdig" and not r["padding"]]
    assert len(prompts) == 12 and len(set(prompts)) == 4


def test_a_bank_without_a_single_prompt_is_an_error_with_the_remedy(small, tmp_path):
    run = RunDir(tmp_path / "run")
    with pytest.raises(UserError, match=r"0 of 3 prompts.*off class.*use another agent.*proposals: delete the file of the class"):
        planned_by(load(None, [*small, "prompts.patience=9"]), run, Babbler(sense=0))
    assert not run.plan.exists()


def test_imported_images_need_neither_agent_nor_encoder(small, tmp_path):
    config = load(None, [*small, "synthesis.source=folder", f"synthesis.root={tmp_path / 'in'}"])
    for name in ("ball", "donut", "moon", "heart"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.png").touch()
    run = RunDir(tmp_path / "run")
    run.open(config)
    make_plan(config, run, check(config)[1], print, None, None)
    assert sorted(r["prompt"] for r in pq.read_table(run.plan).to_pylist() if not r["padding"]) == [
        "ball/a.png",
        "donut/a.png",
        "heart/a.png",
        "moon/a.png",
    ]


def test_a_class_is_asked_for_by_the_name_that_one_says_and_stored_under_its_own(small, tmp_path, monkeypatch):
    source = generators.generator_source
    monkeypatch.setattr(generators, "generator_source", lambda name: dataclasses.replace(source(name), world="natural"))

    class Echo:
        def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
            return [f"a {class_name} number {round_index}"]

    config = load(None, [*small, "prompts.names={ball: round thing}", "prompts.lambda_prompt=0.999", "prompts.patience=3"])
    run = RunDir(tmp_path / "run")
    planned_by(config, run, Echo())
    rows = pq.read_table(run.prompts).to_pylist()
    assert {r["class"] for r in rows} == {"ball", "donut", "moon", "heart"}
    assert all("round thing" in r["prompt"] for r in rows if r["class"] == "ball")
    assert not any("round thing" in r["prompt"] for r in rows if r["class"] != "ball")
    assert all("-ball-" in r["sample_id"] for r in pq.read_table(run.plan).to_pylist() if "round thing" in r["prompt"])
    with pytest.raises(UserError, match=r"prompts\.names: 'mouse' is no class of the data set"):
        check(load(None, [*small, "prompts.names={mouse: computer mouse}"]))
    with pytest.raises(UserError, match=r"prompts\.names\.ball: 'star' is another class of the data set"):
        check(load(None, [*small, "prompts.names={ball: {synonyms: [star]}}"]))


def test_a_prompt_with_a_synonym_is_planned_for_its_class(small, tmp_path, monkeypatch):
    class Trackballs:
        def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
            return [f"{class_name} {round_index}", f"two spheres {round_index}"]

    limits = [*small, "prompts.lambda_prompt=0.999", "prompts.patience=3", "prompts.bank_size=2"]
    synonyms = "prompts.names={ball: {synonyms: [sphere]}}"
    notes = planned_by(load(None, [*limits, synonyms]), RunDir(tmp_path / "embedded"), Trackballs())
    assert any("prompts.names is not used: synthesis.model=renderer knows its own names" in line for line in notes)
    source = generators.generator_source
    monkeypatch.setattr(generators, "generator_source", lambda name: dataclasses.replace(source(name), world="natural"))
    notes = planned_by(load(None, [*limits, synonyms]), run := RunDir(tmp_path / "natural"), Trackballs())
    assert not any("prompts.names" in line for line in notes)
    told = {(r["class"], r["prompt"]): r["why"] for r in pq.read_table(run.prompts).to_pylist()}
    assert told["ball", "two spheres 0"] == "" and told["moon", "two spheres 0"] == "off class"
