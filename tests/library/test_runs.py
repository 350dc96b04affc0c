"""A run in Python: what is on disk, read when it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import syn4seg
from syn4seg.errors import DamagedError, UserError
from syn4seg.store.rundir import RunDir
from tests.shared_exports import FAULT, REJECTED, made_run

CONTROL = (2, 6)


@pytest.fixture(scope="module", params=["files", "sharded"])
def loaded(request, tmp_path_factory):
    run, _, truth = made_run(tmp_path_factory.mktemp("run"), request.param, control=CONTROL)
    return syn4seg.load_run(run.address), truth


def test_samples_come_with_every_pixel_and_records_as_a_table(loaded):
    run, truth = loaded
    found = {sample.record["sample_id"]: sample for sample in run}
    assert set(found) == {s for s, t in truth.items() if not t.reason and int(s[-5:]) not in CONTROL}
    for name, sample in found.items():
        np.testing.assert_array_equal(sample.image, truth[name].image)
        np.testing.assert_array_equal(run.label(name), truth[name].label)
    assert {s.record["reason"] for s in run.samples(only="rejected")} == {REJECTED}
    assert {int(s.record["sample_id"][-5:]) for s in run.samples(bank="control")} == {*CONTROL}
    table = run.records()
    assert dict(zip(table["sample_id"].to_pylist(), table["reason"].to_pylist(), strict=True)) == {
        name: t.reason for name, t in truth.items()
    }
    assert set(table["bank"].to_pylist()) == {"hdig", "class_name"} and FAULT in table["reason"].to_pylist()
    assert run.to_pandas(only="accepted").shape[0] == run.records(only="accepted").num_rows == 12
    assert run.classes == ("background", "cat", "dog", "toy car", "bird.x") and run.draws == [0]
    assert "not finished" in repr(run) and run.results is None and "<table>" not in run._repr_html_()
    name = next(iter(found))
    np.testing.assert_array_equal(run.show(name).panels["image"], truth[name].image)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda run: run.records(7), r"draw is 7; expected one of \[0\]"),
        (lambda run: run.samples(only="good"), "only is 'good'; expected one of accepted, rejected, all"),
        (lambda run: run.samples(bank="other"), "bank is 'other'; expected one of hdig, control, all"),
        (lambda run: run.sample("hdig-dog"), "sample_id is 'hdig-dog'; expected one of the 14 samples of draw 0, e.g. hdig-"),
        (lambda run: run.label("hdig-toy_car-00003"), "stage is 'label'; hdig-toy_car-00003 has draft, kept, relabeled"),
        (lambda run: run.scores, r"has no results yet; let it go on with syn4seg.run\(..., out="),
        (lambda run: syn4seg.load_run("nowhere"), "not a run"),
    ],
)
def test_a_wrong_question_is_answered_by_what_there_is(loaded, ask, said):
    with pytest.raises(UserError, match=said):
        ask(loaded[0])


def test_a_damaged_sample_says_so_and_the_others_come(tmp_path):
    made, _, _ = made_run(tmp_path)
    made.image("bird.x", "hdig-bird.x-00000").write_bytes(b"")
    run = syn4seg.load_run(tmp_path / "run")
    damaged = [sample for sample in run if sample.damage]
    assert [sample.record["sample_id"] for sample in damaged] == ["hdig-bird.x-00000"] and damaged[0].image is None
    with pytest.raises(DamagedError, match=r"hdig-bird\.x-00000: "):
        run.label("hdig-bird.x-00000")


def test_scores_are_those_of_the_results(finished):
    run = syn4seg.load_run(finished[0])
    results = run.results
    assert results is not None
    for line in run.scores.to_pylist():
        known = results["rows"][line["row"]][line["metric"]]
        assert (line["mean"], line["std"], line["draws"]) == (known["mean"], known["std"], known["n"])
    assert {line["row"] for line in run.scores.to_pylist()} == set(results["rows"])
    assert f"<td>{100 * results['rows']['syn4seg']['novel']['mean']:.1f}</td>" in run._repr_html_()
    assert len(list(run.samples())) == sum(
        not r["reason"] and r["sample_id"].startswith("hdig") for r in RunDir(finished[0]).draw(0).records()
    )


def test_the_guide_reads_a_run_as_it_says(finished):
    guide = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    body = re.findall(r"^```python\n(.*?)^```$", guide, re.M | re.S)[1]
    space: dict = {}
    known = next(syn4seg.load_run(finished[0]).samples()).record["sample_id"]
    exec(compile(body.replace("runs/mine", str(finished[0])).replace("hdig-donut-00007", known), "python.md", "exec"), space)
    assert space["image"].shape[:2] == space["label"].shape == space["draft"].shape and space["name"] in space["run"].classes
    code = f"import sys, syn4seg; [*syn4seg.load_run({str(finished[0])!r})]; print({{'torch', 'ray'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
