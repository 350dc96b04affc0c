"""The gallery: a fair selection within a budget, and the facts about each sample."""

from __future__ import annotations

from syn4seg.report.gallery import build_gallery, changed_share, fair_order
from syn4seg.report.reading import read_records
from syn4seg.report.sheets import class_colors
from tests.shared_reports import data_of, page_of, spoil


def test_a_sample_counts_all_regions_and_lists_a_few(run):
    regions = [{"class": 3, "area": 100 - i, "similarity": None, "why": "other_novel"} for i in range(12)]
    audit = {
        "lambda_keep": 0.5,
        "pixels": {"free": 0.4},
        "regions": [*regions, {"class": 13, "area": 2, "similarity": 0.7, "why": ""}],
    }
    spoil(run, audit=audit, class_id=13)
    (item,) = [i for i in data_of(page_of(run))["items"] if i.get("judged") == 13]
    assert item["own"] == 1 and item["freed"] == {"other_novel": 12} and item["s"] == 0.7
    assert len(item["regions"]) == 6 and item["more"] == 7


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
