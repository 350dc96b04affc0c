"""The five recipes of docs/extending.md run as they are shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from syn4seg.store.rundir import RunDir

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "extending.md").read_text()


def example(name: str, *words: str) -> str:
    """Run an example as a user does, and return what it prints."""
    command = [sys.executable, f"examples/extending_{name}.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_guide_shows_what_the_examples_hold():
    sources = "".join(path.read_text() for path in sorted((ROOT / "examples").glob("extending_*")))
    shown = re.findall(r"```(?:python|yaml)\n(.*?)\n```", GUIDE, re.DOTALL)
    assert len(shown) == 5 and [block for block in shown if block not in sources] == []


def test_the_guide_names_every_table_and_every_example():
    for path in sorted((ROOT / "examples").glob("extending_*")):
        assert path.name in GUIDE or path.with_suffix(".yaml").name in GUIDE, path.name
    tables = re.findall(r"`([A-Z_]+)`, `(syn4seg/[\w/]+\.py)`", GUIDE)
    assert [table for table, _ in tables] == [
        "GENERATORS",
        "DATASETS",
        "BASELINES",
        "FORMATS",
        "FAMILIES",
        "FAMILIES",
        "HUB_FEATURES",
    ]
    assert all(re.search(rf"^{table}\b.* = {{", (ROOT / module).read_text(), re.MULTILINE) for table, module in tables)


def test_a_generator_makes_sound_images_of_its_prompts():
    lines = example("generator").splitlines()
    assert len(lines) == 4 and all(line.startswith("(64, 64, 3) sound: ") for line in lines)


def test_a_data_set_is_opened_and_its_support_drawn():
    output = example("dataset")
    assert output.startswith("9 train images, novel classes ['shell']") and output.count("train_") == 2


def test_a_baseline_is_scored_by_the_functions_of_a_run():
    words = example("baseline").split()
    assert words[:2] == ["40", "queries:"]
    base, novel, harmonic = (float(word.strip(",")) for word in words[3::2])
    assert base > 0.4 and 0.1 < novel < 1 and harmonic == pytest.approx(2 * base * novel / (base + novel), abs=0.01)


def test_an_export_writes_every_accepted_sample_of_the_diverse_prompts(finished, tmp_path):
    run = RunDir(str(finished[0]))
    example("export", str(run.root), str(tmp_path / "out"))
    accepted = {
        row["sample_id"]: row for row in run.draw(0).records() if not row["reason"] and row["sample_id"].startswith("hdig-")
    }
    files = {path.stem: path for path in (tmp_path / "out").rglob("*.npz")}
    assert set(files) == set(accepted)
    for name, path in files.items():
        with np.load(path) as arrays:
            assert (arrays["label"] == accepted[name]["class_id"]).any() and arrays["image"].shape[2] == 3


@pytest.mark.slow
def test_a_search_key_changes_what_depends_on_it_alone():
    lines = [line for line in example("search").splitlines() if "refinement.margin" in line and "complete" in line]
    assert len(lines) == 3
    for line in lines[1:]:
        assert "'masks': {'made'" in line and "'dense': {'made'" not in line and "'relabeled': {'made'" not in line
