"""Shared by the tests of the loggers: short waits, and an opened run."""

from __future__ import annotations

import pytest

from syn4seg.config.tree import Config
from syn4seg.loggers import following
from syn4seg.store.rundir import RunDir


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(following, "CLOSE_SECONDS", 12.0)


@pytest.fixture
def run(tmp_path):
    """An opened run of the default configuration."""
    opened = RunDir(tmp_path / "run")
    opened.open(Config())
    return opened
