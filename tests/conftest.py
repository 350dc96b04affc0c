"""Shared by the tests: small runs of the embedded world, prepared and finished, and Ray on loopback, started once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # set before any test imports Ray, the same for all of them
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # every Ray of the tests listens on loopback only

SMALL = (
    "placement.runner=inline",
    "synthesis.images_per_class=3",
    "prompts.bank_size=3",
    "synthesis.batch=5",
    "data.val_images=6",
    "data.train_images=120",
    "novel.steps=4",
    "novel.replay_images=8",
    "data.min_support_area=0.03",
)


@pytest.fixture(scope="session")
def small():
    """Overrides of a run that takes seconds: 24 samples in 5 generator batches, the last one padded."""
    return list(SMALL)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, small):
    """A run directory with prompts, plan, the shipped base checkpoint of fold 0 and one registered support draw."""
    from syn4seg.config.loading import load
    from syn4seg.models.generators import load_text_encoder
    from syn4seg.prompts.agents import load_agent
    from syn4seg.stages.base import make_base
    from syn4seg.stages.checks import check
    from syn4seg.stages.novel import NovelStage
    from syn4seg.stages.plan import make_plan
    from syn4seg.store.rundir import RunDir

    config = load(None, small)
    dataset, fold = check(config)
    run = RunDir(tmp_path_factory.mktemp("prepared") / "run")
    run.open(config)
    agent = load_agent("grammar", world="embedded", seed=config.seed)
    make_plan(config, run, fold, lambda _: None, agent, load_text_encoder(config.synthesis.model))
    make_base(config, run, dataset, fold, lambda *_: None)
    NovelStage(config, run, dataset, fold).register(0)
    return run, fold.index_names


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small):
    """A whole run of two draws through the command line, not to be changed: its directory and what was printed."""
    out = tmp_path_factory.mktemp("cli") / "run"
    command = [sys.executable, "-m", "syn4seg.cli", "run", *small, "data.draws=2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="session")
def finish():
    """A function (config, run, names) that streams what is left of draw 0, writes its manifest and returns the digest."""
    from actors.graph import stream
    from syn4seg.stages.results import verify_run, write_manifest

    def to_the_end(config, run, names) -> str:
        stream(config, run, names, 0, lambda *_: None)
        write_manifest(run, 0)
        digest, problems = verify_run(run)
        assert problems == []
        assert verify_run(run, quick=True) == (digest, [])
        return digest

    return to_the_end


@pytest.fixture(scope="session")
def reference(prepared, small, finish, tmp_path_factory):
    """Digest and directory of an undisturbed run, in files."""
    from syn4seg.config.loading import load
    from syn4seg.store.rundir import RunDir

    run, names = prepared
    root = tmp_path_factory.mktemp("reference") / "run"
    shutil.copytree(run.root, root)
    return finish(load(None, small), RunDir(root), names), root


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, found on the machine (`SYN4SEG_CHROMIUM` may name it) or skipped with the reason."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e .[dev]")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    program = os.environ.get("SYN4SEG_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: apt-get install chromium, or playwright install chromium ({error.message.splitlines()[0]})")
        yield started
        started.close()


@pytest.fixture
def syn4seg(capsys, monkeypatch):
    """A function that runs the command line in this process: exit code, standard output, standard error."""
    from syn4seg import cli

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["syn4seg", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def fresh(prepared, tmp_path):
    """A copy of the prepared run that a test may fill and damage."""
    from syn4seg.store.rundir import RunDir

    run, names = prepared
    shutil.copytree(run.root, tmp_path / "run")
    return RunDir(tmp_path / "run"), names


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray for the whole session."""
    from actors.cluster import connect
    from syn4seg.config.placement import PlacementConfig

    root = str(Path(__file__).parents[1])  # for functions of the tests that run in its processes
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    connect(PlacementConfig())
    yield
    import ray

    ray.shutdown()
