"""The comparison of runs: what differs, and which runs cannot be compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.report.compare import write_comparison
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import write_sealed


def test_runs_of_other_classes_are_not_compared(run, tmp_path, small):
    other = RunDir(tmp_path / "other")
    other.open(load(None, [*small, "data.fold=1"]))
    with pytest.raises(UserError, match="its classes are not those"):
        write_comparison([run, other], 0, str(tmp_path / "c.html"), lambda *_: None)


def test_a_comparison_tells_settings_scores_and_labels_that_differ(run, tmp_path, small):
    other = RunDir(tmp_path / "other")
    shutil.copytree(run.root, other.root)
    text = other.config.read_text()
    write_sealed(other.config, re.sub(r"(?m)^(\s*beta: ).*$", r"\g<1>0.25", text).encode())
    results = json.loads(other.results.read_text())
    last = list(results["rows"])[-1]
    results["rows"][last]["novel"]["mean"] += 0.1
    other.results.write_text(json.dumps(results))
    target, lines, damage = write_comparison([run, RunDir(other.root)], 0, str(tmp_path / "c.html"), lambda *_: None)
    html = Path(target).read_text()
    assert "labeling.beta" in html and "+10.0" in html and not damage
    assert "0 another label" in " ".join(lines) and "No sample of the first two runs differs" in html
