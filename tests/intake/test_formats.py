"""Every format as its publisher lays it out: the masks of `init` are those of a loop over pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coder

from syn4seg.data.folder import FolderDataset
from syn4seg.errors import UserError
from syn4seg.intake.making import init
from syn4seg.intake.masks import CITYSCAPES

NAMES = ["cat", "dog", "red car"]
ROWS, COLUMNS = 24, 32
COUNT = 6


def save_mask(path, mask) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def corners(box) -> list[int]:
    _, left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def write_voc(root, scene, painted, save_photo):
    for i in range(COUNT):
        save_photo(root / f"JPEGImages/{i}.jpg", i)
        save_mask(root / f"SegmentationClass/{i}.png", painted(scene(i)))
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n4\n")
    (lists / "val.txt").write_text("3\n5\n")
    (root / "classes.txt").write_text("\n".join(NAMES))


def write_voc_colours(root, scene, painted, save_photo):
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [1, 2, 3]], np.uint8)
    for i in range(COUNT):
        save_photo(root / f"JPEGImages/{i}.jpg", i)
        save_mask(root / f"SegmentationClass/{i}.png", colours[painted(scene(i))])
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(["background", *NAMES], colours, strict=True)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")


def write_coco(root, scene, painted, save_photo):
    """Polygons; run lengths compressed and not; category ids with gaps."""
    for split, some in (("train", (0, 1, 2, 4)), ("val", (3, 5))):
        objects = []
        for i in some:
            save_photo(root / f"{split}2017/{i:012}.jpg", i)
            for box in scene(i):
                one = painted([(1, *box[1:])])
                runs = coder.encode(np.asfortranarray(one))
                changes = np.flatnonzero(np.diff(one.ravel(order="F"), prepend=0, append=2)[:])
                region = {
                    1: [corners(box)],
                    2: {"size": runs["size"], "counts": runs["counts"].decode()},
                    3: {"size": [ROWS, COLUMNS], "counts": np.diff([0, *changes[:-1], one.size]).tolist()},
                }[box[0]]
                objects.append(
                    {"id": len(objects), "image_id": i, "category_id": box[0] * 10, "segmentation": region, "iscrowd": 0}
                )
        images = [{"id": i, "file_name": f"{i:012}.jpg", "width": COLUMNS, "height": ROWS} for i in some]
        content = {
            "images": images,
            "annotations": objects,
            "categories": [{"id": 10 * k, "name": n} for k, n in enumerate(NAMES, 1)],
        }
        path = root / f"annotations/instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def write_cityscapes(root, scene, painted, save_photo):
    ids = np.array([0, 24, 25, 26], np.uint8)  # unlabeled, person, rider, car
    for i in range(COUNT):
        split = "val" if i in (3, 5) else "train"
        save_photo(root / f"leftImg8bit/{split}/ulm/ulm_{i:06}_000019_leftImg8bit.png", i)
        save_mask(root / f"gtFine/{split}/ulm/ulm_{i:06}_000019_gtFine_labelIds.png", ids[painted(scene(i))])


def write_ade20k(root, scene, painted, save_photo):
    for i in range(COUNT):
        split = "validation" if i in (3, 5) else "training"
        save_photo(root / f"images/{split}/ADE_{i:08}.jpg", i)
        save_mask(root / f"annotations/{split}/ADE_{i:08}.png", painted(scene(i)))
    lines = [f"{k}\t0.1\t10\t1\t0\t{name}, another word" for k, name in enumerate(NAMES, 1)]
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n" + "\n".join(lines) + "\n")


def write_yolo(root, scene, painted, save_photo):
    for i in range(COUNT):
        split = "val" if i in (3, 5) else "train"
        save_photo(root / f"images/{split}/{i}.jpg", i)
        label = root / f"labels/{split}/{i}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        shares = [[v / (ROWS if k % 2 else COLUMNS) for k, v in enumerate(corners(box))] for box in scene(i)]
        label.write_text("".join(f"{b[0] - 1} {' '.join(map(str, s))}\n" for b, s in zip(scene(i), shares, strict=True)))
    (root / "data.yaml").write_text(
        f"path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames: {dict(enumerate(NAMES))}\n"
    )


def write_cvat(root, scene, painted, save_photo):
    """Polygons, and class 2 as masks of run lengths in their box; the objects stand in the reverse order of their z_order."""
    images = []
    for i in range(COUNT):
        save_photo(root / f"images/{i}.jpg", i)
        items = []
        for z, box in reversed(list(enumerate(scene(i)))):
            c = corners(box)
            points = ";".join(f"{c[k]}.00,{c[k + 1]}.00" for k in range(0, 8, 2))
            head = f'label="{NAMES[box[0] - 1]}" occluded="0" z_order="{z}"'
            width, height = min(box[3], COLUMNS) - box[1], min(box[4], ROWS) - box[2]
            rle = f'rle="0, {width * height}" left="{box[1]}" top="{box[2]}" width="{width}" height="{height}"'
            items.append(f"<mask {head} {rle}></mask>" if box[0] == 2 else f'<polygon {head} points="{points}"></polygon>')
        images.append(f'<image id="{i}" name="{i}.jpg" width="{COLUMNS}" height="{ROWS}">{"".join(items)}</image>')
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    head = f"<version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
    (root / "annotations.xml").write_text(f'<?xml version="1.0"?><annotations>{head}{"".join(images)}</annotations>')


def brush(mask) -> list[int]:
    """Label Studio's run lengths of a mask, runs of equal values alone: words of 8 bits, sizes of 3, 4, 8 and 16 bits."""
    values = np.repeat(mask.ravel() * 255, 4)
    text = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    starts = [0, *(np.flatnonzero(np.diff(values.astype(int))) + 1).tolist(), len(values)]
    for start, end in zip(starts, starts[1:], strict=False):
        text += f"1{3:02b}{end - start - 1:016b}{values[start]:08b}"
    text += "0" * (-len(text) % 8)
    return [int(text[k : k + 8], 2) for k in range(0, len(text), 8)]


