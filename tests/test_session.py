"""The verbs in Python: the words of the command, its runs, its resumption, and Ctrl-C as KeyboardInterrupt."""

from __future__ import annotations

import contextlib
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import actors.command
import syn4seg
import tune.sweep
from syn4seg.errors import Interrupted, UserError, catch_signals
from syn4seg.options import read_config
from syn4seg.session import _words
from syn4seg.store.files import write_json
from syn4seg.store.rundir import RunDir
from tune.records import SweepDir


def test_a_call_is_the_command_with_the_same_words():
    keys = {
        "labeling.beta": 0.3,
        "data.draws": np.int64(5),
        "evaluation.rows": ["syn4seg"],
        "name": "a: [b]",
        "data.root": Path("x"),
    }
    config = read_config(_words("embedded", keys))
    assert (config.labeling.beta, config.data.draws, config.evaluation.rows, config.name) == (0.3, 5, ("syn4seg",), "a: [b]")
    assert read_config(_words(None, {"labeling.beta": 1e-05})).labeling.beta == 1e-05
    with pytest.raises(UserError, match=r"labeling\.beta is a object; expected a number"):
        syn4seg.run("embedded", **{"labeling.beta": object()})
    with pytest.raises(UserError, match=r"labeling\.bta"):
        syn4seg.run("embedded", **{"labeling.bta": 1})


def test_a_run_goes_on_from_what_the_command_made(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    run = syn4seg.run(tmp_path / "run", out=tmp_path / "run")
    assert run.path == str(tmp_path / "run")
    assert run.results is not None and run.results["rows"] == syn4seg.load_run(finished[0]).results["rows"]
    with pytest.raises(UserError, match=r"labeling\.beta"):
        syn4seg.run(tmp_path / "run", out=tmp_path / "run", **{"labeling.beta": 0.9})


def test_ctrl_c_is_a_keyboard_interrupt_and_the_signals_are_given_back(monkeypatch):
    @contextlib.contextmanager
    def stopped(words, out, reuse, trust):
        catch_signals()
        signal.raise_signal(signal.SIGINT)
        yield

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(actors.command, "logged_pipeline", stopped)
    with pytest.raises(KeyboardInterrupt, match="the same call goes on") as caught:
        syn4seg.run("embedded")
    assert isinstance(caught.value.__cause__, Interrupted) and signal.getsignal(signal.SIGINT) is before
    with ThreadPoolExecutor(1) as elsewhere:
        elsewhere.submit(catch_signals).result()  # another thread cannot set handlers, and does not fail
    assert signal.getsignal(signal.SIGINT) is before


def test_a_sweep_passes_on_its_words_and_returns_what_it_found(monkeypatch, tmp_path):
    given = {}

    def search(config, **options) -> SweepDir:
        given.update(options, beta=config.labeling.beta)
        folder = SweepDir(tmp_path / "sweep")
        write_json(folder.summary, {"best": 3})
        return folder

    monkeypatch.setattr(tune.sweep, "search_keys", search)
    found = syn4seg.sweep(
        "embedded", "beta", out=tmp_path / "sweep", trials=4, resume=True, **{"labeling.beta": 0.2, "study.window": 2}
    )
    assert (given["study"], given["trials"], given["resume"], given["changes"]) == ("beta", 4, True, ["study.window=2"])
    assert given["beta"] == 0.2 and given["out"] == str(tmp_path / "sweep") and given["cache_bytes"] == 20 * 2**30
    assert found.summary == {"best": 3} and found.best is None and found.path == str(tmp_path / "sweep")


def test_a_run_needs_no_path_object(finished):
    assert syn4seg.load_run(str(finished[0])).path == str(RunDir(finished[0]).root)
