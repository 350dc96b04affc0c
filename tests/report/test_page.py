"""The report and the comparison: every figure against a slow count, bad input shown and escaped, sizes bounded."""

from __future__ import annotations

import base64
import io
import json
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.report import charts, numbers
from syn4seg.report.compare import write_comparison
from syn4seg.report.gallery import build_gallery, changed_share, fair_order
from syn4seg.report.html import escape_invisible
from syn4seg.report.page import write_report
from syn4seg.report.reading import read_records
from syn4seg.report.sheets import ROW, class_colors, encode_labels, provenance, shrink, tile
from syn4seg.schema import LABEL_COLUMNS, UNLABELED
from syn4seg.stages.plan import read_planned_samples
from syn4seg.store.rundir import RunDir
from syn4seg.terminal import TITLES

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u202e\x00\x1b[31m {{ 7*7 }} <b>bold"


def written(run: RunDir, draw: int = 0) -> str:
    target, _ = write_report(run, draw, None, lambda *_: None)
    return target.read_text("utf-8")


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return RunDir(tmp_path / "run")


def data_of(html: str) -> dict:
    return json.loads(re.search(r'id="gallery-data">(.*?)</script>', html, re.S)[1])


class Elements(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.events = Counter(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.events += [name for name, _ in attrs if name.startswith("on")]


# ----------------------------------------------------------------------------------------------------- figures
def test_the_page_holds_the_results_table_and_every_sample(run):
    html, results = written(run), json.loads(run.results.read_text())
    for row in results["rows"].values():
        assert f"{100 * row['novel']['mean']:.1f}" in html
    titles = [TITLES[row] for row in TITLES if row in results["rows"]]
    places = [html.index(f'<th scope="row">{title}') for title in titles]
    assert places == sorted(places) and len(titles) > 3
    ids = {item["id"] for item in data_of(html)["items"]}
    assert ids == {row["sample_id"] for row in read_records(run, 0).to_pylist() if not row["reason"].startswith("fault")}
    assert "not finished" not in html and "Damaged" not in html


def test_the_same_run_gives_the_same_page(run):
    assert written(run) == written(run)


def test_the_funnel_counts_what_the_records_say(run):
    rows = [json.loads(p.read_text()) for p in (run.root / "draws/0/records").rglob("*.json")]
    found = numbers.summarize_labeling(read_records(run, 0))
    assert found.samples == len(rows)
    assert found.regions == Counter(r["why"] for row in rows for r in row["audit"]["regions"])
    for key in ("accepted", "refused"):
        assert found.masks[key] == sum(row["audit"].get("sam", {}).get(key, 0) for row in rows)
    for key in ("free", "relabeled", "unlabeled", "target"):
        assert found.shares[key] == pytest.approx(np.mean([row["audit"]["pixels"][key] for row in rows]))
    assert found.shares["moved"] == pytest.approx(np.mean([row["audit"].get("sam", {}).get("changed", 0) for row in rows]))
    steps = {name: (count, lost) for name, count, lost in numbers.count_funnel(run, read_records(run, 0))}
    reasons = Counter(row["reason"] for row in rows)
    assert steps["samples accepted"] == (reasons.pop(""), dict(reasons))


def test_similarities_are_those_of_the_targets_regions(run):
    for name, (values, kept, least) in numbers.summarize_labeling(read_records(run, 0)).similarity.items():
        slow = []
        for row in read_records(run, 0).to_pylist():
            audit = json.loads(row["audit"])
            for r in audit["regions"]:
                if row["class"] == name and r["class"] == row["class_id"] and r["similarity"] is not None:
                    slow.append((r["similarity"], r["why"] == "", audit["lambda_keep"]))
        assert [(v, k, least) for v, k in zip(values, kept, strict=True)] == slow


def test_the_story_counts_all_regions_and_lists_a_few(run):
    regions = [{"class": 3, "area": 100 - i, "similarity": None, "why": "other_novel"} for i in range(12)]
    audit = {
        "lambda_keep": 0.5,
        "pixels": {"free": 0.4},
        "regions": [*regions, {"class": 13, "area": 2, "similarity": 0.7, "why": ""}],
    }
    spoiled(run, audit=audit, class_id=13)
    (item,) = [i for i in data_of(written(run))["items"] if i.get("judged") == 13]
    assert item["own"] == 1 and item["freed"] == {"other_novel": 12} and item["s"] == 0.7
    assert len(item["regions"]) == 6 and item["more"] == 7


def test_a_run_whose_first_draw_is_another_is_reported_and_finished(run):
    text = run.config.read_text()
    run.config.write_text(re.sub(r"(?m)^(\s*first_draw: ).*$", r"\g<1>3", re.sub(r"(?m)^(\s*draws: ).*$", r"\g<1>1", text)))
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
    html = written(run)
    assert "not finished" not in html and "&lt;b&gt;memory" in html
    note.write_text("no note")
    _, damage = write_report(run, 0, None, lambda *_: None)
    assert [str(note) in line for line in damage] == [True]


def test_label_quality_of_the_truth_itself_is_perfect_and_of_nothing_is_zero(run):
    from syn4seg.models.renderer import Renderer
    from syn4seg.stages.setup import load_dataset

    table = load_dataset(load(run.config))[1].to_index
    rows = [r for r in read_records(run, 0).to_pylist() if not r["reason"]][:3]
    for r in rows:
        truth = table[Renderer(64).truth(r["prompt"], r["noise_seed"])].astype(np.uint8)
        Image.fromarray(truth).save(run.draw(0).label("label", r["class"], r["sample_id"]))
        Image.fromarray(np.zeros_like(truth)).save(run.draw(0).label("draft", r["class"], r["sample_id"]))
    chosen = [r["sample_id"] for r in rows]
    records, truth = read_records(run, 0), numbers.truth_source(load(run.config))
    quality = numbers.measure_label_quality(run, 0, records.filter(pc.is_in(records["sample_id"], pa.array(chosen))), truth)
    assert quality["label"]["target_iou"] == quality["label"]["boundary_iou_2px"] == quality["label"]["labelled_share"] == 1
    run.draw(0).manifest.unlink()
    items = {item["id"]: item for item in data_of(written(run))["items"]}
    assert all(items[sample]["iou"] == 1 for sample in chosen)
    assert quality["draft"]["target_iou"] == quality["draft"]["target_recall"] == 0


def test_curves_go_on_where_a_run_was_begun_again():
    points = ((1, 3.0), (10, 2.0), (20, 1.5), (10, 1.9), (30, 1.0), (40, float("nan")))
    lines = [{"stage": "novel", "draw": 0, "kind": "pulse", "done": done, "loss": loss} for done, loss in points]
    steps, values = numbers.loss_curves([*lines, {"kind": "load", "seconds": 1, "stages": {}}])["novel, draw 0"]
    assert steps.tolist() == [1, 10, 30] and values.tolist() == [3.0, 1.9, 1.0]
    stage = {"labeling": {"rows_per_second": 2.0, "busy_share": 0.5}}
    moments = ((0, 10), (0, 20), (0, 5), (0, 15), (1, 30))
    found = numbers.load_curves(
        [{"kind": "load", "draw": d, "seconds": s, "stages": stage} for d, s in moments] + [{"kind": "load"}]
    )
    assert found["labeling"]["seconds"].tolist() == [10, 20, 20, 25, 35, 35, 65]
    assert np.isnan(found["labeling"]["busy_share"]).tolist() == [False, False, True, False, False, True, False]


# ---------------------------------------------------------------------------------------------------- pictures
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_who_decided_a_pixel_equals_a_slow_rule(seed):
    rng = np.random.default_rng(seed)
    labels = {stage: rng.choice(np.array([0, 1, 5, 255], np.uint8), (6, 7)) for stage in LABEL_COLUMNS}
    found = provenance(labels)
    for y in range(6):
        for x in range(7):
            draft, kept, relabeled, label = (int(labels[s][y, x]) for s in LABEL_COLUMNS)
            if label != relabeled:
                wanted = 4
            elif relabeled != kept:
                wanted = 3
            elif kept != draft and label == UNLABELED:
                wanted = 2
            else:
                wanted = 0 if draft == 0 else 1
            assert found[y, x] == wanted


def test_a_sheet_keeps_every_label_in_its_cell():
    rng = np.random.default_rng(0)
    cells = [rng.choice(np.array([0, 3, 20, 255], np.uint8), (rng.integers(3, 9), rng.integers(3, 9))) for _ in range(23)]
    cells[4] = None
    url = encode_labels(tile(cells, 9), class_colors(21))
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    codes = np.array(picture)
    assert codes.shape == (3 * 9, ROW * 9) and picture.info["transparency"] == 0
    for i, cell in enumerate(cells):
        y, x = i // ROW * 9, i % ROW * 9
        if cell is not None:
            assert (codes[y : y + cell.shape[0], x : x + cell.shape[1]] == cell).all()
    assert np.array(picture.convert("RGB"))[codes == 255].min() == 255


def test_thumbnails_never_invent_a_class_and_never_grow():
    label = np.random.default_rng(1).choice(np.array([0, 7, 255], np.uint8), (300, 200))
    small = shrink(label, 48)
    assert small.shape == (48, 32) and set(np.unique(small)) <= {0, 7, 255}
    assert shrink(label, 999) is label


@pytest.mark.parametrize("count", [2, 21, 81, 201])
def test_classes_have_colours_of_their_own(count):
    assert len(set(class_colors(count))) == count


def test_a_small_budget_shows_a_fair_beginning(run):
    records = read_records(run, 0)
    whole = build_gallery(run, 0, records, class_colors(17), lambda *_: None)
    assert len(whole.items) == whole.total == len(records)
    few = build_gallery(run, 0, records, class_colors(17), lambda *_: None, budget=1000)
    assert few.items == [] and few.total == len(records)
    order = [(r["class"], bool(r["reason"])) for r in records.take(fair_order(records)).to_pylist()]
    groups = len(set(order))
    assert len(set(order[:groups])) == groups  # each class and verdict once before any comes twice
    assert sorted(fair_order(records)) == list(range(len(records)))


def test_changed_share_is_a_share():
    assert changed_share({}) == 0
    assert changed_share({"pixels": {"free": 0.25, "relabeled": 0.2}, "sam": {"changed": 0.5}}) == 0.75
    assert changed_share({"pixels": {"free": 0.75, "relabeled": 0.7}, "sam": {"changed": 0.5}}) == 1


# --------------------------------------------------------------------------------------------------- bad input
def spoiled(run: RunDir, **changes) -> dict:
    """Changes the record of the first accepted sample of draw 0, and removes the manifest, so that records count."""
    row = next(r for r in read_records(run, 0).to_pylist() if not r["reason"])
    path = run.draw(0).record(row["class"], row["sample_id"])
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    run.draw(0).manifest.unlink()
    return row


def test_hostile_words_stay_words(run):
    clean = Elements(written(run))
    row = spoiled(run, prompt=HOSTILE)
    table = pq.read_table(run.prompts)
    prompts = [HOSTILE if i == 0 else p for i, p in enumerate(table["prompt"].to_pylist())]
    pq.write_table(table.set_column(table.column_names.index("prompt"), "prompt", pa.array(prompts)), run.prompts)
    html = written(run)
    found = Elements(html)
    assert found.events == [] and found.tags["img"] == 0
    assert found.tags["script"] == clean.tags["script"] and found.tags["b"] == clean.tags["b"]
    assert not set(html) & {"\x00", "\x1b", "\u202e", "\u061c"} and "{{ 7*7 }}" in html
    item = next(i for i in data_of(html)["items"] if i["id"] == row["sample_id"])
    assert item["prompt"] == escape_invisible(HOSTILE) and "\\u202e" in item["prompt"]


@given(st.text())
def test_visible_words_have_no_control_characters(text):
    assert not re.search("[\x00-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]", escape_invisible(text))
    assert escape_invisible(escape_invisible(text)) == escape_invisible(text)


def test_a_run_that_has_only_begun_says_how_far_it_is(tmp_path, small):
    run = RunDir(tmp_path / "run")
    run.open(load(None, small))
    html = written(run)
    assert "not finished" in html and "images 0 of ?" in html and "No results yet" in html and "No sample has" in html


def test_a_run_with_a_plan_and_no_image_says_how_far_it_is(fresh):
    run, _ = fresh
    html = written(run)
    assert f"images 0 of {len(read_planned_samples(run))}" in html and "Prompt bank" in html


def test_half_a_run_shows_that_half(run):
    shutil.rmtree(run.root / "draws/1")
    for name in ("results.json", "draws/0/manifest.parquet"):
        (run.root / name).unlink()
    records = sorted((run.root / "draws/0/records").rglob("*.json"))
    for path in records[::2]:
        path.unlink()
    html = written(run)
    left = len(records) - len(records[::2])
    assert f"labels of draw 0 {left} of {len(records)}" in html and f"labels of draw 1 0 of {len(records)}" in html
    assert len(data_of(html)["items"]) == left


def test_damaged_files_are_named_and_cost_their_sample_only(run):
    rows = [r for r in read_records(run, 0).to_pylist() if not r["reason"]]
    broken, gone = (run.draw(0).label("label", r["class"], r["sample_id"]) for r in rows[:2])
    broken.write_bytes(b"no picture")
    gone.unlink()
    target, damage = write_report(run, 0, None, lambda *_: None)
    html = target.read_text()
    assert len(damage) == 2 and all(any(str(path) in line for line in damage) for path in (broken, gone))
    assert "Damaged" in html and broken.name in html
    assert len(data_of(html)["items"]) == len(read_records(run, 0))


def test_nothing_accepted_and_one_image_are_pages_too(run):
    for path in (run.root / "draws/0/records").rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"reason": "target_too_small"}))
    run.draw(0).manifest.unlink()
    assert all(item["reason"] for item in data_of(written(run))["items"])
    for path in sorted((run.root / "draws/0/records").rglob("*.json"))[1:]:
        path.unlink()
    assert len(data_of(written(run))["items"]) == 1


