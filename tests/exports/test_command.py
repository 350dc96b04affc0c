"""The guide docs/exports.md: every command and snippet of it works on a real run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from syn4seg.exports.formats import FORMATS
from tests.shared_exports import READERS, Truth, compare, pixels

DOCS = Path(__file__).parents[2] / "docs" / "exports.md"


# ------------------------------------------------------------------------------------------------ the guide
def test_every_command_and_snippet_of_the_guide_works_on_a_real_run(finished, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from syn4seg.cli import app

    (tmp_path / "runs").mkdir()
    os.symlink(finished[0], tmp_path / "runs" / "embedded")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", DOCS.read_text(), re.M | re.S)
    assert {kind for kind, _ in blocks} == {"", "python"}
    run, names = Path(finished[0]), []
    for kind, text in blocks:
        for line in text.splitlines() if not kind else ():
            words = line.partition("#")[0].split()
            assert words[0] == "syn4seg"
            done = CliRunner().invoke(app, words[1:], catch_exceptions=False)
            assert done.exit_code == 0, done.output
        if kind == "python":
            space: dict = {}
            exec(compile(text, str(DOCS), "exec"), space)
            name, image, label = (space[key] for key in ("name", "image", "label"))
            folder = name.split("-")[1]
            np.testing.assert_array_equal(image, pixels(run / "images" / folder / f"{name}.png"))
            known = pixels(run / "draws/0/labels" / folder / f"{name}.png")
            np.testing.assert_array_equal(label, np.where(known == 255, 0, known) if "polygons" in space else known)
            names.append(name)
    assert len(names) == len(FORMATS)
    for format in FORMATS:
        truth = {
            p.stem: Truth(pixels(run / "images" / p.parent.name / p.name), pixels(p), "", "", "")
            for p in (run / "draws/0/labels").glob("*/hdig-*.png")
        }
        assert truth and any((t.label == 255).any() for t in truth.values())
        compare(READERS[format](tmp_path / "exports" / format, "train"), truth, format)
