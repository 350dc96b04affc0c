"""What is selected of a run, and in which order."""

from __future__ import annotations

import itertools
import json
import runpy

import pytest

from syn4seg.exports.formats import FORMATS
from tests.shared_exports import FAULT, READERS, compare, export, made_run


# ------------------------------------------------------------------------------- splits, shards, many classes
@pytest.mark.parametrize("format", FORMATS)
def test_200_classes_with_spaces_are_split_by_class_and_chosen_by_name(tmp_path, format):
    names = (*(f"class {i} <b>|`" for i in range(198)), "potted plant", "potted.plant")
    run, config, truth = made_run(tmp_path, names=names, samples=6)
    export(run, config, tmp_path / "both", format, by_class=True, only="all")
    for split, name in (("199_potted_plant", "potted plant"), ("200_potted_plant", "potted.plant")):
        compare(
            READERS[format](tmp_path / "both", split),
            {s: t for s, t in truth.items() if t.class_name == name and not t.reason},
            format,
        )
    export(run, config, tmp_path / "one", format, classes=("potted plant",))
    compare(
        READERS[format](tmp_path / "one", "train"),
        {s: t for s, t in truth.items() if t.class_name == "potted plant" and not t.reason},
        format,
    )
    assert json.loads((tmp_path / "one" / "classes.json").read_text())["classes"] == ["background", *names]
    if format == "mmseg":
        meta = runpy.run_path(str(tmp_path / "one" / "dataset.py"))["METAINFO"]
        assert meta["classes"] == ("background", *names) and len(set(map(tuple, meta["palette"]))) == 201
    if format == "hf":
        assert "| 5 | class 4 &lt;b&gt;\\|\\` |" in (tmp_path / "one" / "README.md").read_text()


def test_samples_come_in_the_order_of_the_plan_with_their_classes_mixed(made, tmp_path):
    run, config, _ = made
    export(run, config, tmp_path / "out", "voc")
    found = [int(name[-5:]) for name, *_ in READERS["voc"](tmp_path / "out", "train")]
    assert [i // 4 for i in found] == sorted(i // 4 for i in found)
    assert found != sorted(found) and {i % 2 for i in found[:4]} == {0, 1}  # inside a batch by id, which names the class


def test_a_run_is_listed_once_however_many_splits_there_are(made, tmp_path, monkeypatch):
    run, config, truth = made
    listed, images = [], type(run.samples).images
    monkeypatch.setattr(type(run.samples), "images", lambda self: listed.append(1) or images(self))
    export(run, config, tmp_path / "out", "voc", only="all", by_class=True)
    assert len(listed) == 1
    splits = {p.stem: p.read_text().split() for p in (tmp_path / "out/ImageSets/Segmentation").glob("*.txt")}
    assert len(splits) > 2 and sorted(itertools.chain(*splits.values())) == sorted(s for s, t in truth.items() if t.reason != FAULT)
