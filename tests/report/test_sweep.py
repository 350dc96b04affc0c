"""The page of a sweep: the best trials first, texts escaped, and curves against a slow mean."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.report.sweep import BINS, TOP, bin_means, write_sweep_report

HOSTILE = "<script>alert(1)</script>\x1b"


def trial(number: int, score: float | None, state: str = "complete") -> dict:
    draws = {} if score is None else {"val.novel": {"0": score, "1": score}}
    params = {"labeling.beta": number / 100, "prompts.kind": HOSTILE if number % 2 else "b"}
    return {"number": number, "state": state, "params": params, "draws": draws, "reports": [], "seconds": 1.0, "error": HOSTILE}


@pytest.mark.parametrize("objective", ["val.novel", "test.val.novel"])
def test_the_page_of_a_sweep_has_the_best_trials_first_and_no_markup_of_theirs(tmp_path, objective):
    rows = [trial(number, number / 100) for number in range(TOP)] + [trial(TOP, 0.99, "pruned"), trial(TOP + 1, None, "failed")]
    values = {"val.novel": {"mean": 0.24, "std": 0.0, "n": 2}}
    best = {"number": TOP - 1, "values": values, "params": rows[TOP - 1]["params"]}
    counts = {"trials": len(rows), "complete": TOP, "pruned": 1, "failed": 1, "on": "validation list"}
    summary = counts | {"best": best, "front": [best], "importance": {"val.novel": {"labeling.beta": 1.0}}}
    validation = {"novel_images": 3, "base_images": 4}
    study = {"objective": [objective], "space": {"labeling.beta": 1, "prompts.kind": 1}, "title": "", "validation": validation}
    write_sweep_report(tmp_path / "report.html", study, summary, rows, [HOSTILE])
    html = (tmp_path / "report.html").read_text()
    body = html[html.index("<h2>Trials</h2>") :]
    numbers = [int(part.split("<")[0]) for part in body.split('<th scope="row">')[1:]]
    assert numbers == list(range(TOP - 1, -1, -1)) and "2 more trials" in body
    assert "<script" not in html and "\x1b" not in html and "&lt;script&gt;" in html
    assert ("TEST LIST" in html) == objective.startswith("test.")
    for title in ("History", "Importance for val.novel", "val.novel over labeling.beta", "Parallel coordinates"):
        assert f"<figcaption>{title}</figcaption>" in html
    assert "Pareto" not in html


def test_one_trial_has_a_page_without_figures(tmp_path):
    summary = {"trials": 1, "complete": 1, "pruned": 0, "failed": 0, "on": "validation list", "front": [], "importance": {}}
    study = {"objective": ["val.novel"], "space": {"labeling.beta": 1}, "title": "x", "validation": {}}
    write_sweep_report(tmp_path / "report.html", study, summary, [trial(0, 0.5)], [])
    html = (tmp_path / "report.html").read_text()
    assert "Sweep: x" in html and "50.0" in html and "<figure" not in html


def test_means_are_those_at_each_place_or_of_equally_filled_bins():
    assert bin_means(np.array([2.0, 1.0, 2.0, 2.0]), np.array([1.0, 5.0, 2.0, 3.0])) == [(1.0, 5.0, 0.0), (2.0, 2.0, 1.0)]
    rng = np.random.default_rng(0)
    x, values = rng.random(41), rng.random(41)
    bins, order = bin_means(x, values), np.argsort(x)
    assert len(bins) == BINS
    sizes = [6, 5, 5, 5, 5, 5, 5, 5]
    for (centre, mean, std), size in zip(bins, sizes, strict=True):
        part, order = order[:size], order[size:]
        assert (centre, mean, std) == pytest.approx((x[part].mean(), values[part].mean(), values[part].std(ddof=1)))
