"""The screen of `syn4seg watch`: 80 columns, no markup of a run, lines without a terminal, and the command itself."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from syn4seg.errors import StoreError
from syn4seg.store.rundir import RunDir
from syn4seg.watch.screen import follow, headline, render, render_line
from syn4seg.watch.state import STALE_SECONDS, Watcher
from syn4seg.watch.timeline import StageLoad, WorkItem


def command(*words) -> list[str]:
    return [sys.executable, "-m", "syn4seg.cli", *map(str, words)]


def test_once_prints_the_state_and_the_headline_and_changes_nothing(finished):
    def everything():
        return {p: p.stat().st_mtime_ns for p in [finished[0], *finished[0].rglob("*")]}

    before = everything()
    for words in (["--once"], []):
        done = subprocess.run(command("watch", finished[0], *words), capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        results = json.loads((finished[0] / "results.json").read_text())
        novel = 100 * results["rows"]["syn4seg"]["novel"]["mean"]
        assert f"+ SABR (Syn4Seg): base {100 * results['rows']['syn4seg']['base']['mean']:.1f}, novel {novel:.1f}" in done.stdout
        assert "embedded: finished" in done.stdout and "draw 1: " in done.stdout
        assert all(len(row) <= 80 for row in done.stdout.splitlines())
    assert everything() == before


def test_watching_loads_neither_ray_nor_torch(finished):
    code = (
        f"import sys; sys.argv = ['syn4seg', 'watch', {str(finished[0])!r}, '--once']\nfrom syn4seg import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "loaded = {name for name in sys.modules if name.split('.')[0] in ('ray', 'torch', 'actors')}\n"
        "sys.exit(not loaded <= {'actors', 'actors.command'})"  # the command line of a run, which imports nothing heavy
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0


def test_every_prefix_can_be_shown_whole_and_as_a_line(copied, printed):
    run, data = copied
    for cut in sorted({*range(0, len(data), 97), *(i + 1 for i, byte in enumerate(data) if byte == 10)}):
        run.metrics.write_bytes(data[:cut])
        state = Watcher(run).poll()
        assert state.name in printed(render(state)) and state.phase in render_line(state).plain


def test_a_run_that_grows_while_it_is_watched_is_followed_to_its_end(copied, finished):
    run, data = copied
    shutil.rmtree(run.root)
    ended = threading.Event()

    def write() -> None:
        rng, place = random.Random(0), 0
        time.sleep(0.1)
        run.root.mkdir()
        for name in ("config.yaml", "plan.parquet"):
            shutil.copy(finished[0] / name, run.root / f".{name}")
            os.replace(run.root / f".{name}", run.root / name)
        with run.metrics.open("ab", buffering=0) as f:
            while place < len(data):
                place += f.write(data[place : place + rng.randrange(1, 400)])
                time.sleep(0.03)
        shutil.copy(finished[0] / "results.json", run.root / ".results")
        os.replace(run.root / ".results", run.results)
        ended.set()

    out = io.StringIO()
    writer = threading.Thread(target=write)
    writer.start()
    follow(run, 0.02, console=Console(file=out, width=80))
    assert ended.wait(5)
    writer.join()
    lines = out.getvalue().splitlines()
    seen = [key for key, _ in itertools.groupby(text.split(";")[0] for text in lines)]
    assert seen[0].startswith("waiting for ")
    assert any(text in ("labels of draw 0", "labels of draw 1", "labels", "training", "support sets") for text in seen[1:])
    assert "embedded: finished" in seen
    assert "+ SABR (Syn4Seg): base " in lines[-1]


def test_a_store_that_fails_for_a_while_is_polled_again_but_not_with_once(finished, monkeypatch):
    run, out, failures = RunDir(finished[0]), io.StringIO(), iter([True, True])
    poll = Watcher.poll

    def failing(self, now=None):
        if next(failures, False):
            raise StoreError("s3://x: cannot be read (timeout)")
        return poll(self, now)

    monkeypatch.setattr(Watcher, "poll", failing)
    with pytest.raises(StoreError):
        follow(run, once=True)
    follow(run, 0.5, console=Console(file=out, width=80), sleep=lambda seconds: None)
    assert "cannot be read (timeout); looking again in 0.5 s" in out.getvalue()
    assert "embedded: finished" in out.getvalue()


def test_a_run_that_has_not_begun_is_waited_for_and_ctrl_c_ends_quietly(tmp_path):
    once = subprocess.run(command("watch", tmp_path / "none", "--once"), capture_output=True, text=True, timeout=60, check=False)
    assert once.returncode == 2 and "no run has begun there" in once.stderr and "Traceback" not in once.stderr
    job = subprocess.Popen(
        command("watch", tmp_path / "none", "--interval", "0.2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert job.stdout.readline().startswith("waiting for ")
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=30)
    assert (job.returncode, errors) == (130, "")
    assert not (tmp_path / "none").exists()


def test_a_run_without_new_lines_shows_since_when(copied, printed):
    run, data = copied
    run.metrics.write_bytes(data[: data.index(b"\n", len(data) // 2) + 1])
    last = json.loads(run.metrics.read_text().splitlines()[-1])["time"]
    fresh, old = Watcher(run).poll(last + STALE_SECONDS - 1), Watcher(run).poll(last + STALE_SECONDS + 61)
    assert (fresh.stale, old.stale) == (False, True)
    assert "no new line since" not in printed(render(fresh))
    since = time.strftime("%F %T", time.localtime(last))
    assert f"no new line since {since}" in " ".join(printed(render(old)).split())
    assert "last line 11:01 ago" in render_line(old).plain
    assert old.elapsed < fresh.elapsed  # what was under way then, not the time since


def test_time_left_is_unknown_until_something_is_done_and_grows_while_nothing_is():
    item = WorkItem("labels", 0, 100)
    item.marks.extend([(0.0, 0.0)])
    assert item.seconds_left(50.0) is None and item.rate() is None
    item.done = 50
    item.marks.append((10.0, 50.0))
    assert (item.rate(), item.seconds_left(10.0), item.seconds_left(20.0)) == (5.0, 10.0, 20.0)
    assert WorkItem("labels", 100, 100).seconds_left(0.0) is None


EVIL = "[bold red]x[/] \x1b[31m\r\n[link=file:///etc]y" + "ü字" * 40


def test_no_line_is_wider_than_80_columns_and_nothing_that_is_shown_is_markup(finished, printed):
    state = Watcher(RunDir(finished[0])).poll()
    load = StageLoad("refinement", 1e6, 1e6, 123.4567, 1.0, 1e6, 1e5, 1e4, 512, 360000.0)
    items = (WorkItem(EVIL, 123456, 1e6, note=EVIL), WorkItem("labels of draw 4", 999_999, 1e6), *state.items)
    for kind in ("running", "finished"):
        wide = replace(
            state,
            name=EVIL,
            kind=kind,
            phase=EVIL,
            elapsed=1e6,
            planned=10**6,
            items=items,
            loads=(load,) * 4,
            store_gib=123.4,
            silent=1e5,
            quarantined=("hdig-star-00007",) * 3,
            funnel={None: {"": 10**6}, 0: {"": 5, EVIL: 7, "fault: labeling: [red]Error": 3}},
        )
        text = re.sub(r"\x1b\[[012]?m", "", printed(render(wide)))
        assert "[bold red]x[/]" in text and "fault: labeling: [red]Error" in " ".join(text.split())
        assert "\x1b" not in text and "\r" not in text
        assert ("1000000/1000000" in text) == (kind == "running")  # the stages of the stream
        assert max(map(cell_len, text.splitlines())) <= 80
        assert "[bold red]x[/]" in render_line(wide).plain and "\x1b" not in render_line(wide).plain


def test_a_million_samples_are_shown_whole_in_80_columns(finished, printed):
    """Rich cuts what is too wide, so that a line is never too long; here nothing may be cut."""
    load = StageLoad("refinement", 1e6, 1e6, 123.4567, 1.0, 1e6, 1e5, 1e4, 512, 360000.0)
    items = (WorkItem("labels of draw 4", 999_999, 1e6), WorkItem("training", 30_000, 30_000, note="draw 4, loss 0.1234"))
    wide = replace(Watcher(RunDir(finished[0])).poll(), kind="running", planned=10**6, items=items, loads=(load,) * 4)
    text = printed(render(wide))
    assert "\u2026" not in text
    for cell in ("refinement", "1000000/1000000", "123.5", "100%", "512", "labels of draw 4", "999999/1000000", "loss 0.1234"):
        assert cell in text, cell
    assert "\u2026" in printed(render(wide), 50)
    narrow = printed(render(wide, 60), 60)
    assert "░" not in narrow and "█" not in narrow and "…" not in narrow
    for cell in ("1000000/1000000", "999999/1000000", "123.5", "100%", "0.1234"):
        assert cell in narrow, cell
    assert max(map(cell_len, re.sub(r"\x1b\[[012]?m", "", narrow).splitlines())) <= 60


def test_the_headline_is_in_the_terms_of_the_protocol(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    results["protocol"] |= {"base_mIoU": "with the background", "mean": "over all classes (total)"}
    results["rows"]["syn4seg"]["novel"]["mean"] = None
    text = headline(results)[-1]
    assert text.startswith("+ SABR (Syn4Seg): base + bg ") and "novel -, total " in text
