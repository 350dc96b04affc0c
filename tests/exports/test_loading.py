"""README.md of an export shows how to load it: its snippets run in the folder of the export."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from syn4seg.exports.formats import FORMATS
from tests.shared_exports import export


@pytest.mark.parametrize("format", FORMATS)
def test_the_readme_of_an_export_loads_it_and_its_label_maps_name_every_class(plain, tmp_path, monkeypatch, format):
    run, config, truth = plain
    export(run, config, tmp_path / "out", format)
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\n") == (format == "hf") and "| 3 | toy car |" in text
    snippets = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert len(snippets) == 1
    space: dict = {}
    exec(compile(snippets[0], "README.md", "exec"), space)
    if "image" in space and "name" in space:
        np.testing.assert_array_equal(np.array(space["image"]), truth[space["name"]].image)
    if format == "hf":
        assert space["classes"] == ["background", "cat", "dog", "toy car", "bird.x"]
    cvat, meta = (json.loads((tmp_path / "out/label_maps" / f"{name}.json").read_text()) for name in ("cvat", "datumaro"))
    assert [(one["name"], one["color"]) for one in cvat][:2] == [("cat", "#800000"), ("dog", "#008000")]
    assert meta["label_map"] == dict(zip("01234", ["background", "cat", "dog", "toy car", "bird.x"], strict=True))
    assert len(meta["segmentation_colors"]) == 5 and meta["background_label"] == "0"
