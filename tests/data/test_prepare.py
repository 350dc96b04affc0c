"""Preparing: everything missing at once, bad files together at the end, nothing lost, the same folder however often it stopped."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from syn4seg.data.coco import CocoDataset
from syn4seg.data.pascal import PascalDataset
from syn4seg.data.prepare import prepare_coco, prepare_pascal
from syn4seg.errors import UserError
from syn4seg.store.images import read_image
from tests.official import TRUNCATED, truncate, write_coco, write_pascal


def _silent(*_):
    pass


def _run(prepare, root, *variant, progress=_silent):
    notes: list[str] = []
    return prepare(root, *variant, progress=progress, note=notes.append), notes


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    write_pascal(root, train=12, val=8)
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    write_coco(root, train=8, val=6)
    return root


@pytest.fixture
def pascal(voc, tmp_path):
    shutil.copytree(voc, tmp_path / "data")
    return tmp_path / "data"


def _contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class _Stop(Exception):
    pass


def _stopping(after):
    def progress(done, _):
        if done == after:
            raise _Stop

    return progress


# ----------------------------------------------------------------------------------------------- what is made
def test_the_summary_the_notes_and_the_manifest_agree(pascal):
    summary, notes = _run(prepare_pascal, pascal)
    manifest = json.loads((pascal / "syn4seg-pascal" / "manifest.json").read_text())
    assert summary["images"] == manifest["images"] == 20 and summary["kept"] == 0
    assert summary["lists"] == manifest["lists"]
    assert {n: v["ids"] for n, v in summary["lists"].items()} == {"noduplicate": 9, "trainaug": 12, "val": 8}
    assert not any(v["published"] for v in summary["lists"].values())
    assert sum("not the published list" in n and "numbers will not be comparable" in n for n in notes) == 3


def test_masks_are_plain_index_images_that_opencv_reads(pascal):
    _run(prepare_pascal, pascal)
    dataset = PascalDataset(pascal, "trainaug")
    for sample_id in dataset.train:
        stored = read_image(pascal / "syn4seg-pascal" / "masks" / f"{sample_id}.png")
        assert stored.ndim == 2 and np.array_equal(stored, dataset.mask(sample_id))


def test_official_files_are_left_as_they_are(voc, pascal):
    before = _contents(voc)
    _run(prepare_pascal, pascal)
    after = _contents(pascal)
    assert {n: after[n] for n in before} == before
    assert all(n.startswith("syn4seg-pascal/") for n in set(after) - set(before))


@pytest.mark.parametrize("after", [1, 7, 19])
def test_a_stopped_call_goes_on_and_ends_in_the_same_bytes(pascal, after):
    with pytest.raises(_Stop):
        _run(prepare_pascal, pascal, progress=_stopping(after))
    with pytest.raises(UserError, match="is not prepared"):
        PascalDataset(pascal)
    steps = []
    summary, _ = _run(prepare_pascal, pascal, progress=lambda *step: steps.append(step))
    assert summary["kept"] == after and steps == [(i, 20) for i in range(1, 21)]
    first = _contents(pascal / "syn4seg-pascal")
    again, _ = _run(prepare_pascal, pascal)
    assert again["kept"] == 20 and _contents(pascal / "syn4seg-pascal") == first
    shutil.rmtree(pascal / "syn4seg-pascal")
    _run(prepare_pascal, pascal)
    assert _contents(pascal / "syn4seg-pascal") == first


def test_a_damaged_mask_is_made_anew(pascal):
    _run(prepare_pascal, pascal)
    first = _contents(pascal / "syn4seg-pascal")
    masks = sorted((pascal / "syn4seg-pascal" / "masks").iterdir())
    truncate(masks[3])
    masks[5].unlink()
    assert _run(prepare_pascal, pascal)[0]["kept"] == 18
    assert _contents(pascal / "syn4seg-pascal") == first


def test_other_official_files_make_other_masks(coco, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(coco, root)
    _run(prepare_coco, root)
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    kept = [a for a in content["annotations"] if a["id"] != 2]
    path.write_text(json.dumps(content | {"annotations": kept}))
    with pytest.raises(UserError, match="is stale"):
        CocoDataset(root)
    assert _run(prepare_coco, root)[0]["kept"] == 0
    dataset = CocoDataset(root)
    assert sum(len(dataset.pixels(s)) for s in dataset.val) == 3 * len(dataset.val) - 1


def test_variants_lie_beside_each_other(coco, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(coco, root)
    _run(prepare_coco, root)
    first = _contents(root / "syn4seg-coco" / "all_polygons")
    _run(prepare_coco, root, "crowd255")
    assert _contents(root / "syn4seg-coco" / "all_polygons") == first
    assert CocoDataset(root, "crowd255").train == CocoDataset(root).train


# ---------------------------------------------------------------------------------------------- what is missing
def test_an_empty_folder_names_every_archive_its_size_and_its_place(tmp_path):
    with pytest.raises(UserError, match="official files are missing") as error:
        _run(prepare_pascal, tmp_path)
    for words in ("VOCtrainval_11-May-2012.tar (2.0 GB", "benchmark.tgz (1.4 GB", f"unpacked in {tmp_path} (makes VOCdevkit"):
        assert words in str(error.value)
    with pytest.raises(UserError, match="official files are missing") as error:
        _run(prepare_coco, tmp_path)
    for words in ("train2014.zip (13.5 GB", "val2014.zip (6.6 GB", "annotations_trainval2014.zip (253 MB"):
        assert words in str(error.value)
    assert not list(tmp_path.iterdir())


def test_every_missing_file_is_counted_at_once_and_nothing_is_begun(pascal):
    voc, sbd = pascal / "VOCdevkit" / "VOC2012", pascal / "benchmark_RELEASE" / "dataset"
    photos = sorted((voc / "JPEGImages").iterdir())
    for path in photos[:5]:
        path.unlink()
    next(iter((voc / "SegmentationClass").iterdir())).unlink()
    shutil.rmtree(sbd / "cls")
    (sbd / "val.txt").unlink()
    with pytest.raises(UserError, match="official files are missing") as error:
        _run(prepare_pascal, pascal)
    lines = str(error.value).splitlines()
    assert any("JPEGImages/: " in line and photos[0].name in line and "VOCtrainval" in line for line in lines)
    assert any("SegmentationClass/: 1 of 14 files" in line for line in lines)
    assert any("dataset/val.txt: in benchmark.tgz" in line for line in lines)
    assert any("dataset/cls/: in benchmark.tgz" in line for line in lines)
    assert len(lines) == 5 and not (pascal / "syn4seg-pascal").exists()


def test_missing_coco_images_are_counted_by_folder(coco, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(coco, root)
    shutil.rmtree(root / "val2014")
    for path in sorted((root / "train2014").iterdir()):
        path.unlink()
    with pytest.raises(UserError, match="official files are missing") as error:
        _run(prepare_coco, root)
    assert "train2014/: 8 of 8 files (" in str(error.value)
    assert "val2014/: in val2014.zip (6.6 GB" in str(error.value)


# -------------------------------------------------------------------------------------------------- what is bad
def test_bad_files_are_named_together_and_cost_nothing_else(tmp_path):
    truth = write_pascal(tmp_path, train=12, val=8, truncated=True)
    voc, sbd = tmp_path / "VOCdevkit" / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset"
    cut = f"{2007 + TRUNCATED % 2}_{1000 + 7 * TRUNCATED:06d}"
    mat = next(s for s in truth.lists["trainaug"] if not (voc / "SegmentationClass" / f"{s}.png").exists() and s != cut)
    png = truth.lists["val"][1]
    saved = {p: p.read_bytes() for p in (sbd / "cls" / f"{mat}.mat", voc / "SegmentationClass" / f"{png}.png")}
    for path in saved:
        truncate(path)
    with pytest.raises(UserError, match="3 official files are bad; 17 masks are done and kept") as error:
        _run(prepare_pascal, tmp_path)
    assert all(words in str(error.value) for words in (f"{cut}.jpg", f"{mat}.mat", f"{png}.png"))
    assert len((tmp_path / "syn4seg-pascal" / "bad-files.txt").read_text().splitlines()) == 3
    with pytest.raises(UserError, match="is not prepared"):
        PascalDataset(tmp_path)
    for path, data in saved.items():
        path.write_bytes(data)
    Image.fromarray(truth.images[cut]).save(voc / "JPEGImages" / f"{cut}.jpg")
    assert _run(prepare_pascal, tmp_path)[0]["kept"] == 17
    assert not (tmp_path / "syn4seg-pascal" / "bad-files.txt").exists()
    dataset = PascalDataset(tmp_path, "trainaug")
    assert all(np.array_equal(dataset.mask(s), truth.masks[s]) for s in (*dataset.train, *dataset.val))


def test_a_photo_of_another_size_than_its_mask_is_bad(pascal):
    path = sorted((pascal / "VOCdevkit" / "VOC2012" / "JPEGImages").iterdir())[0]
    Image.new("RGB", (33, 44)).save(path)
    with pytest.raises(UserError, match=rf"1 official files are bad.*\n  .*{path.name} is 33x44 pixels but its mask"):
        _run(prepare_pascal, pascal)


def test_many_bad_files_are_cut_in_the_message_and_whole_in_the_file(pascal, monkeypatch):
    monkeypatch.setattr("syn4seg.data.prepare._SHOWN", 2)
    for path in (pascal / "VOCdevkit" / "VOC2012" / "JPEGImages").iterdir():
        truncate(path)
    with pytest.raises(UserError, match=r"20 official files are bad; 0 masks[\s\S]*and 18 more, all in .*bad-files\.txt"):
        _run(prepare_pascal, pascal)
    assert len((pascal / "syn4seg-pascal" / "bad-files.txt").read_text().splitlines()) == 20
