"""Whole sweeps through the command line: what they leave behind and what they share. `tests/test_kills.py` kills them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from syn4seg.config.loading import load
from tune.records import SweepDir, metric_value

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
    assert (chosen.labeling.rounds, chosen.novel.trains) == (2, "all")
    assert "trials have labeling.rounds=1 and novel.trains=classifier" in said
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


def test_several_objectives_stop_no_trial_early():
    from tune.sweep import _changes

    assert _changes([], "novel, base") == {"objective": ["novel", "base"], "pruning": "none"}
    assert _changes(["study.window=4"], "novel") == {"objective": ["novel"], "window": 4}
