"""Loggers: what metrics.jsonl says, in TensorBoard, MLflow and W&B, live, once, and without a say in the run."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from syn4seg import cli
from syn4seg.config.fingerprint import config_digest
from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.loggers import following
from syn4seg.loggers.following import check_loggers, run_loggers
from syn4seg.store.rundir import RunDir
from tests.shared_loggers import events, to


def wait_for(condition) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.01)


def test_where_numbers_go_changes_no_fingerprint_and_any_run_accepts_a_change_of_it(run):
    assert config_digest(to()) == config_digest(to("wandb", "mlflow")) == config_digest(Config())
    run.check(to("mlflow"))
    with pytest.raises(UserError, match=r"logging\.to='comet': .*'tensorboard', 'mlflow' or 'wandb'"):
        to("comet")


def test_the_curves_are_there_while_the_run_goes_on_and_a_second_command_adds_what_is_new_alone(run):
    folder, notes = run.root / "tensorboard", []
    run.log(stage="base", epoch=1, loss=2.0)
    with run_loggers(Config(), run, notes.append):
        wait_for(lambda: events(folder) == [(1, "base/loss", 2.0)])
        run.log(stage="base", epoch=2, loss=1.0)
        wait_for(lambda: len(events(folder)) == 2)
        run.log(stage="base", seconds=4.5)
    expected = [(1, "base/loss", 2.0), (2, "base/loss", 1.0), (2, "base/seconds", 4.5)]
    assert events(folder) == expected and len(list(folder.iterdir())) == 1
    with run_loggers(Config(), run, notes.append):
        pass
    assert events(folder) == expected and len(list(folder.iterdir())) == 1, "nothing new, no file"
    with run_loggers(Config(), run, notes.append):
        run.log(stage="results", apf={"novel": 0.25})
    assert events(folder) == [*expected, (3, "results/apf/novel", 0.25)] and len(list(folder.iterdir())) == 2
    assert notes == []
    import socket

    assert not any(socket.gethostname() in p.name for p in folder.iterdir())


def test_what_was_deleted_is_written_again_and_a_half_written_line_waits_for_its_rest(run):
    for epoch in range(2):
        run.log(stage="base", epoch=epoch, loss=0.5)
    run.log(stage="base", seconds=0.5)
    with run_loggers(Config(), run, print):
        pass
    whole = events(run.root / "tensorboard")
    shutil.rmtree(run.root / "tensorboard")
    shutil.rmtree(run.root / "logging")
    text = run.metrics.read_bytes()
    run.metrics.write_bytes(text[:-9])
    with run_loggers(Config(), run, print):
        wait_for(lambda: len(events(run.root / "tensorboard")) == 2)
        time.sleep(0.1)
        assert len(events(run.root / "tensorboard")) == 2
        with run.metrics.open("ab") as file:
            file.write(text[-9:])
    assert events(run.root / "tensorboard") == whole
    run.metrics.unlink()
    with run_loggers(Config(), run, print):
        run.log(stage="base", epoch=9, loss=0.5)
    assert events(run.root / "tensorboard") == [*whole, (9, "base/loss", 0.5)]


def test_nothing_is_written_where_nothing_is_asked_for_and_object_stores_are_left_out_with_a_note(tmp_path):
    run, notes = RunDir(tmp_path / "a"), []
    run.log(stage="base", seconds=1.0)
    with run_loggers(to(), run, notes.append):
        pass
    assert [p.name for p in run.root.iterdir()] == ["metrics.jsonl"] and notes == []
    with run_loggers(Config(), RunDir("memory://bucket/run"), notes.append):
        pass
    assert len(notes) == 1 and "skipped" in notes[0]


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
    broken, notes, opened = Broken(), [], following.Follower._open
    monkeypatch.setattr(following.Follower, "_open", lambda self, token: broken if self.name == "mlflow" else opened(self, token))
    with run_loggers(to("mlflow", "tensorboard"), run, notes.append):
        for epoch in range(6):
            run.log(stage="base", epoch=epoch, loss=0.0)
            wait_for(lambda epoch=epoch: len(events(run.root / "tensorboard")) > epoch)
    (warning,) = notes
    assert "logging.to=mlflow has stopped (RuntimeError: no route to http://host/x); the run goes on" in warning
    assert broken.writes == 2 and len(events(run.root / "tensorboard")) == 6
    assert len(run.metrics.read_text().splitlines()) == 6


def test_a_logger_that_hangs_delays_nothing_but_the_end_and_that_not_for_long(run, monkeypatch):
    stuck, notes = threading.Event(), []
    monkeypatch.setattr(following, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(following.Follower, "_open", lambda self, token: SimpleNamespace(write=lambda points: stuck.wait(20)))
    begun = time.monotonic()
    with run_loggers(Config(), run, notes.append):
        for epoch in range(20):
            run.log(stage="base", epoch=epoch, loss=0.0)
    assert time.monotonic() - begun < 5 and len(notes) == 1 and "has not told everything yet" in notes[0]
    stuck.set()


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in ("mlflow", "wandb") else real(name, *more))
    for name in ("mlflow", "wandb"):
        with pytest.raises(UserError, match=rf"logging\.to={name}: .*pip install 'syn4seg-ray\[{name}\]'"):
            check_loggers(to(name))
    monkeypatch.setattr(sys, "argv", ["syn4seg", "run", "logging.to=[mlflow]", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "pip install 'syn4seg-ray[mlflow]'" in capsys.readouterr().err and not (tmp_path / "run").exists()
