"""A sweep is the same set of trials however it ran: choices from ended trials alone, records on disk, resume after any kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from syn4seg.config.loading import load
from syn4seg.errors import StoreError, UserError
from syn4seg.stages.results import METRICS
from syn4seg.store.rundir import RunDir
from tune.records import SweepDir, compare_with_default, importance, metric_value, optuna_study, pareto_front, summarise
from tune.space import Study
from tune.study import choose_params, stop_below
from tune.validation import open_sweep, trial_count, validation_images

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


def bowl(params):
    """An objective that is best at beta 0.3 and band 5."""
    return 0.8 - (params["labeling.beta"] - 0.3) ** 2 - 0.01 * (params["refinement.band_width"] - 5) ** 2


def played(study, count, order):
    """All records of a study whose ready trials run in an order that `order` (a random.Random) decides."""
    config, ended, running = load(None, []), {}, {}
    waiting = list(range(count))
    while len(ended) < count:
        ready = [n for n in waiting if choose_params(study, config, n, ended) is not None][: study.window]
        for n in ready:
            running[n] = choose_params(study, config, n, ended)
            waiting.remove(n)
        assert running, "the study waits for nothing"
        n = order.choice(sorted(running))
        params = running.pop(n)
        ended[n] = record(n, params, bowl(params))
        if order.random() < 0.2:  # the driver dies: what ran is begun again
            waiting = sorted([*waiting, *running])
            running = {}
    return ended


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("window", [1, 3])
def test_a_study_is_the_same_whatever_ends_first_and_however_often_it_is_stopped(sampler, window):
    study = study_of(sampler=sampler, window=window)
    first, second = (played(study, 12, random.Random(seed)) for seed in (1, 2))
    assert {n: r["params"] for n, r in first.items()} == {n: r["params"] for n, r in second.items()}
    assert len({json.dumps(r["params"]) for r in first.values()}) == 12


def test_another_seed_gives_other_trials_and_the_first_is_always_the_configurations_own():
    config = load(None, [])
    one, other = (choose_params(study_of(seed=seed), config, 1, {0: record(0, {})}) for seed in (0, 1))
    assert one != other
    assert choose_params(study_of(), config, 0, {}) == {
        "labeling.beta": config.labeling.beta,
        "refinement.band_width": config.refinement.band_width,
    }


def test_tpe_finds_better_values_than_chance():
    found = [
        max(bowl(r["params"]) for r in played(study_of(sampler=s, startup=8), 40, random.Random(0)).values())
        for s in ("tpe", "random")
    ]
    late = [
        np.mean([bowl(r["params"]) for n, r in played(study_of(sampler=s, startup=8), 40, random.Random(0)).items() if n >= 20])
        for s in ("tpe", "random")
    ]
    assert late[0] > late[1] + 0.05 and found[0] >= found[1] - 0.02


def test_a_trial_is_stopped_below_the_median_of_what_it_may_know_and_never_at_its_last_report():
    study = study_of(pruning="median", reports=3, window=2)
    ended = {n: record(n, {}, reports=[0.1 * n, 0.2 * n, 0.3 * n]) for n in range(8)}
    assert stop_below(study, 6, ended) == pytest.approx([0.2, 0.4, None])  # trials 0 to 4
    assert stop_below(study, 3, ended) == [None, None, None]  # too few
    assert stop_below(study_of(reports=3), 6, ended) == [None] * 3
    thirds = stop_below(study_of(pruning="thirds", reports=3, window=1), 7, ended)
    assert thirds[0] == pytest.approx(np.quantile([0.1 * n for n in range(7)], 2 / 3))


def test_best_default_and_the_spread_between_them():
    study = study_of()
    records = [
        record(0, {"labeling.beta": 0.5, "refinement.band_width": 3}, 0.5),
        record(1, {"labeling.beta": 0.2, "refinement.band_width": 3}, 0.6),
        record(2, {"labeling.beta": 0.9, "refinement.band_width": 3}, 0.9, state="pruned"),
        record(3, {"labeling.beta": 0.8, "refinement.band_width": 3}, state="failed"),
    ]
    found = summarise(study, records)
    assert found["best"]["number"] == 1 and found["default"]["number"] == 0
    assert (found["complete"], found["pruned"], found["failed"]) == (2, 1, 1)
    said = found["comparison"]["novel"]
    assert said["difference"] == pytest.approx(0.1) and said["beyond"] is True and said["n"] == 2
    close = compare_with_default(record(1, {}, 0.505, spread=0.05), record(0, {}, 0.5, spread=0.05), "novel")
    assert close["beyond"] is False
    one = [r | {"draws": {m: {"0": v["0"]} for m, v in r["draws"].items()}} for r in records[:2]]
    assert compare_with_default(one[1], one[0], "novel")["beyond"] is None


def test_the_front_holds_what_nothing_beats():
    study = study_of(objective=["novel", "base"])
    made = [record(n, {}) for n in range(4)]
    for r, (novel, base) in zip(made, [(0.5, 0.5), (0.6, 0.4), (0.4, 0.6), (0.45, 0.45)], strict=True):
        r["draws"] |= {"novel": {"0": novel}, "base": {"0": base}}
    assert [r["number"] for r in pareto_front(study, made)] == [1, 0, 2]


def test_importance_finds_the_key_that_matters():
    study, rng = study_of(), np.random.default_rng(0)
    records = []
    for n in range(40):
        params = {"labeling.beta": float(rng.random()), "refinement.band_width": int(rng.integers(0, 9))}
        records.append(record(n, params, params["labeling.beta"]))
    found = importance(study, records)
    assert found["labeling.beta"] > 0.8 and sum(found.values()) == pytest.approx(1, abs=1e-3)
    assert importance(study, records[:3]) == {}


def test_values_outside_of_the_space_are_kept_and_not_learned_from():
    study = Study.model_validate({"space": {"labeling.beta": {"low": 0.8, "high": 1.0, "fractional": True}}})
    made = [record(0, {"labeling.beta": 0.5}), record(1, {"labeling.beta": 0.9})]
    assert len(optuna_study(study, made).trials) == 1
    assert summarise(study, made)["default"]["number"] == 0


def test_validation_images_are_annotated_train_images_that_nothing_else_uses():
    from syn4seg.stages.setup import draws_of, load_dataset, support_of
    from syn4seg.stages.support import shuffled_base_images
    from tune.space import apply_overrides

    config = load(None, ["data.train_images=300", "data.draws=2", "novel.replay_images=20", "labeling.base_prototype_images=30"])
    study = Study.model_validate({"space": {"data.shots": [1, 5]}, "validation": {"novel_images": 4, "base_images": 10}})
    chosen = validation_images(study, config)
    dataset, fold = load_dataset(config)
    assert chosen is not None and len(chosen) == len(set(chosen)) == 4 * len(fold.novel) + 10
    assert set(chosen) <= set(dataset.train)
    for shots in (1, 5):
        given = apply_overrides(config, {"data.shots": shots})
        for draw in draws_of(given):
            assert not set(chosen) & {i for ids in support_of(given, dataset, fold, draw).values() for i in ids}
    assert not set(chosen) & set(shuffled_base_images(config, dataset, fold)[:30])
    assert validation_images(Study.model_validate({"space": {"data.shots": [1]}, "objective": ["test.novel"]}), config) is None
    greedy = Study.model_validate({"space": {"data.shots": [1]}, "validation": {"novel_images": 300}})
    with pytest.raises(UserError, match=r"validation\.novel_images=300"):
        validation_images(greedy, config)


def test_a_study_goes_on_only_as_it_was_begun(tmp_path):
    sweep, study, config = SweepDir(tmp_path / "sweep"), study_of(), load(None, [])
    with pytest.raises(UserError, match="there is no study"):
        open_sweep(sweep, study, config, resume=True)
    open_sweep(sweep, study, config, resume=False)
    with pytest.raises(UserError, match="add --resume"):
        open_sweep(sweep, study, config, resume=False)
    open_sweep(sweep, study_of(trials=500), config, resume=True)
    with pytest.raises(UserError, match=r"labeling\.theta: 0\.6 -> 0\.7"):
        open_sweep(sweep, study, load(None, ["labeling.theta=0.7"]), resume=True)
    with pytest.raises(UserError, match=r"data\.draws: 1 -> 3"):
        open_sweep(sweep, study, load(None, ["data.draws=3"]), resume=True)
    with pytest.raises(UserError, match=r"study\.pruning: none -> median"):
        open_sweep(sweep, study_of(pruning="median"), config, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not empty and not a study"):
        open_sweep(SweepDir(tmp_path / "other"), study, config, resume=False)


def test_a_damaged_record_counts_as_a_trial_that_is_to_be_made(tmp_path):
    sweep = SweepDir(tmp_path)
    for n in range(3):
        sweep.write(record(n, {}))
    sweep.record(1).write_text('{"number": 1, "par')
    assert sorted(sweep.records()) == [0, 2]


def test_a_grid_has_the_default_and_every_combination():
    study = Study.model_validate({"space": {"data.shots": [1, 5], "labeling.beta": [0.0, 1.0]}, "sampler": "grid"})
    config = load(None, [])
    ended = {n: record(n, {}) for n in range(5)}
    assert trial_count(study, 3) == 5
    assert [choose_params(study, config, n, ended) for n in (1, 4)] == [
        {"data.shots": 1, "labeling.beta": 0.0},
        {"data.shots": 5, "labeling.beta": 1.0},
    ]


# ------------------------------------------------------------------------------------------------ the real thing
WORDS = (
    "embedded",
    "prompts.bank_size=3",
    "synthesis.images_per_class=3",
    "synthesis.batch=4",
    "data.val_images=6",
    "data.train_images=200",
    "novel.steps=6",
    "novel.replay_images=8",
    "labeling.base_prototype_images=20",
    "placement.runner=inline",
    "synthesis.class_name_bank=false",
    "data.min_support_area=0.03",
)
STUDY = """
space:
  labeling.beta: {low: 0.0, high: 1.0}
  labeling.lambda_keep: {low: 0.0, high: 0.9}
