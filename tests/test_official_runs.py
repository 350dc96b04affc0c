"""From official files to the result table with one command, on tiny trees in the official layouts and with small models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from syn4seg.models.generators import EMBEDDED_SD3
from tests.official import write_coco, write_pascal

ROOT = Path(__file__).parent.parent
SMALL = (
    f"synthesis.model={EMBEDDED_SD3}",
    "synthesis.size=64",
    "synthesis.steps=1",
    "synthesis.images_per_class=1",
    "prompts.bank_size=1",
    "synthesis.batch=4",
    "segmenter.backbone=embedded",
    "segmenter.weights=",
    "segmenter.size=64",
    "segmenter.channels=16",
    "base.epochs=1",
    "base.batch=4",
    "base.optimizer=adamw",
    "base.lr=0.002",
    "base.head_factor=1",
    "data.min_support_pixels=150",
    "refinement.model=embedded-sam",
    "refinement.band_width=3",
    "refinement.margin=1",
    "novel.steps=2",
    "labeling.min_region=10",
    "placement.encoding.gpus=0",
    "placement.synthesis.gpus=0",
    "placement.labeling.gpus=0",
    "placement.refinement.gpus=0",
    "placement.runner=inline",
)


def syn4seg(*words):
    return subprocess.run(
        [sys.executable, "-m", "syn4seg.cli", *map(str, words)], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.fixture(scope="module")
def pascal(tmp_path_factory):
    """A finished run of configs/pascal5i.yaml: (ROOT, RUN, what it printed)."""
    root = tmp_path_factory.mktemp("pascal")
    write_pascal(root)
    done = syn4seg("run", "configs/pascal5i.yaml", f"data.root={root}", "data.draws=2", *SMALL, "--out", root / "run")
    assert done.returncode == 0, done.stderr
    return root, root / "run", done.stdout


@pytest.mark.slow
def test_pascal5i_goes_from_official_files_to_the_table_and_names_every_deviation(pascal):
    _, run, printed = pascal
    results = json.loads((run / "results.json").read_text())
    assert set(results["rows"]) == {"support_only", "class_name_raw", "hdig_raw", "apf", "apr", "syn4seg"}
    assert set(results["baselines"]) == {"imprinting", "finetuning", "diam", "bcm"}
    assert results["baselines"]["diam"]["transductive"] and not results["baselines"]["bcm"]["transductive"]
    about = results["protocol"]
    assert (about["preset"], about["support_from"], about["evaluation_space"]) == ("diam", "val list", "64 canvas")
    assert "segmenter.size: 417 -> 64" in about["deviations"] and "data.draws: 5 -> 2" in about["deviations"]
    words = " ".join(printed.split())
    for line in about["deviations"]:
        assert f"deviation from diam: {line}" in words
    assert "not the published list (5953)" in words and "DIaM *" in printed


@pytest.mark.slow
def test_support_images_are_queries_of_the_other_draws_only(pascal):
    _, run, _ = pascal
    lists = {}
    for draw in "01":
        support = json.loads((run / "draws" / draw / "support.json").read_text())["support"]
        lists[draw] = (
            {s for ids in support.values() for s in ids},
            set(json.loads((run / "draws" / draw / "queries.json").read_text())),
        )
    for draw, (support, queries) in lists.items():
        assert len(support) == 5 and not support & queries
        assert (lists["1" if draw == "0" else "0"][0] - support) <= queries


@pytest.mark.slow
def test_the_audit_of_the_run_finds_no_leak_and_a_planted_one(pascal):
    _, run, _ = pascal
    done = syn4seg("audit", run)
    assert (
        done.returncode == 0
        and "LEAK" not in done.stdout
        and "no novel mask reached base training" in " ".join(done.stdout.split())
    )
    facts = run / "checkpoints" / "base.json"
    honest = facts.read_text()
    queries = json.loads((run / "draws" / "0" / "queries.json").read_text())
    facts.write_text(json.dumps(json.loads(honest) | {"images": queries[:1]}))
    try:
        done = syn4seg("audit", run)
    finally:
        facts.write_text(honest)
    assert done.returncode == 1 and "LEAK" in done.stdout


@pytest.mark.slow
def test_a_finished_run_is_scored_in_another_way_without_making_anything_again(pascal):
    root, run, _ = pascal
    labels = {p: p.stat().st_mtime_ns for p in run.glob("draws/*/labels/*/*.png")}
    before = json.loads((run / "results.json").read_text())
    other = ("evaluation.space=original", "evaluation.mean=all_classes", "evaluation.baselines=[imprinting]")
    done = syn4seg("evaluate", "configs/pascal5i.yaml", f"data.root={root}", "data.draws=2", *SMALL, *other, "--out", run)
    assert done.returncode == 0, done.stderr
    after = json.loads((run / "results.json").read_text())
    assert after["protocol"]["evaluation_space"] == "original pixels" and "total" in done.stdout
    assert set(after["baselines"]) == {"imprinting"} and after["rows"] != before["rows"]
    assert labels == {p: p.stat().st_mtime_ns for p in run.glob("draws/*/labels/*/*.png")}


@pytest.mark.slow
def test_coco20i_under_pops_protocol_goes_from_official_files_to_the_table(tmp_path):
    write_coco(tmp_path)
    words = (
        f"data.root={tmp_path}",
        "protocol=pop",
        "data.draws=1",
        "evaluation.baselines=[]",
        "synthesis.class_name_bank=false",
        *SMALL,
    )
    done = syn4seg("run", "configs/coco20i.yaml", *words, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["protocol"]["preset"] == "pop" and len(results["protocol"]["novel"]) == 20
    assert results["protocol"]["masks"] == "all_polygons" and "base + bg" in done.stdout and "total" in done.stdout


def test_prepare_names_everything_that_is_missing_at_once_and_leaves_no_traceback(tmp_path):
    done = syn4seg("prepare", "pascal", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for word in ("VOCtrainval_11-May-2012.tar", "2.0 GB", "benchmark.tgz", "1.4 GB"):
        assert word in done.stderr
    assert "expected pascal" in syn4seg("prepare", "voc", tmp_path).stderr
    run = syn4seg("run", "configs/coco20i.yaml", f"data.root={tmp_path}", *SMALL, "--out", tmp_path / "run")
    assert run.returncode == 2 and "train2014.zip" in run.stderr and not (tmp_path / "run").exists()


def test_the_plan_of_the_papers_models_needs_no_data_no_weights_and_no_gpu(tmp_path):
    done = syn4seg("plan", "configs/pascal5i.yaml", "data.root=nowhere", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    table = syn4seg("plan", "configs/pascal5i.yaml", "data.root=nowhere")
    assert table.returncode == 0 and "stated" in table.stdout and max(map(len, table.stdout.splitlines())) <= 80
    assert "4000 images" in table.stdout and plan
    assert syn4seg("plan", "data.fold=9").returncode == 2