def test_two_hundred_classes_have_charts():
    names = [f"class {i}" for i in range(200)]
    spread = {"mean": 0.5, "std": 0.1, "n": 2}
    rows = {row: dict.fromkeys(names, spread) | {"class 7": {"mean": None, "std": None, "n": 0}} for row in ("a", "b")}
    drawn = charts.per_class(rows, names, {"a": "A", "b": "B"})
    assert all(f">{name}<" in drawn for name in names)
    rng = np.random.default_rng(0)
    many = {name: (rng.random(5), rng.random(5) > 0.5, 0.5) for name in names}
    assert "all classes" in charts.similarity(many)


def command(*words, **options):
    line = [sys.executable, "-m", "syn4seg.cli", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, **options)


def test_what_cannot_be_written_or_read_is_one_message(run, tmp_path):
    (tmp_path / "file").write_text("")
    shutil.rmtree(run.root / "draws/1")
    for words in (
        ("report", tmp_path),
        ("report", run.root, "--to", tmp_path / "file" / "x.html"),
        ("report", run.root, "--draw", "9"),
        ("compare", run.root, "--to", tmp_path / "c.html"),
        ("compare", run.root, run.root, "--draw", "9", "--to", tmp_path / "c.html"),
    ):
        done = command(*words)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr, words


