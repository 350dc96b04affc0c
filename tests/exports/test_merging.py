"""Real images beside synthetic ones: every pixel of both, ids that never meet, classes by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from syn4seg.errors import UserError
from syn4seg.exports.formats import FORMATS
from tests.shared_exports import READERS, Truth, compare, contents, export, made_run, noise


def real_data(folder: Path, classes: tuple[str, ...] = ("Toy-Car", "cow", "cat")) -> Path:
    """Three photos of the train list, one in a folder, and one of the val list."""
    for name in ("a 1", "city/b", "hdig-x", "held"):
        for kind, pixels in (("images", noise(len(name), 7, 9, 3)), ("masks", noise(len(name), 7, 9) % 4)):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{name}.png")
    (folder / "train.txt").write_text("a 1\ncity/b\nhdig-x\n")
    (folder / "val.txt").write_text("held\n")
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_synthetic_and_real_samples_come_back_together_in_every_format(plain, tmp_path, format):
    run, config, truth = plain
    values, real = np.array([0, 3, 255, 1]), real_data(tmp_path / "real")
    wanted = {s: t for s, t in truth.items() if not t.reason}
    for name, sample_id in (("a 1", "real-a_1"), ("city/b", "real-city=2Fb"), ("hdig-x", "real-hdig-x")):
        image, mask = (np.array(Image.open(real / kind / f"{name}.png")) for kind in ("images", "masks"))
        wanted[sample_id] = Truth(image, values[mask].astype(np.uint8), "", "", "")
    notes = []
    counts = export(run, config, tmp_path / "out", format, merge=str(real), note=notes.append)
    assert counts == {"accepted": 12, "real": 3} and any("pixels of cow are unlabeled" in note for note in notes)
    compare(READERS[format](tmp_path / "out", "train"), wanted, format)
    rows = [r for r in pq.read_table(tmp_path / "out/lineage.parquet").to_pylist() if r["verdict"] == "real"]
    assert {(r["bank"], r["generator"], r["label_stage"]) for r in rows} == {("real", "", "annotation")}
    assert str(tmp_path) not in (tmp_path / "out" / "export.json").read_text()
    before = contents(tmp_path / "out")
    assert export(run, config, tmp_path / "out", format, merge=str(real)) == counts and contents(tmp_path / "out") == before


def test_both_kinds_are_split_and_a_damaged_photo_costs_itself_alone(tmp_path):
    run, config, truth = made_run(tmp_path / "run", reasons={})
    real = real_data(tmp_path / "real")
    (real / "images/city/b.png").write_bytes(b"no picture")
    said = []
    counts = export(run, config, tmp_path / "out", "voc", merge=str(real), split=0.5, warn=said.append)
    assert counts == {"accepted": 14, "real": 2, "damaged": 1} and len(said) == 1 and "real-city=2Fb" in said[0]
    ids = [(tmp_path / f"out/ImageSets/Segmentation/{split}.txt").read_text().split() for split in ("train", "val")]
    assert all(ids) and sorted(ids[0] + ids[1]) == sorted([*truth, "real-a_1", "real-hdig-x"])


def test_the_data_set_of_the_run_needs_no_path_and_one_without_a_common_class_is_refused(plain, tmp_path):
    run, config, _ = plain
    assert export(run, config, tmp_path / "out", "parquet", merge="run") == {"accepted": 12, "real": 1}
    with pytest.raises(UserError, match=r"none of its classes \(ox, cow, yak\) is one of this export \(cat, dog"):
        export(run, config, tmp_path / "no", "voc", merge=str(real_data(tmp_path / "real", ("ox", "cow", "yak"))))
