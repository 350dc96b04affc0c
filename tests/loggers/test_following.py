"""Loggers: what metrics.jsonl says, in TensorBoard, MLflow and W&B, live, once, and without a say in the run."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import shutil
import struct
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from syn4seg import cli
from syn4seg.config.fingerprint import config_digest
from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.loggers import following as module
from syn4seg.loggers.following import check_loggers, following
from syn4seg.loggers.points import parameters, point
from syn4seg.store.rundir import RunDir


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(module, "CLOSE_SECONDS", 12.0)


@pytest.fixture
def run(tmp_path):
    """An opened run of the default configuration."""
    made = RunDir(tmp_path / "run")
    made.open(Config())
    return made


def to(*names) -> Config:
    return load(None, [f"logging.to={json.dumps(list(names))}"])


def events(folder: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of every event file, read as TensorBoard does: lengths and checksums included."""
    found = []
    for name in sorted(glob.glob(f"{folder}/events.out.tfevents.*")):
        data, at, first = Path(name).read_bytes(), 0, True
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            body = data[at + 12 : at + 12 + size]
            assert struct.unpack("<I", data[at + 8 : at + 12])[0] == masked_crc32c(data[at : at + 8])
            assert struct.unpack("<I", data[at + 12 + size : at + 16 + size])[0] == masked_crc32c(body)
            made: Any = event_pb2
            event = made.Event.FromString(body)
            assert (event.file_version == "brain.Event:2") == first
            found += [(event.step, v.tag, round(v.simple_value, 5)) for v in event.summary.value]
            at, first = at + 16 + size, False
    return found


def wait_for(condition) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------- points
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
    found = point(json.dumps(line), 7)
    assert found is not None and (found.step, found.values, found.line) == (step, values, 7)
    assert "time" not in line or found.time == line["time"]


@pytest.mark.parametrize("text", ['{"kind": "begin", "stage": "base", "started": 3.5}', "not json", "[1]", "{}", '{"stage": "x'])
def test_a_line_without_numbers_is_no_point(text):
    assert point(text, 0) is None


@pytest.mark.parametrize("odd", ["NaN", "Infinity", "-Infinity", "1" + "0" * 400])
def test_a_number_that_is_none_ends_no_logger(odd):
    found = point(f'{{"stage": "base", "epoch": {odd}, "done": 4, "time": {odd}, "loss": 0.5, "lr": {odd}}}', 7)
    assert found is not None and (found.step, found.values) == (4, {"base/loss": 0.5})
    assert 0 < found.time < 1e12
    found = point(f'{{"stage": "base", "epoch": {odd}, "loss": 0.5}}', 7)
    assert found is not None and found.step == 7


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
    found = parameters(config)
    assert found["base.checkpoint"] == "weights.pth" and found["data.root"] == "voc"
    assert found["synthesis.model"] == "stabilityai/stable-diffusion-3.5-large" and found["labeling.beta"] == 0.5
    assert not any(str(tmp_path) in str(value) or "http" in str(value) for value in found.values())
    assert not any(key.startswith(("placement", "logging", "name")) for key in found)


def test_where_numbers_go_changes_no_fingerprint_and_any_run_accepts_a_change_of_it(run):
    assert config_digest(to()) == config_digest(to("wandb", "mlflow")) == config_digest(Config())
    run.check(to("mlflow"))
    with pytest.raises(UserError, match=r"logging\.to='comet': .*'tensorboard', 'mlflow' or 'wandb'"):
        to("comet")


# ------------------------------------------------------------------------------------------------ tensorboard
def test_the_curves_are_there_while_the_run_goes_on_and_a_second_command_adds_what_is_new_alone(run):
    folder, notes = run.root / "tensorboard", []
    run.log(stage="base", epoch=1, loss=2.0)
    with following(Config(), run, notes.append):
        wait_for(lambda: events(folder) == [(1, "base/loss", 2.0)])
        run.log(stage="base", epoch=2, loss=1.0)
        wait_for(lambda: len(events(folder)) == 2)
        run.log(stage="base", seconds=4.5)
    wanted = [(1, "base/loss", 2.0), (2, "base/loss", 1.0), (2, "base/seconds", 4.5)]
    assert events(folder) == wanted and len(list(folder.iterdir())) == 1
    with following(Config(), run, notes.append):
        pass
    assert events(folder) == wanted and len(list(folder.iterdir())) == 1, "nothing new, no file"
    with following(Config(), run, notes.append):
        run.log(stage="results", apf={"novel": 0.25})
    assert events(folder) == [*wanted, (3, "results/apf/novel", 0.25)] and len(list(folder.iterdir())) == 2
    assert notes == []
    import socket

    assert not any(socket.gethostname() in p.name for p in folder.iterdir())


def test_what_was_deleted_is_made_anew_and_a_half_written_line_waits_for_its_rest(run):
    for epoch in range(2):
        run.log(stage="base", epoch=epoch, loss=0.5)
    run.log(stage="base", seconds=0.5)
    with following(Config(), run, print):
        pass
    whole = events(run.root / "tensorboard")
    shutil.rmtree(run.root / "tensorboard")
    shutil.rmtree(run.root / "logging")
    text = run.metrics.read_bytes()
    run.metrics.write_bytes(text[:-9])
    with following(Config(), run, print):
        wait_for(lambda: len(events(run.root / "tensorboard")) == 2)
        time.sleep(0.1)
        assert len(events(run.root / "tensorboard")) == 2
        with run.metrics.open("ab") as file:
            file.write(text[-9:])
    assert events(run.root / "tensorboard") == whole
    run.metrics.unlink()
    with following(Config(), run, print):
        run.log(stage="base", epoch=9, loss=0.5)
    assert events(run.root / "tensorboard") == [*whole, (9, "base/loss", 0.5)]


