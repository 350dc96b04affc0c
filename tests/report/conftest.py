"""Shared by the tests of the reports: a copy of a finished run."""

from __future__ import annotations

import shutil

import pytest

from syn4seg.store.rundir import RunDir


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return RunDir(tmp_path / "run")
