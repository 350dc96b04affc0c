"""`syn4seg init` as a command: the same bytes again, nothing of others overwritten, hostile folders in one sentence, a true run."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from syn4seg.data.folder import FolderDataset
from syn4seg.intake.making import init

NAMES = ["cat", "dog", "red car"]
TINY = (
    *(
        "placement.runner=inline",
        "segmenter.size=32",
        "segmenter.backbone=embedded",
        "segmenter.weights=null",
        "segmenter.channels=16",
    ),
    *("segmenter.ppm_bins=[1]", "segmenter.freeze_backbone=false", "base.epochs=1", "base.batch=2", "novel.steps=2"),
    *("novel.replay_images=2", "labeling.min_region=4", "labeling.base_prototype_images=4", "synthesis.images_per_class=2"),
    *("labeling.min_target=0", "labeling.max_target=1", "logging.to=[]"),
)


@pytest.fixture
def mine(tmp_path, scene, painted, save_photo):
    """A folder of COCO instances without a split: 10 photos."""
    root, images, objects = tmp_path / "mine", [], []
    for i in range(10):
        save_photo(root / f"images/{i}.jpg", i)
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 32, "height": 24})
        for value, left, top, right, bottom in scene(i):
            outline = [[left, top, right, top, right, bottom, left, bottom]]
            objects.append({"id": len(objects) + 1, "image_id": i, "category_id": value, "segmentation": outline, "iscrowd": 0})
    table = {"images": images, "annotations": objects, "categories": [{"id": k, "name": n} for k, n in enumerate(NAMES, 1)]}
    (root / "instances.json").write_text(json.dumps(table))
    return root


def tree_of(root) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): os.readlink(p).encode() if p.is_symlink() else p.read_bytes()
        for p in root.rglob("*")
        if not p.is_dir()
    }


def test_the_command_says_what_it_understood_and_the_written_configuration_runs(mine, syn4seg, tmp_path):
    code, said, complaint = syn4seg("init", mine)
    assert code == 0, complaint
    for words in ("format: coco", "10 photos with masks", "red car: 4 images", ", novel", "--novel NAME,NAME", "a fifth is val"):
        assert words in said, said
    config = tmp_path / "mine-syn4seg/config.yaml"
    assert said.replace("\n", "").rstrip().endswith(f"syn4seg run {config}")
    code, said, complaint = syn4seg("run", config, *TINY, "--out", tmp_path / "run")
    assert code == 0, complaint + said
    assert json.loads((tmp_path / "run/results.json").read_text())["classes"] == ["background", "cat", "dog", "red car"]
    assert syn4seg("verify", tmp_path / "run")[0] == 0


def test_the_same_call_writes_the_same_bytes_and_another_choice_replaces_only_its_own(mine, tmp_path):
    made = init(mine, to=tmp_path / "data")
    first, times = tree_of(tmp_path / "data"), {p: p.lstat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}
    assert init(mine, to=tmp_path / "data") == made and tree_of(tmp_path / "data") == first
    assert {p: p.lstat().st_mtime_ns for p in (tmp_path / "data").rglob("*")} == times, "nothing was written again"
    assert made.novel == ("red car",), "the rarest"
    chosen = init(mine, to=tmp_path / "data", novel=["dog"])
    assert chosen.novel == ("dog",) and not chosen.proposed
    assert json.loads((tmp_path / "data/classes.json").read_text())["folds_novel"] == {"fold0": ["dog"]}
    with_dog = tree_of(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    init(mine, to=tmp_path / "data", novel=["dog"])
    again = tree_of(tmp_path / "data")
    assert all(with_dog[name] == data for name, data in again.items())


def test_every_class_is_on_both_lists_where_a_source_has_none(mine, tmp_path):
    dataset = FolderDataset(init(mine).path)
    dataset.check()
    for listed in (dataset.train, dataset.val):
        assert {k for key in listed for k in dataset.areas(key)} >= {1, 2, 3}


@pytest.mark.parametrize("harm", ["edited", "foreign", "inside", "other source", "file"])
def test_nothing_of_anybody_else_is_overwritten(mine, syn4seg, tmp_path, harm):
    to = tmp_path / "data"
    if harm in ("edited", "other source"):
        assert syn4seg("init", mine, "--to", to)[0] == 0
    if harm == "edited":
        (to / "config.yaml").write_text("name: mine\n")
    elif harm == "foreign":
        to.mkdir()
        (to / "letter.txt").write_text("dear")
    elif harm == "inside":
        to = mine / "inside"
    elif harm == "other source":
        shutil.copytree(mine, tmp_path / "second")
    else:
        to.write_text("a file")
    before = tree_of(tmp_path)
    code, said, complaint = syn4seg("init", tmp_path / "second" if harm == "other source" else mine, "--to", to)
    assert code == 2 and complaint.startswith("error: ") and "choose" in complaint, said + complaint
    assert tree_of(tmp_path) == before


def damage(root, harm, tmp_path) -> str:
    """Harm a folder, and return what the sentence must say."""
    path = root / "instances.json"
    table = json.loads(path.read_text())
    if harm == "cut":
        path.write_text(path.read_text()[:-40])
        return "damaged JSON"
    if harm == "deep":
        path.write_text(path.read_text()[:-1] + ', "x": ' + "[" * 200_000)
        return "damaged JSON"
    if harm == "no image id":
        table["annotations"][3]["image_id"] = 77
        said = "image_id 77"
    elif harm == "no category id":
        del table["annotations"][3]["category_id"]
        said = "category_id None"
    elif harm == "id twice":
        table["images"][1]["id"] = 0
        said = "id 0"
    elif harm == "list as id":
        table["annotations"][0]["image_id"] = [1]
        said = "image_id [1]"
    elif harm == "climbs":
        table["images"][0]["file_name"] = "../../outside.jpg"
        said = "outside of"
    elif harm == "absolute":
        table["images"][0]["file_name"] = "/etc/passwd"
        said = "outside of"
    elif harm == "other size":
        table["images"][0]["width"] = 33
        said = "33x24"
    elif harm == "huge size":
        table["images"][0]["width"] = 10**30
        said = "expected pixels"
    elif harm == "far corner":
        table["annotations"][0]["segmentation"] = [[0, 0, 1e12, 0, 5, 5]]
        said = "far outside"
    elif harm == "nan":
        table["annotations"][0]["segmentation"] = [[0, 0, float("nan"), 0, 5, 5]]
        said = "far outside"
    elif harm == "words":
        table["annotations"][0]["segmentation"] = [["a", "b"]]
        said = "pairs of numbers"
    elif harm == "runs":
        table["annotations"][0]["segmentation"] = {"size": [24, 32], "counts": [5, 6]}
        said = "does not fit"
    elif harm == "compressed runs":
        table["annotations"][0]["segmentation"] = {"size": [24, 32], "counts": "~~~~~~~~"}
        said = "run-length"
    elif harm == "class twice":
        table["categories"][1]["name"] = "Cat"
        said = "differ in case"
    elif harm == "link out":
        (root / "images/0.jpg").rename(tmp_path / "outside.jpg")
        (root / "images/0.jpg").symlink_to(tmp_path / "outside.jpg")
        return "leads out of"
    elif harm == "link in a circle":
        (root / "images/0.jpg").unlink()
        (root / "images/0.jpg").symlink_to("0.jpg")
        return "0.jpg"
    elif harm == "pipe":
        (root / "images/0.jpg").unlink()
        os.mkfifo(root / "images/0.jpg")
        return "no regular file"
    else:
        (root / "images/0.jpg").write_bytes(b"\xff\xd8 no photo")
        return "not a readable image"
    path.write_text(json.dumps(table))
    return said


HARMS = (
    *("cut", "deep", "no image id", "no category id", "id twice", "list as id", "climbs", "absolute", "other size", "huge size"),
    *("far corner", "nan", "words", "runs", "compressed runs", "class twice", "link out", "link in a circle", "pipe", "no photo"),
)


@pytest.mark.parametrize("harm", HARMS)
def test_a_hostile_folder_ends_in_one_sentence_and_nothing_is_written(mine, syn4seg, tmp_path, harm):
    said = damage(mine, harm, tmp_path)
    code, _, complaint = syn4seg("init", mine)
    assert code == 2 and said in complaint, complaint
    assert complaint.startswith("error: ") and complaint.count("\n") == 1 and "Traceback" not in complaint
    assert not (tmp_path / "mine-syn4seg").exists()


FOREIGN = {
    "yolo class": ("data.yaml", "train: images\nval: images\nnames: [a, b]", "labels/0.txt", "7 0 0 1 0 1 1", "class 7"),
    "yolo box": (
        "data.yaml",
        "train: images\nval: images\nnames: [a, b]",
        "labels/0.txt",
        "0 .5 .5 .1 .1",
        "a box alone is no outline",
    ),
    "yolo word": ("data.yaml", "train: images\nval: images\nnames: [a, b]", "labels/0.txt", "0 a b c d e f", "three corners"),
    "yolo names": ("data.yaml", "train: images\nval: images\nnames: {1: a, 7: b}", "labels/0.txt", "", "without a gap"),
    "yolo path": ("data.yaml", "train: ../../etc\nval: images\nnames: [a]", "labels/0.txt", "", "no photo lies there"),
    "cvat entity": (
        "a.xml",
        "<!DOCTYPE x><annotations><version>1.1</version><image /></annotations>",
        "b",
        "",
        "declares entities",
    ),
    "cvat cut": ("a.xml", "<annotations><version>1.1</version><image ", "b", "", "damaged XML"),
    "cvat climbs": ("a.xml", '<annotations><version>1.1</version><image name="../0.jpg"/></annotations>', "b", "", "outside of"),
    "cvat size": (
        "a.xml",
        '<annotations><version>1.1</version><image name="0.jpg" width="x"/></annotations>',
        "b",
        "",
        "malformed",
    ),
    "studio climbs": (
        *("a.json", '[{"data": {"image": "/data/local-files/?d=../0.jpg"}, "annotations": [{"result": []}]}]'),
        *("b", "", "outside of"),
    ),
    "studio task": ("a.json", '[5, {"data": 1, "annotations": 2, "result": 3}]', "b", "", "task 0 is malformed"),
    "voc value": ("masks/0.png", None, "classes.txt", "a\nb", "has the value 77"),
    "voc no table": ("masks/0.png", None, "b", "", "no table"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_hostile_file_of_every_other_format_ends_in_one_sentence(tmp_path, syn4seg, save_photo, name):
    first, text, second, more, said = FOREIGN[name]
    root = tmp_path / "mine"
    save_photo(root / "images/0.jpg", 0)
    for place, content in ((first, text), (second, more)):
        (root / place).parent.mkdir(exist_ok=True)
        if content is None:
            Image.fromarray(np.full((24, 32), 77, np.uint8)).save(root / place)
        else:
            (root / place).write_text(content)
    code, _, complaint = syn4seg("init", root)
    assert code == 2 and said in complaint and complaint.count("\n") == 1, complaint


def test_novel_classes_that_are_none_are_refused_with_the_nearest_name(mine, syn4seg):
    for words, said in (("dgo", "did you mean dog"), ("cat,dog,red car", "no base class is left")):
        code, _, complaint = syn4seg("init", mine, "--novel", words)
        assert code == 2 and said in complaint
