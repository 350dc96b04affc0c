"""Shared by the tests of `watch`: a run without lines, and the output to a terminal."""

from __future__ import annotations

import io
import shutil

import pytest
from rich.console import Console

from syn4seg.store.rundir import RunDir


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the files of the finished run that `watch` reads, without results and lines; and its metrics.jsonl as bytes."""
    for name in ("config.yaml", "plan.parquet"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(finished[0] / name, tmp_path / "run" / name)
    return RunDir(tmp_path / "run"), (finished[0] / "metrics.jsonl").read_bytes()


@pytest.fixture
def printed():
    """Return the output of something to a terminal of a width, without colours."""

    def render_to_text(renderable, width: int = 80) -> str:
        out = io.StringIO()
        Console(file=out, width=width, force_terminal=True, no_color=True, highlight=False).print(renderable)
        return out.getvalue()

    return render_to_text
