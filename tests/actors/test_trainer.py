"""Training beside labeling: either failure ends both with its own words, and the bytes are those of one after the other."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import threading
import time

import pytest
import torch

from actors import graph
from actors.pipeline import Pipeline
from actors.trainer import LabelingThread, always_labeled, train_and_evaluate
from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.models.generators import load_generator
from syn4seg.stages.checks import check
from syn4seg.stages.classifiers import load_classifier
from syn4seg.stages.rows import rows_of
from syn4seg.store.rundir import RunDir


def steadily(draw, go_on):
    """Labels for ever, in batches of a hundredth of a second."""
    while True:
        go_on()
        time.sleep(0.01)


def test_a_failure_of_labeling_is_raised_where_the_trainer_asks_and_as_itself():
    failure = UserError("no room on the disk")

    def fails(draw, go_on):
        raise failure

    with pytest.raises(UserError, match="no room on the disk") as caught, LabelingThread(fails, [0]) as labeling:
        while not labeling.is_labeled(0):
            time.sleep(0.01)
    assert caught.value is failure


def test_what_labeling_said_counts_even_if_the_trainer_says_something_else_then():
    with pytest.raises(UserError, match="no room"), LabelingThread(lambda *_: 1 / 0, [0]) as labeling:
        while labeling.failure is None:
            time.sleep(0.01)
        labeling.failure = UserError("no room")
        raise RuntimeError("a worker lost its peers")


def test_a_failure_of_training_stops_labeling_between_two_batches():
    labeling = LabelingThread(steadily, [0, 1])
    with pytest.raises(RuntimeError, match="nan"), labeling:
        raise RuntimeError("nan")
    assert not labeling.thread.is_alive()
    assert labeling.done == set()


def test_the_block_ends_when_both_have_ended_and_a_late_failure_is_not_lost():
    def late(draw, go_on):
        time.sleep(0.3)
        if draw:
            raise UserError("late")

    with LabelingThread(late, [0]) as labeling:
        pass
    assert labeling.is_labeled(0)
    with pytest.raises(UserError, match="late"), LabelingThread(late, [0, 1]):
        pass


def test_an_interrupt_reaches_the_main_thread_and_waits_for_nobody():
    class Interruption(BaseException):
        pass

    def stop(*_):
        raise Interruption

    before, ended = signal.signal(signal.SIGINT, stop), threading.Event()
    try:
        with pytest.raises(Interruption), LabelingThread(lambda draw, go_on: ended.wait(60) and None, [0]) as labeling:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                labeling.is_labeled(0)
                time.sleep(0.01)
        assert labeling.thread.is_alive()
    finally:
        signal.signal(signal.SIGINT, before)
        ended.set()


class Quiet:
    """A display that shows nothing."""

    def note(self, text):
        pass

    @contextlib.contextmanager
    def bar(self, title):
        yield lambda *_: None

    @contextlib.contextmanager
    def bars(self, *titles):
        yield [lambda *_: None for _ in titles]

    def funnel(self, draw, reasons):
        pass

    def results(self, results):
        pass


KEYS = ("novel.steps=12", "novel.ramp=0.9", "synthesis.images_per_class=3")


def pipeline(run, small, *keys) -> Pipeline:
    config = load(None, [*small, *KEYS, *keys])
    return Pipeline(config, run, *check(config), Quiet())


def classifiers(run, config) -> dict[str, bytes]:
    return {row: run.draw(0).checkpoint(row).read_bytes() for row in rows_of(config)}


@pytest.fixture(scope="module")
def one_after_the_other(prepared, small, tmp_path_factory):
    """A finished inline run."""
    root = tmp_path_factory.mktemp("after") / "run"
    shutil.copytree(prepared[0].root, root)
    made = pipeline(RunDir(root), small)
    made.run_all()
    return made


@pytest.mark.slow
def test_the_overlapped_run_gives_the_bytes_of_labeling_first_and_training_then(fresh, small, one_after_the_other, ray_cluster):
    run, _ = fresh
    pipeline(run, small, "placement.runner=ray").run_all()
    first = one_after_the_other
    assert classifiers(run, first.config) == classifiers(first.run, first.config)
    assert (run.draw(0).root / "confusion.json").read_bytes() == (first.run.draw(0).root / "confusion.json").read_bytes()


class Black:
    """A generator whose images are all faulty."""

    def __init__(self):
        self.inner = load_generator("renderer", steps=1, guidance=1.0, size=64)

    def generate(self, prompts, encoded, noise_seeds):
        return self.inner.generate(prompts, encoded, noise_seeds)[0], ["black"] * len(prompts)


@pytest.mark.slow
def test_a_stream_that_fails_everywhere_ends_the_overlapped_run_with_its_reason(fresh, small, ray_cluster, monkeypatch):
    run, _ = fresh
    monkeypatch.setattr(graph, "load_generator", lambda *_, **__: Black())
    with pytest.raises(UserError, match=r"of 24 samples are quarantined.*fault: synthesis: black image"):
        pipeline(run, small, "placement.runner=ray", "placement.synthesis.batch=5").run_all()
    assert not run.draw(0).checkpoint("syn4seg").exists()


class Killing:
    """`IsLabeled` of finished labels, which kills the process that asks the 280th time, once."""

    def __init__(self, note):
        self.note, self.count = note, 0

    def __call__(self, draw):
        self.count += 1
        if self.count == 280 and not self.note.exists():
            self.note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return True


@pytest.mark.slow
def test_two_workers_learn_what_one_process_learns_and_a_killed_one_goes_on_from_the_last_checkpoints(
    fresh, small, tmp_path, ray_cluster
):
    run, names = fresh
    keys = [*small, *KEYS, "novel.steps=60"]
    here, there = load(None, keys), load(None, [*keys, "placement.runner=ray", "placement.training.workers=2"])
    graph.stream(here, run, names, 0, lambda *_: None)
    shutil.copytree(run.root, tmp_path / "one")
    told = []
    for config, root, is_labeled in ((here, tmp_path / "one", always_labeled), (there, run.root, Killing(tmp_path / "killed"))):
        bars = [lambda done, total: told.append(done), lambda *_: None]
        train_and_evaluate(config, RunDir(root), *check(config), bars, evaluate=False, is_labeled=is_labeled)
    assert (tmp_path / "killed").is_file()
    back = [after for before, after in itertools.pairwise(told[300:]) if after < before]
    assert all(after > 200 for after in back)  # five rows were at 50 of 60 steps
    for row in rows_of(here):
        one, two = (load_classifier(RunDir(root).draw(0).checkpoint(row)) for root in (tmp_path / "one", run.root))
        torch.testing.assert_close(one.weight, two.weight, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_worker_with_readers_of_ray_data_trains_the_network_that_this_process_trains(
    one_after_the_other, small, tmp_path, ray_cluster
):
    root, networks = one_after_the_other.run.root, []
    for name, words in (("here", ()), ("there", ("runner=ray", "training.workers=1", "training.readers=1"))):
        keys = [*small, *KEYS, "novel.trains=decoder", "joint.steps=4", "joint.crop=32", *(f"placement.{word}" for word in words)]
        config, run = load(None, keys), RunDir(shutil.copytree(root, tmp_path / name))
        train_and_evaluate(config, run, *check(config), [lambda *_: None] * 3, evaluate=False, is_labeled=always_labeled)
        networks.append(run.draw(0).checkpoint("syn4seg_decoder").read_bytes())
    assert networks[0] == networks[1]
