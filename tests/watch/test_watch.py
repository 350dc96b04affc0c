"""`syn4seg watch`: the state of a run equals a slow reference at every byte of its metrics.jsonl, and fits into 80 columns."""

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
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len
from rich.console import Console

from actors import graph
from syn4seg.config.loading import load
from syn4seg.errors import StoreError
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.rows import rows_of
from syn4seg.store.files import as_path
from syn4seg.store.pulse import Pulse
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredSample
from syn4seg.watch import state as states
from syn4seg.watch.screen import follow, headline, line, picture
from syn4seg.watch.state import STALE_SECONDS, Watcher, snapshot
from syn4seg.watch.story import Load, Story, Work, another_stream, pace, tells_load


def command(*words) -> list[str]:
    return [sys.executable, "-m", "syn4seg.cli", *map(str, words)]


def shown(renderable, width: int = 80) -> str:
    """What a terminal of that width is sent, without colours."""
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, no_color=True, highlight=False).print(renderable)
    return out.getvalue()


@pytest.fixture
def copied(finished, tmp_path):
    """What `watch` reads of the finished run, without its results and with no line yet; and its lines."""
    for name in ("config.yaml", "plan.parquet"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(finished[0] / name, tmp_path / "run" / name)
    return RunDir(tmp_path / "run"), (finished[0] / "metrics.jsonl").read_bytes()


# -------------------------------------------------------------------------------------------------- finished runs
def test_a_finished_run_is_what_its_manifests_plan_and_results_say(finished):
    run = RunDir(finished[0])
    found, config, results = snapshot(run), run.stored(), json.loads((finished[0] / "results.json").read_text())
    planned = sum(not padding for padding in pq.read_table(run.plan)["padding"].to_pylist())
    assert (found.kind, found.planned, found.results) == ("finished", planned, results)
    reasons = {d: Counter(pq.read_table(run.draw(d).manifest)["reason"].to_pylist()) for d in (0, 1)}
    assert found.funnel == reasons
    works = {work.title: (work.done, work.total) for work in found.works}
    steps = 2 * config.novel.steps * (len(rows_of(config)) - 1)  # two draws; the row support_only has no steps
    queries = set().union(*(json.loads(run.draw(d).queries.read_text()) for d in (0, 1)))
    assert works == {
        "prompt banks": (4, 0),
        "labels of draw 0": (planned, planned),
        "labels of draw 1": (planned, planned),
        "training": (steps, steps),
        "evaluation": (len(queries), len(queries)),
    }
    note = next(work.note for work in found.works if work.title == "training")
    assert note.startswith("draw 1, loss ") and float(note.split()[-1]) > 0
    assert found.elapsed and 0 < found.elapsed < 600 and not found.stale


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
        "sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'actors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0


# ------------------------------------------------------------------------------------------------- every prefix
def reference(data: bytes) -> dict:
    """The slow way: all whole lines anew; the phase that has begun last and not ended, and what was said last of each work."""
    lines = [json.loads(text) for text in data.split(b"\n")[:-1]]
    begins = [i for i, found in enumerate(lines) if found.get("kind") == "begin"]
    ended = [i for i, found in enumerate(lines) if "seconds" in found and found["stage"] != "stream"]
    works, banks = {}, sum("class_name" in found for found in lines)
    for found in (found for found in lines if found.get("kind") == "pulse"):
        stage = found["stage"]
        works[stage if stage != "stream" else f"labels of draw {found['draw']}"] = found["done"], found["total"]
    return {
        "works": works | ({"prompt banks": (banks, 0)} if banks else {}),
        "phase": lines[begins[-1]]["stage"] if begins and (not ended or ended[-1] < begins[-1]) else "",
        "ended": lines[ended[-1]]["stage"] if ended else "",
        "last": lines[-1]["time"] if lines else None,
    }


def test_every_prefix_of_the_lines_is_what_the_reference_says_read_on_byte_by_byte(copied):
    run, data = copied
    watcher, now, phases, expected = Watcher(run), time.time(), [], reference(b"")
    with run.metrics.open("ab", buffering=0) as f:
        for cut in range(len(data)):
            found = watcher.look(now)
            story = watcher.story
            if data[cut - 1 : cut] == b"\n":
                expected = reference(data[:cut])
                assert replace(snapshot(run, now), results=None) == replace(found, results=None)
            assert {work.title: (work.done, work.total) for work in found.works} == expected["works"]
            assert (story.phase, story.ended, story.last) == (expected["phase"], expected["ended"], expected["last"])
            phases += [found.phase] if found.phase not in phases else []
            f.write(data[cut : cut + 1])
    timing = ("evaluation", "training and evaluation")  # depends on which line comes first
    assert [phase for phase in phases if not phase.startswith("nothing") and phase not in timing] == [
        "begins",
        "prompts",
        "base stage",
        "support sets",
        "labels",
        "labels of draw 0",
        "labels of draw 1",
        "training",
    ]
    assert watcher.look(now).kind == "idle"  # everything has ended, and there are no results


def test_every_prefix_can_be_shown_whole_and_as_a_line(copied):
    run, data = copied
    for cut in sorted({*range(0, len(data), 97), *(i + 1 for i, byte in enumerate(data) if byte == 10)}):
        run.metrics.write_bytes(data[:cut])
        found = snapshot(run)
        assert found.name in shown(picture(found)) and found.phase in line(found).plain


def test_what_is_no_line_of_ours_is_passed_over(copied):
    run, data = copied
    expected = [(work.title, work.done, work.total) for work in _after(run, data).works]
    values = [None, True, [], {}, "x", -1, 10**400, 1e308, {"a": {"b": 1}}, {"synthesis": 3}, {"synthesis": {"rows": "many"}}]
    keys = ["kind", "stage", "done", "total", "draw", "reasons", "stages", "seconds", "time", "epoch", "loss", "class_name"]
    kinds = [{"kind": "load", "stage": "stream"}, {"kind": "pulse", "stage": "stream"}, {"stage": "base", "epoch": 1}, {}]
    rng = random.Random(0)
    for _ in range(60):
        lines = [json.dumps(rng.choice(kinds) | {rng.choice(keys): rng.choice(values) for _ in range(4)}) for _ in range(8)]
        found = _after(run, "\n".join(lines).encode() + b"\n" + b'{"torn": \xff\n[1]\n' + b"[" * 5_000 + b"\n\n")
        shown(picture(found)), line(found)
    torn = data.replace(b"\n", b'\n{"kind": "pulse", "stage": "stream", "do\n"text"\n')
    assert [(work.title, work.done, work.total) for work in _after(run, torn).works] == expected


def _after(run, data: bytes):
    run.metrics.write_bytes(data)
    return snapshot(run)


def test_a_file_that_another_one_has_replaced_is_read_from_its_beginning(copied):
    run, data = copied
    watcher = Watcher(run)
    run.metrics.write_bytes(data)
    watcher.look()
    half = data[: data.index(b"\n", len(data) // 2) + 1]
    run.metrics.write_bytes(half)
    now = time.time()
    assert watcher.look(now) == snapshot(run, now)


def test_of_a_long_file_the_tail_is_read(copied, monkeypatch):
    run, data = copied
    run.metrics.write_bytes(b'{"filler": 1}\n' * 1000 + data)
    whole = snapshot(run, 0.0)
    monkeypatch.setattr(states, "TAIL", len(data) + 5)
    assert snapshot(run, 0.0) == whole


@pytest.mark.parametrize("place", ["folder", "memory://watched/run"])
@pytest.mark.parametrize("layout", ["files", "sharded"])
def test_both_layouts_and_object_stores_are_the_same_to_it(copied, finished, place, layout):
    local, data = copied
    run = local if place == "folder" else RunDir(place)
    config = local.config.read_text().replace("layout: files", f"layout: {layout}")
    for name, content in (("config.yaml", config.encode()), ("plan.parquet", local.plan.read_bytes())):
        (run.root / name).write_bytes(content)
    watcher = Watcher(run)
    for cut in range(0, len(data) + 500, 500):
        run.metrics.write_bytes(data[:cut])
        found = watcher.look(0.0)
    assert found.kind == "idle"
    run.results.write_bytes((finished[0] / "results.json").read_bytes())
    assert watcher.look(0.0) == snapshot(RunDir(finished[0]), 0.0)
    if place != "folder":
        as_path("memory://watched").fs.rm("/watched", recursive=True)


# ----------------------------------------------------------------------------------------------- while it is written
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


def test_a_store_that_fails_for_a_while_is_asked_again_but_not_with_once(finished, monkeypatch):
    run, out, failures = RunDir(finished[0]), io.StringIO(), iter([True, True])
    look = Watcher.look

    def failing(self, now=None):
        if next(failures, False):
            raise StoreError("s3://x: cannot be read (timeout)")
        return look(self, now)

    monkeypatch.setattr(Watcher, "look", failing)
    with pytest.raises(StoreError):
        follow(run, once=True)
    follow(run, 0.5, console=Console(file=out, width=80), sleep=lambda seconds: None)
    assert "cannot be read (timeout); looking again in 0.5 s" in out.getvalue()
    assert "embedded: finished" in out.getvalue()


def test_what_has_not_begun_is_waited_for_and_ctrl_c_ends_it_quietly(tmp_path):
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
    _, said = job.communicate(timeout=30)
    assert (job.returncode, said) == (130, "")
    assert not (tmp_path / "none").exists()


def test_a_run_that_says_nothing_any_more_says_since_when(copied):
    run, data = copied
    run.metrics.write_bytes(data[: data.index(b"\n", len(data) // 2) + 1])
    last = json.loads(run.metrics.read_text().splitlines()[-1])["time"]
    fresh, old = snapshot(run, last + STALE_SECONDS - 1), snapshot(run, last + STALE_SECONDS + 61)
    assert (fresh.stale, old.stale) == (False, True)
    assert "no new line since" not in shown(picture(fresh))
    since = time.strftime("%F %T", time.localtime(last))
    assert f"no new line since {since}" in " ".join(shown(picture(old)).split()) and "last line 11:01 ago" in line(old).plain
    assert old.elapsed < fresh.elapsed  # what was under way then, not the time since


def test_a_command_that_goes_on_has_its_own_times_and_keeps_what_draws_have_counted():
    story = Story()
    lines = [
        {"kind": "begin", "stage": "labels and novel", "started": 100.0, "time": 100.0},
        {"kind": "pulse", "stage": "stream", "draw": 0, "done": 0, "total": 8, "reasons": {}, "time": 101.0},
        {"kind": "pulse", "stage": "stream", "draw": 0, "done": 8, "total": 8, "reasons": {"": 8}, "time": 109.0},
        {"kind": "pulse", "stage": "stream", "draw": 1, "done": 4, "total": 8, "reasons": {"": 4}, "time": 110.0},
        {"kind": "pulse", "stage": "training", "draw": 0, "done": 4, "total": 9, "loss": None, "time": 110.0},
        {"kind": "begin", "stage": "labels and novel", "started": 9000.0, "time": 9001.0},
        {"kind": "pulse", "stage": "stream", "draw": 1, "done": 4, "total": 8, "reasons": {"": 4}, "time": 9002.0},
        {"kind": "pulse", "stage": "stream", "draw": 1, "done": 6, "total": 8, "reasons": {"": 6}, "time": 9006.0},
    ]
    story.tell(lines)
    assert story.begun == 9000.0
    assert story.funnel() == {0: {"": 8}, 1: {"": 6}}
    (work,) = [work for work in story.works.values() if work.ours]
    assert (work.title, work.rate(), work.left(9006.0)) == ("labels of draw 1", 0.5, 4.0)
    assert story.said() == "labels of draw 1"


# -------------------------------------------------------------------------------------------------- rates, time left
def test_the_pace_is_that_of_the_slowest_window_in_which_something_was_done():
    rng = random.Random(0)
    for _ in range(200):
        marks = [(0.0, 0.0)]
        for _ in range(rng.randrange(7)):
            marks.append((marks[-1][0] + rng.choice([1.0, 10.0, 30.0]), marks[-1][1] + rng.choice([0, 0, 1, 8])))
        now, slowest = marks[-1][0] + rng.choice([0, 5.0]), None
        for at_, done in marks:
            if marks[-1][1] - done > 0 and now - at_ > 0:
                rate = (marks[-1][1] - done) / (now - at_)
                slowest = rate if slowest is None else min(slowest, rate)
        assert pace(marks, now) == slowest
    assert pace([], 3.0) is None


def test_time_left_is_unknown_until_something_is_done_and_grows_while_nothing_is():
    work = Work("labels", 0, 100)
    work.marks.extend([(0.0, 0.0)])
    assert work.left(50.0) is None and work.rate() is None
    work.done = 50
    work.marks.append((10.0, 50.0))
    assert (work.rate(), work.left(10.0), work.left(20.0)) == (5.0, 10.0, 20.0)
    assert Work("labels", 100, 100).left(0.0) is None


def load_line(seconds: float, draw: int | None, **rows: int) -> dict:
    ahead, stages = 64, {}
    for name in ("synthesis", "labeling", "refinement", "writing"):
        mine = rows.get(name, 0)
        stages[name] = {"rows": mine, "queued": ahead - mine, "actors": 1, "busy_share": 0.5, "rows_per_second": 1.5}
        ahead = mine
    return {"kind": "load", "draw": draw, "seconds": seconds, "object_store_gib": 0.25, "stages": stages, "time": seconds}


def test_stages_are_in_the_order_of_the_stream_with_what_is_left_of_them():
    story = Story()
    story.tell([load_line(0, 0), load_line(10, 0, synthesis=20), load_line(20, 0, synthesis=32, labeling=16)])
    stages = story.stages()
    assert [s.name for s in stages] == ["synthesis", "labeling", "refinement", "writing"]
    assert [s.total for s in stages] == [64] * 4
    assert [s.left for s in stages] == [32 / 1.2, 48 / 0.8, None, None]
    story.tell([load_line(5, 1, synthesis=8)])  # the next draw counts from zero
    assert [s.left for s in story.stages()] == [None] * 4
    story.tell([load_line(6, None, synthesis=8), load_line(7, 0)])  # images alone, which have no draw


def test_a_line_is_of_another_stream_if_its_draw_is_another_or_it_counts_anew():
    assert not another_stream(load_line(10, 0), load_line(10, 0))
    assert another_stream(load_line(10, 0), load_line(20, 1)) and another_stream(load_line(10, 0), load_line(20, None))
    assert another_stream(load_line(10, 0), load_line(9, 0)) and another_stream(load_line(10, 0), {"draw": 0, "seconds": "x"})
    assert tells_load(load_line(1, 0)) and not any(map(tells_load, ({}, {"stages": 3}, {"stages": {"labeling": None}})))


# --------------------------------------------------------------------------------------------------------- the screen
EVIL = "[bold red]x[/] \x1b[31m\r\n[link=file:///etc]y" + "ü字" * 40


def test_no_line_is_wider_than_80_columns_and_nothing_that_is_shown_is_markup(finished):
    found = snapshot(RunDir(finished[0]))
    load = Load("refinement", 1e6, 1e6, 123.4567, 1.0, 1e6, 1e5, 1e4, 3, 512, 360000.0)
    works = (Work(EVIL, 123456, 1e6, note=EVIL), Work("labels of draw 4", 999_999, 1e6), *found.works)
    for kind in ("running", "finished"):
        wide = replace(
            found,
            name=EVIL,
            kind=kind,
            phase=EVIL,
            elapsed=1e6,
            planned=10**6,
            works=works,
            loads=(load,) * 4,
            store_gib=123.4,
            silent=1e5,
            quarantined=("hdig-star-00007",) * 3,
            funnel={None: {"": 10**6}, 0: {"": 5, EVIL: 7, "fault: labeling: [red]Error": 3}},
        )
        text = re.sub(r"\x1b\[[012]?m", "", shown(picture(wide)))
        assert "[bold red]x[/]" in text and "fault: labeling: [red]Error" in " ".join(text.split())
        assert "\x1b" not in text and "\r" not in text
        assert ("1000000/1000000" in text) == (kind == "running")  # the stages of the stream
        assert max(map(cell_len, text.splitlines())) <= 80
        assert "[bold red]x[/]" in line(wide).plain and "\x1b" not in line(wide).plain


def test_a_million_samples_are_shown_whole_in_80_columns(finished):
    """Rich cuts what is too wide, so that a line is never too long; here nothing may be cut."""
    load = Load("refinement", 1e6, 1e6, 123.4567, 1.0, 1e6, 1e5, 1e4, 3, 512, 360000.0)
    works = (Work("labels of draw 4", 999_999, 1e6), Work("training", 30_000, 30_000, note="draw 4, loss 0.1234"))
    wide = replace(snapshot(RunDir(finished[0])), kind="running", planned=10**6, works=works, loads=(load,) * 4)
    text = shown(picture(wide))
    assert "\u2026" not in text
    for cell in ("refinement", "1000000/1000000", "123.5", "100%", "512", "labels of draw 4", "999999/1000000", "loss 0.1234"):
        assert cell in text, cell
    assert "\u2026" in shown(picture(wide), 50)


def test_the_quarantined_are_counted_by_kind_and_a_few_are_named(copied):
    run, _ = copied
    (run.root / "quarantined").mkdir()
    for number in range(5):
        (run.root / "quarantined" / f"hdig-star-{number:05d}.json").write_text("{}")
    line_ = {
        "kind": "pulse",
        "stage": "stream",
        "draw": 0,
        "done": 9,
        "total": 24,
        "time": time.time(),
        "reasons": {"": 4, "fault: labeling: ValueError": 4, "fault: synthesis: Black": 1},
    }
    found = _after(run, (json.dumps(line_) + "\n").encode())
    assert found.faults == 5 and found.quarantined == tuple(f"hdig-star-{n:05d}" for n in range(3))
    text = shown(picture(found), 200)
    assert "draw 0: 4 of 9 accepted; 4 fault: labeling: ValueError, 1 fault: synthesis: Black (notes in quarantined/)" in text
    many = line_ | {"reasons": {"fault: x": states.LISTED + 1}}
    assert _after(run, (json.dumps(many) + "\n").encode()).quarantined == ()


def test_the_headline_is_in_the_terms_of_the_protocol(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    results["protocol"] |= {"base_mIoU": "with the background", "mean": "over all classes (total)"}
    results["rows"]["syn4seg"]["novel"]["mean"] = None
    text = headline(results)[-1]
    assert text.startswith("+ SABR (Syn4Seg): base + bg ") and "novel -, total " in text


# ---------------------------------------------------------------------------------------------------------- the lines
def test_a_pulse_says_the_first_the_last_and_now_and_then_something_between(monkeypatch):
    clock, said = [100.0], []
    monkeypatch.setattr("syn4seg.store.pulse.time.monotonic", lambda: clock[0])
    pulse = Pulse(lambda **values: said.append(values), stage="training", draw=3)
    for done in range(1, 41):
        clock[0] += 1.0
        pulse(done, 40, loss=0.5)
    assert [found["done"] for found in said] == [1, 11, 21, 31, 40]
    assert said[-1] == {"kind": "pulse", "stage": "training", "draw": 3, "done": 40, "total": 40, "loss": 0.5}


def test_a_pulse_that_cannot_be_written_ends_nothing():
    def full(**values):
        raise StoreError("no room")

    Pulse(full)(1, 1)


def test_a_stream_counts_each_sample_that_ended_once_and_says_all_that_have(fresh, small, monkeypatch):
    run, names = fresh
    ids = read_planned_samples(run)["sample_id"].to_pylist()
    run.draw(0).write(
        [
            StoredSample(
                {"sample_id": s, "class": "ball", "class_id": 9, "reason": f"no {s}", "prompt": "", "noise_seed": 1, "batch": 0}, {}
            )
            for s in ids[:8]
        ]
    )
    ended = [["", "small"], ["fault: labeling: Bad: row 3"], *[["small", ""]] * 6]
    batches = [{"reason": reasons, "synthesis_audit": ["{}"] * len(reasons)} for reasons in ended]
    monkeypatch.setattr(graph, "_run", lambda *_: iter(batches))
    kind, asked, told = graph._kind, [], []
    monkeypatch.setattr(graph, "_kind", lambda reason: asked.append(reason) or kind(reason))
    config = load(None, [*small, "placement.max_quarantined=0.9"])
    found = graph.stream(config, run, names, 0, lambda done, _, reasons: told.append((done, Counter(reasons))))
    mine = Counter(reason for reasons in ended for reason in reasons)
    assert found == mine and len(asked) == 8 + mine.total()
    before = Counter(f"no {s}" for s in ids[:8])
    for batch, (done, reasons) in enumerate(told):
        so_far = before + Counter(reason for reasons in ended[:batch] for reason in reasons)
        assert (done, reasons) == (so_far.total(), so_far)
    pulses = [line for line in map(json.loads, run.metrics.read_text().splitlines()) if line.get("kind") == "pulse"]
    assert pulses[0]["reasons"] == before


def test_every_line_has_its_time(tmp_path):
    run, before = RunDir(tmp_path), time.time()
    run.log(stage="x", values={"b": float("nan")})
    found = json.loads(run.metrics.read_text())
    assert before - 1e-3 <= found.pop("time") <= time.time() + 1e-3
    assert found == {"stage": "x", "values": {"b": None}}
