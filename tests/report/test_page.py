"""The page of a run: whole, half, damaged or hostile, every sample is on it, and nothing of it is markup."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.report.html import escape_invisible
from syn4seg.report.page import write_report
from syn4seg.report.reading import read_records
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.stages.plan import read_planned_samples
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import write_sealed
from syn4seg.terminal import TITLES
from tests.shared_reports import data_of, page_of, spoil

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u202e\x00\x1b[31m {{ 7*7 }} <b>bold"


class Elements(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.events = Counter(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.events += [name for name, _ in attrs if name.startswith("on")]


def test_the_page_holds_the_results_table_and_every_sample(run):
    html, results = page_of(run), json.loads(run.results.read_text())
    for row in results["rows"].values():
        assert f"{100 * row['novel']['mean']:.1f}" in html
    titles = [TITLES[row] for row in TITLES if row in results["rows"]]
    places = [html.index(f'<th scope="row">{title}') for title in titles]
    assert places == sorted(places) and len(titles) > 3
    ids = {item["id"] for item in data_of(html)["items"]}
    assert ids == {row["sample_id"] for row in read_records(run, 0).to_pylist() if not row["reason"].startswith("fault")}
    assert "not finished" not in html and "Damaged" not in html


def test_the_same_run_gives_the_same_page(run):
    assert page_of(run) == page_of(run)


def test_a_run_whose_first_draw_is_another_is_reported_and_finished(run):
    text = run.config.read_text()
    write_sealed(
        run.config, re.sub(r"(?m)^(\s*first_draw: ).*$", r"\g<1>3", re.sub(r"(?m)^(\s*draws: ).*$", r"\g<1>1", text)).encode()
    )
    (run.root / "draws/0").rename(run.root / "draws/3")
    again = RunDir(run.root)
    target, damage = write_report(again, None, None, lambda *_: None)
    assert len(data_of(target.read_text())["items"]) == len(read_records(again, 3)) and not damage
    assert "not finished" not in target.read_text()
    with pytest.raises(UserError, match="has draws 3 to 3"):
        write_report(again, 0, None, lambda *_: None)


def test_a_finished_run_with_a_sample_that_could_not_be_made_is_finished(run):
    row = next(r for r in read_records(run, 0).to_pylist() if not r["reason"])
    run.image(row["class"], row["sample_id"]).unlink()
    note = run.quarantined(row["sample_id"])
    note.parent.mkdir(exist_ok=True)
    note.write_text(json.dumps({"reason": "fault: <b>memory</b>"}))
    for draw in (0, 1):
        path = run.draw(draw).record(row["class"], row["sample_id"])
        fault = {k: v for k, v in json.loads(path.read_text()).items() if k not in (*LABEL_COLUMNS, "image")}
        path.write_text(json.dumps(fault | {"reason": "fault: memory", "audit": {}}))
        run.draw(draw).manifest.unlink()
    html = page_of(run)
    assert "not finished" not in html and "&lt;b&gt;memory" in html
    note.write_text("no note")
    _, damage = write_report(run, 0, None, lambda *_: None)
    assert [str(note) in line for line in damage] == [True]


def test_hostile_texts_stay_texts(run):
    clean = Elements(page_of(run))
    row = spoil(run, prompt=HOSTILE)
    table = pq.read_table(run.prompts)
    prompts = [HOSTILE if i == 0 else p for i, p in enumerate(table["prompt"].to_pylist())]
    pq.write_table(table.set_column(table.column_names.index("prompt"), "prompt", pa.array(prompts)), run.prompts)
    html = page_of(run)
    elements = Elements(html)
    assert elements.events == [] and elements.tags["img"] == clean.tags["img"]
    assert elements.tags["script"] == clean.tags["script"] and elements.tags["b"] == clean.tags["b"]
    assert not set(html) & {"\x00", "\x1b", "\u202e", "\u061c"} and "{{ 7*7 }}" in html
    item = next(i for i in data_of(html)["items"] if i["id"] == row["sample_id"])
    assert item["prompt"] == escape_invisible(HOSTILE) and "\\u202e" in item["prompt"]


def test_a_run_that_has_only_begun_says_how_far_it_is(tmp_path, small):
    run = RunDir(tmp_path / "run")
    run.open(load(None, small))
    html = page_of(run)
    assert "not finished" in html and "images 0 of ?" in html and "No results yet" in html and "No sample has" in html


def test_a_run_with_a_plan_and_no_image_says_how_far_it_is(fresh):
    run, _ = fresh
    html = page_of(run)
    assert f"images 0 of {len(read_planned_samples(run))}" in html and "Prompt bank" in html


def test_half_a_run_shows_that_half(run):
    shutil.rmtree(run.root / "draws/1")
    for name in ("results.json", "draws/0/manifest.parquet"):
        (run.root / name).unlink()
    records = sorted((run.root / "draws/0/records").rglob("*.json"))
    for path in records[::2]:
        path.unlink()
    html = page_of(run)
    remaining = len(records) - len(records[::2])
    assert f"labels of draw 0 {remaining} of {len(records)}" in html and f"labels of draw 1 0 of {len(records)}" in html
    assert len(data_of(html)["items"]) == remaining


def test_damaged_files_are_named_and_cost_their_sample_only(run):
    rows = [r for r in read_records(run, 0).to_pylist() if not r["reason"]]
    broken, missing = (run.draw(0).label("label", r["class"], r["sample_id"]) for r in rows[:2])
    broken.write_bytes(b"no picture")
    missing.unlink()
    target, damage = write_report(run, 0, None, lambda *_: None)
    html = target.read_text()
    assert len(damage) == 2 and all(any(str(path) in line for line in damage) for path in (broken, missing))
    assert "Damaged" in html and broken.name in html
    assert len(data_of(html)["items"]) == len(read_records(run, 0))


def test_nothing_accepted_and_one_image_are_pages_too(run):
    paths = sorted((run.root / "draws/0/records").rglob("*.json"))
    for path in paths:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"reason": "target_too_small"}))
    run.draw(0).manifest.unlink()
    assert [item["reason"] for item in data_of(page_of(run))["items"]] == ["target_too_small"] * len(paths) and paths
    for path in paths[1:]:
        path.unlink()
    assert len(data_of(page_of(run))["items"]) == 1
