"""The state of a run equals a slow reference at every byte of its metrics.jsonl, in every layout and store."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from syn4seg.stages.rows import rows_of
from syn4seg.store.files import as_path
from syn4seg.store.rundir import RunDir
from syn4seg.watch import state as state_module
from syn4seg.watch.screen import render, render_line
from syn4seg.watch.state import Watcher


def test_a_finished_run_is_what_its_manifests_plan_and_results_say(finished):
    run = RunDir(finished[0])
    state, config, results = Watcher(run).poll(), run.stored(), json.loads((finished[0] / "results.json").read_text())
    planned = sum(not padding for padding in pq.read_table(run.plan)["padding"].to_pylist())
    assert (state.kind, state.planned, state.results) == ("finished", planned, results)
    reasons = {d: Counter(pq.read_table(run.draw(d).manifest)["reason"].to_pylist()) for d in (0, 1)}
    assert state.funnel == reasons
    items = {item.title: (item.done, item.total) for item in state.items}
    steps = 2 * config.novel.steps * (len(rows_of(config)) - 1)  # two draws; the row support_only has no steps
    queries = set().union(*(json.loads(run.draw(d).queries.read_text()) for d in (0, 1)))
    assert items == {
        "prompt banks": (4, 0),
        "labels of draw 0": (planned, planned),
        "labels of draw 1": (planned, planned),
        "training": (steps, steps),
        "evaluation": (len(queries), len(queries)),
    }
    note = next(item.note for item in state.items if item.title == "training")
    assert note.startswith("draw 1, loss ") and float(note.split()[-1]) > 0
    assert state.elapsed and 0 < state.elapsed < 600 and not state.stale


def reference(data: bytes) -> dict:
    """Parse all whole lines anew; return the phase that began last and has not ended, and the last progress of each work item."""
    lines = [json.loads(text) for text in data.split(b"\n")[:-1]]
    begins = [i for i, line in enumerate(lines) if line.get("kind") == "begin"]
    ended = [i for i, line in enumerate(lines) if "seconds" in line and line["stage"] != "stream"]
    items, banks = {}, sum("class_name" in line for line in lines)
    for line in (line for line in lines if line.get("kind") == "pulse"):
        stage = line["stage"]
        items[stage if stage != "stream" else f"labels of draw {line['draw']}"] = line["done"], line["total"]
    return {
        "items": items | ({"prompt banks": (banks, 0)} if banks else {}),
        "phase": lines[begins[-1]]["stage"] if begins and (not ended or ended[-1] < begins[-1]) else "",
        "ended": lines[ended[-1]]["stage"] if ended else "",
        "last": lines[-1]["time"] if lines else None,
    }


def test_every_prefix_of_the_lines_is_what_the_reference_says_read_on_byte_by_byte(copied):
    run, data = copied
    watcher, now, phases, expected = Watcher(run), time.time(), [], reference(b"")
    with run.metrics.open("ab", buffering=0) as f:
        for cut in range(len(data)):
            state, timeline = watcher.poll(now), watcher.timeline
            if data[cut - 1 : cut] == b"\n":
                expected = reference(data[:cut])
                assert replace(Watcher(run).poll(now), results=None) == replace(state, results=None)
            assert {item.title: (item.done, item.total) for item in state.items} == expected["items"]
            assert (timeline.phase, timeline.ended, timeline.last_time) == (expected["phase"], expected["ended"], expected["last"])
            phases += [state.phase] if state.phase not in phases else []
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
    assert watcher.poll(now).kind == "idle"  # everything has ended, and there are no results


def test_damaged_and_foreign_lines_are_ignored(copied, printed):
    run, data = copied
    expected = [(item.title, item.done, item.total) for item in state_after(run, data).items]
    values = [None, True, [], {}, "x", -1, 10**400, 1e308, {"a": {"b": 1}}, {"synthesis": 3}, {"synthesis": {"rows": "many"}}]
    keys = ["kind", "stage", "done", "total", "draw", "reasons", "stages", "seconds", "time", "epoch", "loss", "class_name"]
    kinds = [{"kind": "load", "stage": "stream"}, {"kind": "pulse", "stage": "stream"}, {"stage": "base", "epoch": 1}, {}]
    rng = random.Random(0)
    for _ in range(60):
        lines = [json.dumps(rng.choice(kinds) | {rng.choice(keys): rng.choice(values) for _ in range(4)}) for _ in range(8)]
        state = state_after(run, "\n".join(lines).encode() + b"\n" + b'{"torn": \xff\n[1]\n' + b"[" * 5_000 + b"\n\n")
        printed(render(state)), render_line(state)
    torn = data.replace(b"\n", b'\n{"kind": "pulse", "stage": "stream", "do\n"text"\n')
    assert [(item.title, item.done, item.total) for item in state_after(run, torn).items] == expected


def state_after(run, data: bytes):
    run.metrics.write_bytes(data)
    return Watcher(run).poll()


def test_a_file_that_another_one_has_replaced_is_read_from_its_beginning(copied):
    run, data = copied
    watcher = Watcher(run)
    run.metrics.write_bytes(data)
    watcher.poll()
    half = data[: data.index(b"\n", len(data) // 2) + 1]
    run.metrics.write_bytes(half)
    now = time.time()
    assert watcher.poll(now) == Watcher(run).poll(now)


def test_of_a_long_file_the_tail_is_read(copied, monkeypatch):
    run, data = copied
    run.metrics.write_bytes(b'{"filler": 1}\n' * 1000 + data)
    whole = Watcher(run).poll(0.0)
    monkeypatch.setattr(state_module, "TAIL", len(data) + 5)
    assert Watcher(run).poll(0.0) == whole


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
        state = watcher.poll(0.0)
    assert state.kind == "idle"
    run.results.write_bytes((finished[0] / "results.json").read_bytes())
    assert watcher.poll(0.0) == Watcher(RunDir(finished[0])).poll(0.0)
    if place != "folder":
        as_path("memory://watched").fs.rm("/watched", recursive=True)


def test_the_quarantined_are_counted_by_kind_and_a_few_are_named(copied, printed):
    run, _ = copied
    (run.root / "quarantined").mkdir()
    for number in range(5):
        (run.root / "quarantined" / f"hdig-star-{number:05d}.json").write_text("{}")
    pulse = {
        "kind": "pulse",
        "stage": "stream",
        "draw": 0,
        "done": 9,
        "total": 24,
        "time": time.time(),
        "reasons": {"": 4, "fault: labeling: ValueError": 4, "fault: synthesis: Black": 1},
    }
    state = state_after(run, (json.dumps(pulse) + "\n").encode())
    assert state.faults == 5 and state.quarantined == tuple(f"hdig-star-{n:05d}" for n in range(3))
    text = printed(render(state), 200)
    assert "draw 0: 4 of 9 accepted; 4 fault: labeling: ValueError, 1 fault: synthesis: Black (notes in quarantined/)" in text
    many = pulse | {"reasons": {"fault: x": state_module.LISTED + 1}}
    assert state_after(run, (json.dumps(many) + "\n").encode()).quarantined == ()
