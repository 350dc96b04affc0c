"""Polygons of YOLO: filled again, they are the label, whatever its holes and specks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml

from syn4seg.exports.yolo import polygon_lines
from tests.shared_exports import export, filled, made_run


def blobs(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 50, 2))
    if seed % 2:
        return (cv2.GaussianBlur(rng.random(shape), (5, 5), 1).reshape(shape) > 0.5).astype(np.uint8)
    return (rng.random(shape) < rng.random()).astype(np.uint8) * rng.integers(1, 4, shape, np.uint8)


@pytest.mark.parametrize("seed", range(40))
def test_filled_polygons_are_the_label_again(seed):
    label = blobs(seed)
    np.testing.assert_array_equal(filled(polygon_lines(label), label.shape), label)


def test_a_ring_with_an_island_is_one_polygon_and_the_island_another():
    label = np.zeros((9, 9), np.uint8)
    label[1:8, 1:8], label[2:7, 2:7], label[4, 4] = 2, 0, 2
    lines = polygon_lines(label)
    assert [line.split()[0] for line in lines] == ["1", "1"]
    assert lines[1] == "1" + " 0.5000000 0.5000000" * 3, "a single pixel has three points, at its centre"
    np.testing.assert_array_equal(filled(lines, label.shape), label)


def test_unlabeled_and_background_have_no_polygon():
    assert polygon_lines(np.array([[0, 255], [255, 0]], np.uint8)) == []


def test_data_yaml_names_classes_from_zero_and_has_train_and_val(plain, tmp_path):
    run, config, _ = plain
    notes = []
    export(run, config, tmp_path / "whole", "yolo", note=notes.append, only="all")
    export(run, config, tmp_path / "split", "yolo", note=notes.append, split=0.6)
    found = [yaml.safe_load((tmp_path / name / "data.yaml").read_text()) for name in ("whole", "split")]
    assert found[0] == {
        "train": ["images/train"],
        "val": ["images/train"],
        "names": {0: "cat", 1: "dog", 2: "toy car", 3: "bird.x"},
    }
    assert (found[1]["train"], found[1]["val"]) == (["images/train"], ["images/val"])
    run, config, _ = made_run(tmp_path / "run", names=("cat", "rejected", "val"))
    export(run, config, tmp_path / "by", "yolo", only="all", by_class=True, split=0.5, split_seed=1)
    table = yaml.safe_load((tmp_path / "by" / "data.yaml").read_text())
    assert table["train"] == ["images/002_rejected", "images/003_val"]
    assert table["val"] == ["images/002_rejected_val", "images/003_val_val"]
    assert notes == ["data.yaml: val is train, as readers need both; use --split 0.9 for a val part of its own"]
