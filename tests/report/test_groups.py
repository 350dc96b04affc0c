"""Groups of samples against slow means, the worst first; many prompts cost little; links lead to samples of the page."""

from __future__ import annotations

import json
import re
import resource
import time
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest

from syn4seg.report.groups import LINKS, PROMPTS, background_of, by_key, figures_of
from syn4seg.report.reading import read_records
from syn4seg.schema import RECORD
from tests.shared_reports import data_of, page_of


def record(number: int, **changes) -> dict:
    regions = [{"class": 3, "similarity": 0.5 + number / 100, "why": ""}, {"class": 1, "similarity": 0.9, "why": "area"}]
    audit = {
        "pixels": {"free": 0.2, "relabeled": 0.1, "unlabeled": 0.1, "target": 0.3},
        "sam": {"changed": 0.05},
        "regions": regions,
    }
    values = {
        "sample_id": f"hdig-{number}",
        "class": "donut",
        "class_id": 3,
        "prompt": "a donut on grass",
        "noise_seed": 1,
        "batch": 0,
    }
    return values | {"reason": "", "audit": json.dumps(audit)} | changes


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in RECORD.names} for row in rows], RECORD)


@pytest.mark.parametrize(
    ("prompt", "place"),
    [
        ("a big red donut beside a plain green ball on night", "on night"),
        ("a photo of two happy dogs running in front of a brick wall, seen from above, at night", "in front of a brick wall"),
        ("a candid photo of a cat at the edge of a forest, backlit", "at the edge of a forest"),
        ("a donut", ""),
        ("img/0001.jpg", ""),
        ("", ""),
    ],
)
def test_the_background_of_a_prompt_is_its_last_words_of_place(prompt, place):
    assert background_of(prompt) == place


def test_means_and_shares_of_groups_equal_slow_ones(run):
    html, records = page_of(run), read_records(run, 0)
    items = data_of(html)["items"]
    rows = {row["sample_id"]: row | {"audit": json.loads(row["audit"])} for row in records.to_pylist()}
    known = {item["id"]: item for item in items}
    figures = figures_of(records, items)
    assert figures.is_truth_known
    for key in ("class", "reason", "prompt"):
        groups = by_key(figures, key)
        assert sum(group["samples"] for group in groups) == len(rows)
        for group in groups:
            members = [row for row in rows.values() if row[key] == group["name"]]
            assert group["samples"] == len(members) and group["rejected"] == np.mean([bool(row["reason"]) for row in members])
            for share in ("free", "relabeled", "unlabeled"):
                assert group[share] == pytest.approx(np.mean([row["audit"]["pixels"][share] for row in members]), abs=1e-5)
            assert group["ious"][3] == pytest.approx(np.mean([known[row["sample_id"]]["ious"][3] for row in members]), abs=1e-5)
            assert set(group["worst"]) <= {row["sample_id"] for row in members} and len(group["worst"]) <= LINKS
        worth = [np.mean([0 if rows[i]["reason"] else known[i]["iou"] for i in rows if rows[i][key] == g["name"]]) for g in groups]
        assert worth == pytest.approx(sorted(worth), abs=1e-5)


def test_rejected_samples_are_the_worst_and_faults_belong_to_no_group():
    rows = [record(0), record(1, reason="target_too_small", prompt="a donut on sea"), record(2, reason="fault: memory")]
    figures = figures_of(table(rows), [{"id": "hdig-0"}, {"id": "hdig-1"}])
    assert not figures.is_truth_known
    sea, grass = by_key(figures, "background")
    assert (sea["name"], sea["rejected"], sea["reasons"], sea["worst"]) == ("on sea", 1, {"target_too_small": 1}, ["hdig-1"])
    assert (grass["name"], grass["samples"], grass["rejected"]) == ("on grass", 1, 0)
    assert grass["similarity"] == pytest.approx(0.5) and grass["ious"] == [None] * 4
    assert figures.regions == {("donut", ""): 2, ("donut", "area"): 2}


def test_what_is_not_known_is_no_number_and_no_row_is_an_empty_page_of_groups():
    bare = figures_of(table([record(0, audit="{}")]), [])
    (group,) = by_key(bare, "class")
    assert group["similarity"] is None and group["free"] is None and group["worst"] == []
    assert by_key(figures_of(table([]), []), "class") == [] == by_key(figures_of(table([]), []), "background")


def test_twenty_thousand_prompts_cost_little_time_and_a_bounded_page():
    rows, count = [record(i, prompt=f"a donut number {i} on place {i}") for i in range(50)], 20_000
    small = table(rows)
    many = pa.concat_tables([small] * (count // len(rows))).combine_chunks()
    ids = pa.array([f"hdig-{i}" for i in range(count)])
    many = many.set_column(0, "sample_id", ids).set_column(3, "prompt", pa.array([f"a donut on place {i}" for i in range(count)]))
    before, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = figures_of(many, [])
    assert len(by_key(figures, "prompt", PROMPTS)) == PROMPTS and len(by_key(figures, "background", 10)) == 10
    assert time.process_time() - before < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 150 * 1024  # KiB


def test_links_of_the_tables_lead_to_samples_that_are_in_the_page(run):
    html = page_of(run)
    links = {unquote(link) for link in re.findall(r'href="#sample=([^"]+)"', html)}
    assert links and links <= {item["id"] for item in data_of(html)["items"]}
    assert html.index('id="labels"') < html.index('id="worst-prompts"') < html.index('id="worst-backgrounds"')