def test_a_full_disk_leaves_the_old_page(run):
    (run.root / "report.html").write_text("old")
    full = command("report", run.root, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
    assert full.returncode == 2 and "Traceback" not in full.stderr
    assert (run.root / "report.html").read_text() == "old"


def test_runs_of_other_classes_are_not_compared(run, tmp_path, small):
    other = RunDir(tmp_path / "other")
    other.open(load(None, [*small, "data.fold=1"]))
    with pytest.raises(UserError, match="its classes are not those"):
        write_comparison([run, other], 0, str(tmp_path / "c.html"), lambda *_: None)


def test_a_comparison_tells_settings_scores_and_labels_that_differ(run, tmp_path, small):
    other = RunDir(tmp_path / "other")
    shutil.copytree(run.root, other.root)
    text = other.config.read_text()
    other.config.write_text(re.sub(r"(?m)^(\s*beta: ).*$", r"\g<1>0.25", text))
    results = json.loads(other.results.read_text())
    last = list(results["rows"])[-1]
    results["rows"][last]["novel"]["mean"] += 0.1
    other.results.write_text(json.dumps(results))
    target, lines, damage = write_comparison([run, RunDir(other.root)], 0, str(tmp_path / "c.html"), lambda *_: None)
    html = Path(target).read_text()
    assert "labeling.beta" in html and "+10.0" in html and not damage
    assert "0 another label" in " ".join(lines) and "No sample of the first two runs differs" in html