def write_label_studio(root, scene, painted, save_photo):
    tasks = []
    for i in range(COUNT):
        save_photo(root / f"images/1a2b3c4d-{i}.jpg", i)
        results = []
        for box in scene(i):
            c = corners(box)
            points = [[c[k] / COLUMNS * 100, c[k + 1] / ROWS * 100] for k in range(0, 8, 2)]
            kind = "brushlabels" if box[0] == 2 else "polygonlabels"
            value = {"format": "rle", "rle": brush(painted([(1, *box[1:])]))} if box[0] == 2 else {"points": points}
            sizes = {"original_width": COLUMNS, "original_height": ROWS, "image_rotation": 0}
            results.append({"type": kind, "value": value | {kind: [NAMES[box[0] - 1]]}, **sizes})
        done = [{"was_cancelled": True, "result": []}, {"result": results}]
        tasks.append({"id": i, "data": {"image": f"/data/upload/1/1a2b3c4d-{i}.jpg"}, "annotations": done})
    (root / "project-1.json").write_text(json.dumps(tasks))


WRITERS = {
    "voc": write_voc,
    "voc-colours": write_voc_colours,
    "coco": write_coco,
    "cityscapes": write_cityscapes,
    "ade20k": write_ade20k,
    "yolo": write_yolo,
    "cvat": write_cvat,
    "label-studio": write_label_studio,
}


@pytest.fixture
def written(tmp_path, scene, painted, save_photo):
    """A function that writes a format into a folder."""

    def write(name: str):
        root = tmp_path / "mine"
        root.mkdir()
        WRITERS[name](root, scene, painted, save_photo)
        return root

    return write


@pytest.mark.parametrize("name", WRITERS)
def test_the_masks_of_a_format_are_those_of_the_loop(name, written, scene, painted):
    root = written(name)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    made = init(root)
    assert made.format == name.removesuffix("-colours") and made.proposed
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    dataset = FolderDataset(made.path)
    dataset.check()
    dataset.check_files()
    expected_names = [label for _, label in CITYSCAPES if label in ("person", "rider", "car")] if name == "cityscapes" else NAMES
    assert list(dataset.classes) == expected_names
    counts = dict.fromkeys(expected_names, (0, 0))
    for key in (*dataset.train, *dataset.val):
        number = int(
            next(
                part for part in key.replace("/", "_").replace("-", "_").split("_") if part.isdecimal() and part not in ("000019",)
            )
        )
        truth = painted(scene(number))
        for k, label in enumerate(expected_names, 1):
            if (pixels := int((truth == k).sum())) > 0:
                counts[label] = (counts[label][0] + 1, counts[label][1] + pixels)
        if name in ("cityscapes", "ade20k"):
            truth[truth == 0] = 255
        assert np.array_equal(dataset.mask(key), truth), key
        assert np.array_equal(dataset.image(key).shape[:2], truth.shape)
    assert made.classes == counts and made.train + made.val == COUNT
    if name not in ("voc-colours", "cvat", "label-studio"):
        assert made.val == 2, "the source says which are val"


def test_where_several_formats_fit_it_says_which_and_why(written, scene, painted, save_photo):
    root = written("coco")
    write_yolo(root, scene, painted, save_photo)
    made = init(root)
    assert made.format == "coco" and "yolo fits too" in made.why and "--format" in made.why
    assert init(root, to=root.parent / "other", format="yolo").format == "yolo"


def test_a_folder_of_no_format_and_an_unknown_format_are_one_sentence(tmp_path, written):
    with pytest.raises(UserError, match="no such folder"):
        init(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no known format fits"):
        init(tmp_path / "empty")
    with pytest.raises(UserError, match="did you mean coco"):
        init(written("coco"), format="cooc")
