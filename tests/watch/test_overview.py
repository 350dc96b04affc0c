"""`syn4seg ls`: every run and sweep has a line, damaged and foreign folders cost nobody else's, and numbers stay at 60 columns."""

from __future__ import annotations

import io
import json
import os
import time

import pytest
from rich.console import Console

from syn4seg.config.loading import load
from syn4seg.store.rundir import RunDir
from syn4seg.watch.overview import list_runs, render_runs
from syn4seg.watch.state import STALE_SECONDS


@pytest.fixture
def folder(finished, tmp_path):
    """A folder with a finished run, one that was stopped, a sweep, damaged ones and foreign files."""
    (tmp_path / "done").symlink_to(finished[0])
    stopped = RunDir(tmp_path / "photos" / "stopped")
    stopped.open(load(None))
    lines = [{"kind": "begin", "stage": "labels"}, {"kind": "pulse", "stage": "stream", "draw": 0, "done": 3, "total": 24}]
    stopped.metrics.write_text("".join(json.dumps({"time": 1000.0 + i, **line}) + "\n" for i, line in enumerate(lines)))
    for name, file, text in (
        ("sweep", "study.json", '{"trials": 5}'),
        ("other", "study.json", "[]"),
        ("bad", "config.yaml", "a: [\x1b"),
        ("headless", "plan.parquet", ""),
        ("holiday", "beach.jpg", "sand"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    (tmp_path / "sweep" / "trials").mkdir()
    (tmp_path / "sweep" / "trials" / "00000.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


def test_every_run_and_sweep_is_listed_and_what_is_damaged_costs_its_own_line(folder, finished):
    found, others = list_runs(folder)
    states = {run.name: run.state for run in found}
    assert states == {
        "done": "finished",
        "photos/stopped": "stopped in labels of draw 0 3/24",
        "sweep": "sweep: 1 of 5 trials",
        **dict.fromkeys(("other", "bad", "headless"), "damaged"),
    }
    assert others == 2 and found[-1].name == "photos/stopped", "the oldest sign of life is the last"
    done = next(run for run in found if run.name == "done")
    row = json.loads((finished[0] / "results.json").read_text())["rows"]["syn4seg"]
    assert done.scores["novel"] == 100 * row["novel"]["mean"] and done.images == 24
    files = [
        p
        for p in finished[0].rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.parts[len(finished[0].parts) :])
    ]
    assert done.bytes == sum(p.stat().st_size for p in files)


def test_a_run_that_was_heard_of_lately_is_running(folder):
    (stopped,) = (run for run in list_runs(folder / "photos", now=1001.0 + STALE_SECONDS / 2)[0])
    assert stopped.state == "running: labels of draw 0 3/24" and stopped.modified == 1001.0


@pytest.mark.parametrize("width", [80, 60])
def test_numbers_stay_whole_on_a_narrow_terminal(folder, width):
    found, _ = list_runs(folder)
    console = Console(file=io.StringIO(), width=width)
    console.print(render_runs(found, width, time.time()))
    lines = console.file.getvalue().splitlines()
    row = next(line.split() for line in lines if line.startswith("done"))
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    done = next(run for run in found if run.name == "done")
    assert f"{done.scores['novel']:.1f}" in row and ("24" in row or width == 60)
    assert any("images" in line.split() for line in lines) == (width == 80)


def test_the_command_prints_a_table_or_json_and_says_what_is_not_there(folder, syn4seg, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, said, _ = syn4seg("ls", folder)
    assert code == 0 and "2 other files or folders" in said and "no config.yaml" in " ".join(said.split()) and "\x1b" not in said
    assert {run["name"] for run in json.loads(syn4seg("ls", folder, "--json")[1])} >= {"done", "bad"}
    assert "finished" in syn4seg("ls", folder / "done")[1]
    (folder / "empty").mkdir()
    assert "syn4seg run embedded --out" in syn4seg("ls", folder / "empty")[1]
    assert syn4seg("ls", folder / "nowhere")[0] == 2
    if os.getuid():
        (folder / "holiday").chmod(0)
        assert syn4seg("ls", folder)[0] == 0