def test_nothing_is_written_where_nothing_is_asked_for_and_object_stores_are_left_out_with_a_note(tmp_path):
    run, notes = RunDir(tmp_path / "a"), []
    run.log(stage="base", seconds=1.0)
    with following(to(), run, notes.append):
        pass
    assert [p.name for p in run.root.iterdir()] == ["metrics.jsonl"] and notes == []
    with following(Config(), RunDir("memory://bucket/run"), notes.append):
        pass
    assert len(notes) == 1 and "skipped" in notes[0]


def test_a_whole_run_has_its_curves_and_scores_in_tensorboard(finished):
    folder = finished[0] / "tensorboard"
    found = events(folder)
    results = json.loads((finished[0] / "results.json").read_text())
    told = {tag: value for _, tag, value in found}
    for row, values in results["rows"].items():
        assert told[f"results/{row}/novel"] == pytest.approx(values["novel"]["mean"], abs=1e-4)
    assert {"prompts/ball/accepted", "stream/draw0/rows_per_second", "base/seconds"} <= set(told)
    assert len(found) == len(set(found)), "nothing twice"
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed: read with this test's own reader only")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    theirs = [(e.step, tag, round(e.value, 5)) for tag in reader.Tags()["scalars"] for e in reader.Scalars(tag)]
    assert sorted(theirs) == sorted(found)


# ----------------------------------------------------------------------------------------------------- faults
class Broken:
    """A logger that fails at its second write."""

    def __init__(self):
        self.writes = 0

    def write(self, points):
        self.writes += 1
        if self.writes == 2:
            raise RuntimeError("no route to http://me:hunter2@host/x")

    def close(self, status):
        raise AssertionError("closed after it failed")


def test_a_logger_that_fails_warns_once_and_stops_neither_the_run_nor_the_others(run, monkeypatch):
    broken, notes, opened = Broken(), [], module.Follower._open
    monkeypatch.setattr(module.Follower, "_open", lambda self, token: broken if self.name == "mlflow" else opened(self, token))
    with following(to("mlflow", "tensorboard"), run, notes.append):
        for epoch in range(6):
            run.log(stage="base", epoch=epoch, loss=0.0)
            wait_for(lambda epoch=epoch: len(events(run.root / "tensorboard")) > epoch)
    (said,) = notes
    assert "logging.to=mlflow has stopped (RuntimeError: no route to http://host/x); the run goes on" in said
    assert broken.writes == 2 and len(events(run.root / "tensorboard")) == 6
    assert len(run.metrics.read_text().splitlines()) == 6


def test_a_logger_that_hangs_delays_nothing_but_the_end_and_that_not_for_long(run, monkeypatch):
    stuck, notes = threading.Event(), []
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(module.Follower, "_open", lambda self, token: SimpleNamespace(write=lambda points: stuck.wait(20)))
    begun = time.monotonic()
    with following(Config(), run, notes.append):
        for epoch in range(20):
            run.log(stage="base", epoch=epoch, loss=0.0)
    assert time.monotonic() - begun < 5 and len(notes) == 1 and "has not told everything yet" in notes[0]
    stuck.set()


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_made(tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in ("mlflow", "wandb") else real(name, *more))
    for name, package in (("mlflow", "mlflow-skinny"), ("wandb", "wandb")):
        with pytest.raises(UserError, match=rf"logging\.to={name}: .*pip install {package}"):
            check_loggers(to(name))
    monkeypatch.setattr(sys, "argv", ["syn4seg", "run", "logging.to=[mlflow]", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "pip install mlflow-skinny" in capsys.readouterr().err and not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------- mlflow and W&B
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
    def __init__(self, **given):
        vars(self).update(given)
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
    """Puts a small module that remembers what it is told in a package's place."""

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
    """The first one fails, the second one goes on."""
    notes = []
    with pytest.raises(RuntimeError), following(to(name), run, notes.append):
        run.log(kind="begin", stage="base")
        run.log(stage="base", epoch=5, epochs=6, loss=2.0)
        raise RuntimeError
    with following(to(name), run, notes.append):
        run.log(stage="base", epoch=6, epochs=6, loss=1.0)
        run.log(stage="results", apf={"novel": 0.25})
    assert notes == []


def test_mlflow_has_one_run_per_directory_with_parameters_and_metrics_once(run, stand_in):
    mlflow = stand_in("mlflow")
    two_commands(run, "mlflow")
    ((token, told),) = mlflow.RUNS.items()
    assert token == json.loads((run.root / "logging" / "mlflow.json").read_text())["id"]
    assert told["metrics"] == [("base/loss", 2.0, 5), ("base/loss", 1.0, 6), ("results/apf/novel", 0.25, 3)]
    assert dict(told["params"])["labeling.beta"] == "0.5" and len(told["params"]) == len(parameters(Config()))
    assert (told["name"], told["status"]) == ("embedded", "FINISHED")


def test_wandb_has_one_run_per_directory_whose_steps_never_go_back(run, stand_in, monkeypatch):
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    wandb = stand_in("wandb")
    two_commands(run, "wandb")
    ((token, told),) = wandb.RUNS.items()
    assert token == json.loads((run.root / "logging" / "wandb.json").read_text())["id"] and told.resume == "allow"
    assert told.rows == [
        (1, {"base/loss": 2.0, "step": 5}),
        (2, {"base/loss": 1.0, "step": 6}),
        (3, {"results/apf/novel": 0.25, "step": 3}),
    ]
    assert told.ended == [1, 0] and told.config == parameters(Config()) and told.dir == run.root


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
