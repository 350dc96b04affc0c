"""Writers of tiny data sets in the official layouts of VOC 2012 + SBD and of COCO 2014, with all their oddities.

Every image shows objects of different folds side by side, each in its class's own colour on a dim background; every class
has at least two images in each split, at least 200 pixels in each. The writers return what a correct reader must find.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from syn4seg.data import coco
from syn4seg.seeds import seeded

GREY, CMYK, TURNED, TRUNCATED = 1, 2, 4, 6  # numbers of the odd images of a split
MISSING_CATEGORIES = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of 1..90, as in COCO
CATEGORY_IDS = [k for k in range(1, 91) if k not in MISSING_CATEGORIES]

TRAIN_KINDS = (("voc_train",), ("voc_train", "sbd_train"), ("sbd_train",), ("sbd_val",))
VAL_KINDS = (("voc_val",), ("voc_val", "sbd_train"), ("voc_val",), ("voc_val", "sbd_val"))


@dataclass
class Truth:
    """What was written.

    Attributes:
        images: sample id -> RGB uint8 (H, W, 3) before JPEG.
        masks: sample id -> dataset ids uint8 (H, W); for COCO the variant all_polygons.
        lists: list -> ids in their right order.
        objects: COCO: sample id -> [(dataset id, crowd, rectangles (left, top, right, bottom), ends included)].
    """

    images: dict[str, np.ndarray] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    objects: dict[str, list[tuple[int, bool, list[tuple[int, int, int, int]]]]] = field(default_factory=dict)


def colour_of(class_id: int) -> tuple[int, int, int]:
    """A bright colour of its own for each dataset id."""
    hue = np.uint8([[[(class_id * 47) % 180, 200 + (class_id * 13) % 56, 255 - (class_id * 29) % 90]]])
    return tuple(int(v) for v in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])


def _canvas(rng: np.random.Generator, number: int) -> np.ndarray:
    """A dim, noisy background, wide for most numbers and tall for every third."""
    long, short = int(rng.integers(78, 91)), int(rng.integers(60, 73))
    shape = (long, short) if number % 3 == 2 else (short, long)
    return rng.integers(20, 60, (*shape, 3)).astype(np.uint8)


def _save_photo(path: Path, image: np.ndarray, number: int) -> None:
    """A JPEG: grey, CMYK (Adobe's inverted kind) or with an EXIF orientation that its mask ignores, by its number."""
    photo, options = Image.fromarray(image), {}
    if number == GREY:
        photo = photo.convert("L")
    elif number == CMYK:
        photo = photo.convert("CMYK")
    elif number == TURNED:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    photo.save(path, quality=95, **options)


def truncate(path: Path) -> None:
    """Cuts a file off in its middle, as a broken download does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# ------------------------------------------------------------------------------------------------ VOC and SBD
def write_pascal(root: Path, seed: int = 0, train: int = 40, val: int = 40, *, truncated: bool = False) -> Truth:
    """VOCdevkit/VOC2012 and benchmark_RELEASE/dataset.

    Of each four train images one is VOC's alone, one is in VOC and SBD (with another SBD mask), one in SBD's train and one in
    SBD's val list; every other val image is in SBD too, and on its lists.
    """
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets" / "Segmentation", sbd / "cls"):
        folder.mkdir(parents=True)
    truth = Truth()
    lists: dict[str, list[str]] = {"voc_train": [], "voc_val": [], "sbd_train": [], "sbd_val": []}
    for split, count, year in (("train", train, 2007), ("val", val, 2009)):
        for number in range(count):
            sample_id = f"{year + number % 2}_{1000 + 7 * number:06d}"
            kinds = TRAIN_KINDS[number % 4] if split == "train" else VAL_KINDS[number % 4]
            for kind in kinds:
                lists[kind].append(sample_id)
            image, mask = _pascal_scene(seeded("official", "pascal", seed, split, number), number)
            _save_photo(voc / "JPEGImages" / f"{sample_id}.jpg", image, number)
            if len(kinds) == 2 or kinds[0].startswith("sbd"):
                _save_mat(sbd / "cls" / f"{sample_id}.mat", np.where(mask == 255, 0, mask).astype(np.uint8))
            if kinds[0].startswith("voc"):
                _save_palette(voc / "SegmentationClass" / f"{sample_id}.png", mask)
            else:
                mask = np.where(mask == 255, 0, mask).astype(np.uint8)
            if truncated and split == "train" and number == TRUNCATED:
                truncate(voc / "JPEGImages" / f"{sample_id}.jpg")
            truth.images[sample_id], truth.masks[sample_id] = image, mask
    for name, ids in lists.items():
        part, split = name.split("_")
        path = voc / "ImageSets" / "Segmentation" / f"{split}.txt" if part == "voc" else sbd / f"{split}.txt"
        path.write_text("".join(f"{s}\n" for s in ids))
    truth.lists = _pascal_lists({name: sorted(ids) for name, ids in lists.items()})
    return truth


def _pascal_lists(lists: dict[str, list[str]]) -> dict[str, list[str]]:
    """The field's lists, image by image."""
    found = {"noduplicate": [], "trainaug": [], "val": lists["voc_val"]}
    for name in ("sbd_train", "voc_train"):
        found["noduplicate"] += [s for s in lists[name] if s not in lists["voc_val"] and s not in found["noduplicate"]]
    everything = sorted({*lists["sbd_train"], *lists["sbd_val"], *lists["voc_train"]})
    found["trainaug"] = [s for s in everything if s not in lists["voc_val"]]
    return found


def _pascal_scene(rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """An ellipse in the left half, a rectangle in the right one; their borders are 255 in the mask."""
    image = _canvas(rng, number)
    mask = np.zeros(image.shape[:2], np.uint8)
    rows, columns = mask.shape
    left, right = number % 20 + 1, (number + 7) % 20 + 1  # of different folds
    centre = (columns // 4 + int(rng.integers(-1, 2)), rows // 2 + int(rng.integers(-4, 5)))
    axes = (columns // 4 - 3, rows // 3)
    corner = (columns // 2 + 3, int(rng.integers(4, rows // 3)))
    far = (columns - 4, corner[1] + rows // 2)
    for target, first, second in ((mask, left, right), (image, colour_of(left), colour_of(right))):
        cv2.ellipse(target, centre, axes, 0, 0, 360, first, -1)
        cv2.rectangle(target, corner, far, second, -1)
    cv2.ellipse(mask, centre, axes, 0, 0, 360, 255, 2)
    cv2.rectangle(mask, corner, far, 255, 2)
    return image, mask


def _save_palette(path: Path, mask: np.ndarray) -> None:
    stored = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
    stored.putpalette([(i * 37) % 256 for i in range(768)])
    stored.save(path)


def _save_mat(path: Path, mask: np.ndarray) -> None:
    """cls/ID.mat as SBD has it: a struct GTcls with Boundaries, Segmentation and CategoriesPresent."""
    from scipy.io import savemat
    from scipy.sparse import csc_matrix

    borders = np.empty((20, 1), object)
    for k in range(20):
        borders[k, 0] = csc_matrix(mask.shape, dtype=np.float64)
    present = np.unique(mask[mask > 0]).astype(np.uint8)[:, None]
    savemat(path, {"GTcls": {"Boundaries": borders, "Segmentation": mask, "CategoriesPresent": present}}, do_compression=True)


# ------------------------------------------------------------------------------------------------------- COCO
def write_coco(root: Path, seed: int = 0, train: int = 54, val: int = 54, *, truncated: bool = False) -> Truth:
    """annotations/instances_*2014.json, train2014/ and val2014/.

    Images number 0 and 1 of each split get a crowd (counts as a list, and compressed); every third object is of two polygons;
    one image more has a crowd alone and one has nothing: they are on no list.
    """
    (root / "annotations").mkdir(parents=True)
    truth = Truth()
    for split, count in (("train", train), ("val", val)):
        part = f"{split}2014"
        (root / part).mkdir()
        names, images, annotations = [], [], []
        for number in range(count + 2):
            image_id = (number * 7919 + seed + 17) % 500_000
            sample_id = f"COCO_{part}_{image_id:012d}"
            image, objects = _coco_scene(seeded("official", "coco", seed, split, number), number, count)
            _save_photo(root / part / f"{sample_id}.jpg", image, number)
            if truncated and split == "train" and number == TRUNCATED:
                truncate(root / part / f"{sample_id}.jpg")
            images.append({"id": image_id, "file_name": f"{sample_id}.jpg", "height": image.shape[0], "width": image.shape[1]})
            for class_id, crowd, rectangles in objects:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": CATEGORY_IDS[class_id - 1],
                        "iscrowd": int(crowd),
                        "segmentation": _region(image.shape[:2], crowd, rectangles, number),
                    }
                )
            if number < count:
                names.append(sample_id)
            truth.images[sample_id], truth.objects[sample_id] = image, objects
            truth.masks[sample_id] = painted(image.shape[:2], objects, "all_polygons")
        truth.lists[split] = sorted(names)
        _save_instances(root / "annotations" / f"instances_{part}.json", images, annotations)
    return truth


def _save_instances(path: Path, images: list, annotations: list) -> None:
    categories = [{"id": k, "name": n} for k, n in zip(CATEGORY_IDS, coco.CLASSES, strict=True)]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories[::-1]}
    path.write_text(json.dumps(content))


def _coco_scene(rng: np.random.Generator, number: int, count: int) -> tuple[np.ndarray, list]:
    """Three objects in three columns; a crowd over the lower rows of the first two images."""
    image = _canvas(rng, number)
    rows, columns = image.shape[:2]
    objects = []
    for place in range(3 if number < count else 0):
        left, top = place * columns // 3 + 2, int(rng.integers(3, 10))
        right, bottom = (place + 1) * columns // 3 - 2, rows - int(rng.integers(4, 10))
        rectangles = [(left, top, right, bottom)]
        if (number + place) % 3 == 0:  # hidden in the middle: two polygons
            rectangles = [(left, top, right, rows // 2 - 2), (left, rows // 2 + 3, right, bottom)]
        objects.append(((3 * number + place) % 80 + 1, False, rectangles))
    if number in (0, 1, count):
        objects.insert(min(number, len(objects)), (5, True, [(0, rows - 9, columns - 1, rows - 6)]))
    for class_id, crowd, rectangles in objects:
        for left, top, right, bottom in rectangles:
            image[top : bottom + 1, left : right + 1] = (90, 90, 90) if crowd else colour_of(class_id)
    return image, objects


def _region(shape: tuple[int, ...], crowd: bool, rectangles: list, number: int) -> object:
    """Polygons with corners between whole pixels, or for a crowd the run lengths, as a list or compressed."""
    if not crowd:
        return [[x + 0.4, y + 0.3, x2 + 0.7, y + 0.2, x2 + 0.1, y2 + 0.9, x, y2 + 0.5] for x, y, x2, y2 in rectangles]
    from pycocotools import mask as coder

    pixels = painted(shape, [(1, False, rectangles)], "all_polygons")
    if number == 1:
        encoded = coder.encode(np.asfortranarray(pixels))
        return {"size": list(shape), "counts": encoded["counts"].decode()}
    flat = pixels.T.ravel()
    starts = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": list(shape), "counts": np.diff([0, *starts, flat.size]).tolist()}


def painted(shape: tuple[int, ...], objects: list, variant: coco.Variant) -> np.ndarray:
    """The mask of rectangles by the plain rule: in order, ends included; crowds as 255 or not at all."""
    mask = np.zeros(shape, np.uint8)
    for class_id, crowd, rectangles in objects:
        if crowd and variant != "crowd255":
            continue
        for x, y, x2, y2 in rectangles[:1] if variant == "first_polygon" else rectangles:
            mask[y : y2 + 1, x : x2 + 1] = 255 if crowd else class_id
    return mask
