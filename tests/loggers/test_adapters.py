"""TensorBoard, MLflow and W&B hold the numbers of a run once, over several commands, and nothing about the machine."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from syn4seg.config.tree import Config
from syn4seg.loggers.following import run_loggers
from syn4seg.loggers.points import flat_parameters
from tests.shared_loggers import events, to


def test_a_whole_run_has_its_curves_and_scores_in_tensorboard(finished):
    folder = finished[0] / "tensorboard"
    values = events(folder)
    results = json.loads((finished[0] / "results.json").read_text())
    by_tag = {tag: value for _, tag, value in values}
    for row, scores in results["rows"].items():
        assert by_tag[f"results/{row}/novel"] == pytest.approx(scores["novel"]["mean"], abs=1e-4)
    assert {"prompts/ball/accepted", "stream/draw0/rows_per_second", "base/seconds"} <= set(by_tag)
    assert len(values) == len(set(values)), "nothing twice"
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed: read with this test's own reader only")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    read = [(e.step, tag, round(e.value, 5)) for tag in reader.Tags()["scalars"] for e in reader.Scalars(tag)]
    assert sorted(read) == sorted(values)


STAND_INS = {
    "mlflow": """
import types
RUNS = {}
entities = types.SimpleNamespace(Param=lambda k, v: (k, v), Metric=lambda k, v, t, s: (k, v, s))
class MlflowClient:
    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=name) if RUNS else None
    def create_experiment(self, name):
        return name
    def search_runs(self, experiments, filter_string):
        token = filter_string.split("'")[1]
        return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=token))] if token in RUNS else []
    def create_run(self, experiment, run_name, tags):
        (token,) = tags.values()
        RUNS[token] = {"name": run_name, "params": [], "metrics": [], "status": "RUNNING"}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=token))
    def update_run(self, run, status):
        RUNS[run]["status"] = status
    def log_batch(self, run, metrics=(), params=()):
        assert len(params) <= 100 and len(metrics) <= 1000
        RUNS[run]["metrics"] += metrics
        RUNS[run]["params"] += params
    def set_terminated(self, run, status):
        RUNS[run]["status"] = status
""",
    "wandb": """
RUNS = {}
class Settings:
    def __init__(self, **options):
        vars(self).update(options)
class Run:
    def log(self, values, step):
        assert not self.rows or step > self.rows[-1][0], "steps never go back"
        self.rows.append((step, values))
    def finish(self, exit_code):
        self.ended.append(exit_code)
def init(project, id, name, config, resume, dir, settings):
    run = RUNS.setdefault(id, Run())
    vars(run).setdefault("rows", []), vars(run).setdefault("ended", [])
    vars(run).update(project=project, name=name, config=config, resume=resume, dir=dir, settings=settings)
    return run
""",
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Replace a package by a small module that keeps what it is sent."""

    def place(name):
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / f"{name}.py").write_text(STAND_INS[name])
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    yield place
    for name in STAND_INS:
        sys.modules.pop(name, None)


def two_commands(run, name):
    """Run a command that fails, and a second one that continues."""
    notes = []
    with pytest.raises(RuntimeError), run_loggers(to(name), run, notes.append):
        run.log(kind="begin", stage="base")
        run.log(stage="base", epoch=5, epochs=6, loss=2.0)
        raise RuntimeError
    with run_loggers(to(name), run, notes.append):
        run.log(stage="base", epoch=6, epochs=6, loss=1.0)
        run.log(stage="results", apf={"novel": 0.25})
    assert notes == []


def test_mlflow_has_one_run_per_directory_with_parameters_and_metrics_once(run, stand_in):
    mlflow = stand_in("mlflow")
    two_commands(run, "mlflow")
    ((token, logged),) = mlflow.RUNS.items()
    assert token == json.loads((run.root / "logging" / "mlflow.json").read_text())["id"]
    assert logged["metrics"] == [("base/loss", 2.0, 5), ("base/loss", 1.0, 6), ("results/apf/novel", 0.25, 3)]
    assert dict(logged["params"])["labeling.beta"] == "0.5" and len(logged["params"]) == len(flat_parameters(Config()))
    assert (logged["name"], logged["status"]) == ("embedded", "FINISHED")


def test_wandb_has_one_run_per_directory_whose_steps_never_go_back(run, stand_in, monkeypatch):
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    wandb = stand_in("wandb")
    two_commands(run, "wandb")
    ((token, logged),) = wandb.RUNS.items()
    assert token == json.loads((run.root / "logging" / "wandb.json").read_text())["id"] and logged.resume == "allow"
    assert logged.rows == [
        (1, {"base/loss": 2.0, "step": 5}),
        (2, {"base/loss": 1.0, "step": 6}),
        (3, {"results/apf/novel": 0.25, "step": 3}),
    ]
    assert logged.ended == [1, 0] and logged.config == flat_parameters(Config()) and logged.dir == run.root


def test_real_mlflow_keeps_the_same(run, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed: a stand-in is tested")
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    two_commands(run, "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("syn4seg")
    assert experiment is not None
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.status == "FINISHED" and kept.data.params["labeling.beta"] == "0.5"
    assert kept.data.metrics == {"base/loss": 1.0, "results/apf/novel": 0.25}
    assert [(m.step, m.value) for m in client.get_metric_history(kept.info.run_id, "base/loss")] == [(5, 2.0), (6, 1.0)]
    assert not any(str(Path.cwd()) in str(value) for value in kept.data.tags.values())


def test_real_wandb_offline_keeps_the_same_and_nothing_of_the_machine(run, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: a stand-in is tested")
    import socket

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "hunter2" * 6)
    two_commands(run, "wandb")
    files = [Path(name) for name in glob.glob(f"{run.root}/wandb/offline-run-*/*.wandb")]
    assert files, "its files are in the run directory"
    synced = [*files, *(Path(name) for name in glob.glob(f"{run.root}/wandb/offline-run-*/files/*"))]
    kept = b"".join(file.read_bytes() for file in synced if file.is_file())
    assert b"results/apf/novel" in kept and b"labeling.beta" in kept
    for private in (b"hunter2", socket.gethostname().encode(), os.fsencode(run.root), os.fsencode(Path.cwd())):
        assert private not in kept
