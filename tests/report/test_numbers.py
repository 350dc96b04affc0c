"""The figures of a report against slow counts over the records of a run."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from syn4seg.config.loading import load
from syn4seg.report import numbers
from syn4seg.report.reading import read_records
from tests.shared_reports import data_of, page_of


def test_the_funnel_counts_what_the_records_say(run):
    rows = [json.loads(p.read_text()) for p in (run.root / "draws/0/records").rglob("*.json")]
    summary = numbers.summarize_labeling(read_records(run, 0))
    assert summary.samples == len(rows)
    assert summary.regions == Counter(r["why"] for row in rows for r in row["audit"]["regions"])
    for key in ("accepted", "refused"):
        assert summary.masks[key] == sum(row["audit"].get("sam", {}).get(key, 0) for row in rows)
    for key in ("free", "relabeled", "unlabeled", "target"):
        assert summary.shares[key] == pytest.approx(np.mean([row["audit"]["pixels"][key] for row in rows]))
    assert summary.shares["moved"] == pytest.approx(np.mean([row["audit"].get("sam", {}).get("changed", 0) for row in rows]))
    steps = {name: (count, lost) for name, count, lost in numbers.count_funnel(run, read_records(run, 0))}
    reasons = Counter(row["reason"] for row in rows)
    assert steps["samples accepted"] == (reasons.pop(""), dict(reasons))
    banks = Counter(row["sample_id"].split("-")[0] for row in rows if not row["reason"])
    found = {name.rpartition(" the ")[2]: count for name, (count, _) in steps.items() if name.startswith("of these")}
    assert found == {"HDIG bank": banks["hdig"], "control bank (class names alone)": banks["class_name"]} and all(banks.values())


def test_similarities_are_those_of_the_targets_regions(run):
    slow = {}
    for row in read_records(run, 0).to_pylist():
        audit = json.loads(row["audit"])
        for region in audit["regions"]:
            if region["class"] == row["class_id"] and region["similarity"] is not None:
                facts = (region["similarity"], region["why"] == "", audit["lambda_keep"])
                slow.setdefault(row["class"], []).append(facts)
    summary = numbers.summarize_labeling(read_records(run, 0))
    fast = {
        name: [(value, kept, least) for value, kept in zip(values, flags, strict=True)]
        for name, (values, flags, least) in summary.similarity.items()
    }
    assert fast == slow and slow


def test_label_quality_of_the_truth_itself_is_perfect_and_of_nothing_is_zero(run):
    from syn4seg.models.renderer import Renderer
    from syn4seg.stages.setup import load_dataset

    table = load_dataset(load(run.config))[1].to_index
    rows = [r for r in read_records(run, 0).to_pylist() if not r["reason"]][:3]
    for r in rows:
        truth = table[Renderer(64).truth(r["prompt"], r["noise_seed"])].astype(np.uint8)
        Image.fromarray(truth).save(run.draw(0).label("label", r["class"], r["sample_id"]))
        Image.fromarray(np.zeros_like(truth)).save(run.draw(0).label("draft", r["class"], r["sample_id"]))
    ids = [r["sample_id"] for r in rows]
    records, truth = read_records(run, 0), numbers.truth_source(load(run.config))
    quality = numbers.measure_label_quality(run, 0, records.filter(pc.is_in(records["sample_id"], pa.array(ids))), truth)
    assert quality["label"]["target_iou"] == quality["label"]["boundary_iou_2px"] == quality["label"]["labelled_share"] == 1
    run.draw(0).manifest.unlink()
    items = {item["id"]: item for item in data_of(page_of(run))["items"]}
    assert all(items[sample]["iou"] == 1 for sample in ids)
    assert quality["draft"]["target_iou"] == quality["draft"]["target_recall"] == 0


def test_curves_go_on_where_a_run_was_begun_again():
    points = ((1, 3.0), (10, 2.0), (20, 1.5), (10, 1.9), (30, 1.0), (40, float("nan")))
    lines = [{"stage": "novel", "draw": 0, "kind": "pulse", "done": done, "loss": loss} for done, loss in points]
    steps, values = numbers.loss_curves([*lines, {"kind": "load", "seconds": 1, "stages": {}}])["novel, draw 0"]
    assert steps.tolist() == [1, 10, 30] and values.tolist() == [3.0, 1.9, 1.0]
    stage = {"labeling": {"rows_per_second": 2.0, "busy_share": 0.5}}
    moments = ((0, 10), (0, 20), (0, 5), (0, 15), (1, 30))
    curves = numbers.load_curves(
        [{"kind": "load", "draw": d, "seconds": s, "stages": stage} for d, s in moments] + [{"kind": "load"}]
    )
    assert curves["labeling"]["seconds"].tolist() == [10, 20, 20, 25, 35, 35, 65]
    assert np.isnan(curves["labeling"]["busy_share"]).tolist() == [False, False, True, False, False, True, False]
