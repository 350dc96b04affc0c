"""The folder data set: both layouts, palette masks, and an error that teaches for every way to get it wrong."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from syn4seg.data.folder import FolderDataset
from syn4seg.errors import UserError

MASK = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
TABLE = {"classes": ["cat", "dog"], "folds_novel": {"fold0": ["dog"], "fold1": ["cat"]}}


def _write(root, *, voc=False, palette=True, mask=MASK, table=None, train=("a",), val=("b",)):
    images, masks = root / ("JPEGImages" if voc else "images"), root / ("SegmentationClass" if voc else "masks")
    lists = root / "ImageSets/Segmentation" if voc else root
    for folder in (images, masks, lists):
        folder.mkdir(parents=True, exist_ok=True)
    for name in {"a", "b"}:
        Image.fromarray(np.full((*mask.shape, 3), 90, np.uint8)).save(images / f"{name}.png")
        stored = Image.fromarray(mask)
        if palette:
            stored = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
            stored.putpalette([(i * 37) % 256 for i in range(768)])
        stored.save(masks / f"{name}.png")
    (lists / "train.txt").write_text("\n".join(train) + "\n")
    (lists / "val.txt").write_text("\n".join(val) + "\n\n")
    if voc:
        (root / "classes.yaml").write_text("classes: [cat, dog]\nfolds_novel: [[dog], [cat]]\n")
    else:
        (root / "classes.json").write_text(json.dumps(table or TABLE))
    return root


@pytest.mark.parametrize("voc", [False, True])
@pytest.mark.parametrize("palette", [False, True])
def test_masks_are_read_as_indices_in_both_layouts(tmp_path, voc, palette):
    dataset = FolderDataset(_write(tmp_path, voc=voc, palette=palette))
    dataset.check()
    assert dataset.classes == ("cat", "dog") and dataset.folds == ((2,), (1,))
    assert dataset.train == ["a"] and dataset.val == ["b"]
    assert np.array_equal(dataset.mask("a"), MASK)
    assert dataset.image("a").shape == (2, 3, 3) and dataset.image("a").dtype == np.uint8
    assert dataset.areas("a") == {1: 1 / 6, 2: 2 / 6}


def test_a_mask_is_scanned_for_areas_only_once(tmp_path):
    dataset = FolderDataset(_write(tmp_path))
    first = dataset.areas("a")
    (tmp_path / "masks/a.png").unlink()
    assert dataset.areas("a") == first


def _broken_value(root):
    Image.fromarray(np.array([[0, 3]], np.uint8)).save(root / "masks/a.png")


def _broken_mode(root):
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(root / "masks/a.png")


def _broken_file(root):
    (root / "masks/a.png").write_bytes(b"no png")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_broken_value, r"a\.png has the value 3; expected 0 .* 1\.\.2 .* 255"),
        (_broken_mode, "mode RGB"),
        (_broken_file, "not a readable image"),
    ],
)
def test_a_wrong_mask_is_refused_by_file_value_and_remedy(tmp_path, harm, words):
    dataset = FolderDataset(_write(tmp_path))
    harm(tmp_path)
    with pytest.raises(UserError, match=words):
        dataset.mask("a")


def test_image_and_mask_of_different_sizes_are_refused(tmp_path):
    dataset = FolderDataset(_write(tmp_path))
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "images/a.png")
    with pytest.raises(UserError, match="5x5 pixels but its mask a is 3x2"):
        dataset.image("a")


def test_an_image_with_too_many_pixels_is_refused(tmp_path, monkeypatch):
    dataset = FolderDataset(_write(tmp_path))
    monkeypatch.setattr("syn4seg.data.photos.MAX_PIXELS", 5)
    with pytest.raises(UserError, match="6 pixels; expected at most 5"):
        dataset.image("a")


@pytest.mark.parametrize("sample_id", ["../secret", "x//y", "x/.y", "/x", ".hidden", "a\\b"])
def test_ids_that_are_paths_are_refused(tmp_path, sample_id):
    with pytest.raises(UserError, match="not a plain file name"):
        FolderDataset(_write(tmp_path, train=(sample_id,)))


def test_lists_are_checked_before_any_image_is_opened(tmp_path):
    with pytest.raises(UserError, match="listed twice"):
        FolderDataset(_write(tmp_path, train=("a", "a")))
    with pytest.raises(UserError, match="on the train and the val list"):
        FolderDataset(_write(tmp_path, val=("a",))).check()
    with pytest.raises(UserError, match="missing"):
        FolderDataset(_write(tmp_path, train=("a", "c"))).check()
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(UserError, match="lists no id"):
        FolderDataset(tmp_path)
    (tmp_path / "train.txt").unlink()
    with pytest.raises(UserError, match=r"train\.txt"):
        FolderDataset(tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        {"classes": ["cat", "dog"]},
        {"classes": ["cat", "cat"], "folds_novel": [["cat"]]},
        {"classes": ["cat", "dog"], "folds_novel": [["bird"]]},
        {"classes": ["cat", "dog"], "folds_novel": [["cat", "dog"]]},
        {"classes": ["cat", "dog"], "folds_novel": []},
    ],
)
def test_a_wrong_class_table_is_refused(tmp_path, table):
    with pytest.raises(UserError, match=r"classes\.json"):
        FolderDataset(_write(tmp_path, table=table))


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        FolderDataset(tmp_path / "nowhere")


def test_ids_may_lie_in_subfolders_and_names_may_be_of_any_case(tmp_path):
    root = _write(tmp_path, train=("city/x", "b"), val=("a",))
    for folder, name in (("images", "x.JPEG"), ("masks", "x.PNG")):
        (root / folder / "city").mkdir()
        picture = Image.fromarray(MASK) if folder == "masks" else Image.fromarray(np.zeros((2, 3, 3), np.uint8))
        picture.save(root / folder / "city" / name, format="PNG" if folder == "masks" else "JPEG")
    dataset = FolderDataset(root)
    dataset.check()
    assert dataset.check_files() == []
    assert dataset.image("city/x").shape == (2, 3, 3) and np.array_equal(dataset.mask("city/x"), MASK)


def test_two_files_of_one_id_are_refused_and_hidden_companions_are_no_files(tmp_path):
    root = _write(tmp_path)
    for name in ("images/._a.png", "images/.a.png", "masks/._a.png", "images/Thumbs.db"):
        (root / name).write_bytes(b"0" * 4000)
    FolderDataset(root).check()
    (root / "images/a.JPG").write_bytes(b"")
    with pytest.raises(UserError, match=r"image 'a' is there twice: .*a\.(JPG|png) and a\.(JPG|png)"):
        FolderDataset(root).check()


@pytest.mark.parametrize("harm", ["truncated mask", "truncated photo", "value 77", "another size", "fifo"])
def test_every_listed_file_is_read_before_anything_trains(tmp_path, harm):
    root = _write(tmp_path)
    dataset = FolderDataset(root)
    digest = dataset.files_digest
    assert dataset.check_files() == [] and FolderDataset(root).files_digest == digest
    rng = np.random.default_rng(0)
    if harm == "value 77":
        Image.fromarray(np.full((2, 3), 77, np.uint8)).save(root / "masks/b.png")
    elif harm == "another size":
        Image.fromarray(np.zeros((3, 3), np.uint8)).save(root / "masks/b.png")
    elif harm == "fifo":
        (root / "images/b.png").unlink()
        os.mkfifo(root / "images/b.png")
    else:
        big = rng.integers(0, 3, (64, 64), np.uint8)
        Image.fromarray(big).save(root / "masks/b.png")
        Image.fromarray(np.repeat(big[..., None] * 80, 3, 2)).save(root / "images/b.png")
        path = root / ("masks/b.png" if "mask" in harm else "images/b.png")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    dataset = FolderDataset(root)
    with pytest.raises(UserError, match=r"b\.png"):
        dataset.check_files()
    assert dataset.files_digest != digest


def test_a_class_that_no_mask_holds_is_named(tmp_path):
    table = {"classes": ["cat", "dog", "bird"], "folds_novel": [["dog"]]}
    assert [("'bird'" in line and "'cat'" not in line) for line in FolderDataset(_write(tmp_path, table=table)).check_files()] == [
        True
    ] * 2