trials: 7
startup: 3
pruning: median
validation: {novel_images: 3, base_images: 6}
"""


def swept(folder, out, cache, *words, **kwargs):
    study = folder / "study.yaml"
    study.write_text(STUDY)
    command = [
        sys.executable,
        "-m",
        "syn4seg.cli",
        "sweep",
        *WORDS,
        "--study",
        str(study),
        "--out",
        str(out),
        "--cache",
        str(cache),
    ]
    return subprocess.Popen(
        [*command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        cwd=Path(__file__).parents[2],
        **kwargs,
    )


def told(sweep):
    return {n: (r["params"], r["state"], r["draws"], r["reports"]) for n, r in SweepDir(sweep).records().items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    process = swept(folder, folder / "sweep", folder / "cache")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said[-4000:]
    return folder, said


@pytest.mark.slow
def test_a_sweep_ends_with_best_config_tables_journal_and_report(undisturbed):
    import optuna
    from optuna.storages.journal import JournalFileBackend

    folder, said = undisturbed
    sweep = SweepDir(folder / "sweep")
    table = pq.read_table(sweep.table)
    assert table["number"].to_pylist() == list(range(7)) and set(table["state"].to_pylist()) <= {"complete", "pruned"}
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(sweep.journal)))
    study = optuna.load_study(study_name="syn4seg", storage=storage)
    assert len(study.trials) == 7
    summary = json.loads(sweep.summary.read_text())
    best = max((r for r in sweep.records().values() if r["state"] == "complete"), key=lambda r: metric_value(r, "novel") or 0)
    assert (
        summary["best"]["values"]["novel"]["mean"] == pytest.approx(metric_value(best, "novel")) == pytest.approx(study.best_value)
    )
    chosen = load(sweep.best)
    assert chosen.labeling.beta == pytest.approx(summary["best"]["params"]["labeling.beta"])
    page = sweep.report.read_text()
    assert (
        "<svg" in page
        and "http://"
        not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
        and "TEST LIST" not in page
    )
    assert "the test list is not read" in said and "best: trial" in said
    assert list(sweep.tensorboard.glob("*/events*"))


@pytest.mark.slow
def test_nothing_is_made_twice_in_a_study(undisturbed):
    folder, _ = undisturbed
    made: dict[str, int] = {}
    for r in SweepDir(folder / "sweep").records().values():
        for stage, how in r["stages"].items():
            made[stage] = made.get(stage, 0) + how.get("made", 0)
    there = {p.name: len(list(p.glob("*.bin"))) for p in (folder / "cache").iterdir() if p.is_dir() and p.name != "locks"}
    assert {stage: count for stage, count in made.items() if count} == there
    assert there["dense"] == there["embedding"] == 1 and there["registration"] == 1 and "runs" not in there


@pytest.mark.slow
def test_a_driver_killed_at_random_and_resumed_gives_the_same_trials_and_the_same_best(undisturbed, tmp_path):
    folder, _ = undisturbed
    wanted, rng = told(folder / "sweep"), random.Random(0)
    for kill in range(2):
        process = swept(tmp_path, tmp_path / "sweep", tmp_path / "cache", *(["--resume"] if kill else []), start_new_session=True)
        sweep, least = SweepDir(tmp_path / "sweep"), 2 * kill + rng.randint(1, 2)
        begun = time.time()
        while process.poll() is None and len(sweep.records()) < least and time.time() - begun < 200:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = swept(tmp_path, tmp_path / "sweep", tmp_path / "cache", "--resume")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said[-4000:]
    assert told(tmp_path / "sweep") == wanted
    ours, theirs = (json.loads(SweepDir(f / "sweep").summary.read_text()) for f in (tmp_path, folder))
    assert ours["best"] == theirs["best"]


@pytest.mark.slow
def test_another_study_shares_the_cache(undisturbed, tmp_path):
    folder, _ = undisturbed
    (tmp_path / "shots.yaml").write_text(
        "space: {data.shots: [1, 2]}\nsampler: grid\nreports: 1\nvalidation: {novel_images: 3, base_images: 6}\n"
    )
    words = ["--study", str(tmp_path / "shots.yaml"), "--objective", "test.novel,test.base"]
    process = swept(folder, tmp_path / "shots", folder / "cache", *words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    sweep = SweepDir(tmp_path / "shots")
    for stage in ("dense", "embedding", "registration", "draft", "label"):
        assert "made" not in sweep.records()[0]["stages"].get(stage, {}), stage
    assert said.count("TEST LIST") == 2 and "front: trial" in said
    assert 'role="alert"' in sweep.report.read_text()


class Given:
    """Trials that end as the test says, without Ray."""

    def __init__(self, states):
        self.states = states

    def __call__(self, chooser, config, concurrency, failed):
        while chooser.missing and not failed():
            given = json.loads(chooser.suggest("a")["trial"])
            made = record(given["number"], given["params"], state=self.states[given["number"]])
            chooser.on_trial_complete("a", {"record": json.dumps(made)})


@pytest.fixture
def without_ray(monkeypatch, tmp_path):
    from tune import study

    monkeypatch.setattr(study, "check_room", lambda *_: None)
    monkeypatch.setattr(study, "check_shared", lambda *_: None)
    monkeypatch.setattr(study, "validation_images", lambda *_: [])

    def run(sweep, states, fail_fast=False):
        monkeypatch.setattr(study, "_tune", Given(states))
        open_sweep(sweep, study_of(), load(None, []), resume=sweep.study.exists())
        return study.run_sweep(
            sweep,
            study_of(),
            load(None, []),
            trials=len(states),
            concurrency=1,
            cache=tmp_path / "cache",
            cache_bytes=2**30,
            reference=RunDir(sweep.run),
            fail_fast=fail_fast,
            on_record=print,
        )

    return run


def test_a_trial_that_fails_is_recorded_and_the_study_goes_on(without_ray, tmp_path):
    summary = without_ray(SweepDir(tmp_path / "sweep"), ["complete", "failed", "complete"])
    assert (summary["complete"], summary["failed"]) == (2, 1)
    assert SweepDir(tmp_path / "sweep").records()[1]["error"] == "no"


def test_fail_fast_stops_at_the_first_failure(without_ray, tmp_path):
    sweep = SweepDir(tmp_path / "sweep")
    with pytest.raises(UserError, match="--fail-fast: trial 1 failed: no"):
        without_ray(sweep, ["complete", "failed", "complete"], fail_fast=True)
    assert sorted(sweep.records()) == [0, 1]


def test_a_full_disk_stops_the_sweep_and_is_no_trials_fault(without_ray, tmp_path, monkeypatch):
    from tune import study

    def full(chooser, config, concurrency, failed):
        chooser.suggest("a")
        chooser.on_trial_complete("a", {"stopped": "no space left; free some"})
        assert failed()

    sweep = SweepDir(tmp_path / "sweep")
    monkeypatch.setattr(study, "_tune", full)
    open_sweep(sweep, study_of(), load(None, []), resume=False)
    with pytest.raises(StoreError, match="no space left; free some; then go on with --resume"):
        study.run_sweep(
            sweep,
            study_of(),
            load(None, []),
            trials=2,
            concurrency=1,
            cache=tmp_path / "cache",
            cache_bytes=2**30,
            reference=RunDir(sweep.run),
            fail_fast=False,
            on_record=print,
        )
    assert sweep.records() == {}


def test_a_study_whose_trials_all_fail_ends_badly(without_ray, tmp_path):
    with pytest.raises(UserError, match="no trial of 2 ended well: no"):
        without_ray(SweepDir(tmp_path / "sweep"), ["failed", "failed"])


def test_a_trials_own_exception_ends_that_trial_alone(tmp_path):
    from tune.objective import TrialObjective

    config = load(None, []).model_dump(mode="json")
    given = {
        "config": config,
        "reference": str(tmp_path / "run"),
        "cache": str(tmp_path / "cache"),
        "cache_bytes": 2**30,
        "validation": [],
        "metrics": ["novel"],
        "study_reports": 1,
        "cpus": 1,
        "device": "cpu",
        "number": 3,
        "params": {},
        "overrides": {"labeling.beta": 7},
        "stop_below": [None],
    }
    trial = TrialObjective({"trial": json.dumps(given)})
    ended = trial.step()
    assert ended["done"] and json.loads(ended["record"])["state"] == "failed"
    assert "labeling.beta=7" in json.loads(ended["record"])["error"]
    assert trial.reset_config({"trial": json.dumps(given | {"number": 4})}) and json.loads(trial.step()["record"])["number"] == 4


def test_several_objectives_stop_no_trial_early():
    from tune.sweep import _changes

    assert _changes([], "novel, base") == {"objective": ["novel", "base"], "pruning": "none"}
    assert _changes(["study.window=4"], "novel") == {"objective": ["novel"], "window": 4}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--study", "nope"], "expected a YAML file, or one of all, beta"),
        (["--objective", "nowel"], "did you mean novel"),
        (["--concurrency", "9"], "begin the study with study.window=9"),
        (["study.colour=red"], "study.KEY=VALUE"),
        (["--cache", "s3://bucket/cache"], "a folder of this machine or a network mount"),
        (["--out", "s3://bucket/sweep"], "a folder of this machine or a network mount"),
    ],
)
def test_a_mistake_is_one_message_and_no_directory(tmp_path, monkeypatch, capsys, words, said):
    from syn4seg import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["syn4seg", "sweep", "embedded", "data.train_images=200", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and said in told and told.startswith("error: ") and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_new_search_key_is_one_line_of_yaml_and_changes_only_what_depends_on_it():
    from examples.extending_search import STUDY, main
    from syn4seg.config.tree import keys

    packaged = Path(__file__).parents[2].glob("syn4seg/configs/studies/*.yaml")
    assert "refinement.margin" in keys() and not any("refinement.margin" in path.read_text() for path in packaged)
    assert len([line for line in STUDY.read_text().splitlines() if "refinement.margin" in line]) == 1
    records = main()
    assert [r["state"] for r in records.values()] == ["complete"] * 3
    assert len({r["params"]["refinement.margin"] for r in records.values()}) == 3
    for record in (records[1], records[2]):
        assert {kind for kind, counts in record["stages"].items() if counts.get("made")} >= {"masks", "label"}
        assert not record["stages"]["embedding"].get("made") and not record["stages"].get("dense", {}).get("made")
