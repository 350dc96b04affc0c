"""COCO: masks in all three variants against a slow plain rule, lists, oddities, and what is refused."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coder

from syn4seg.data.coco import CLASSES, CocoDataset, Photo, draw_mask, read_annotations
from syn4seg.data.datasets import class_areas, fold_of
from syn4seg.data.prepare import prepare_coco
from syn4seg.data.support import draw_support
from syn4seg.errors import UserError
from tests.official import CATEGORY_IDS, CMYK, GREY, TURNED, painted, write_coco

VARIANTS = ("all_polygons", "first_polygon", "crowd255")


def _silent(*_):
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    truth = write_coco(root)
    for variant in VARIANTS:
        prepare_coco(root, variant, progress=_silent, note=_silent)
    return root, truth


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_pixels_and_areas_follow_the_plain_rule_of_their_variant(made, variant):
    root, truth = made
    dataset = CocoDataset(root, variant)
    dataset.check()
    for sample_id in (*dataset.train, *dataset.val):
        mask = painted(truth.images[sample_id].shape[:2], truth.objects[sample_id], variant)
        assert np.array_equal(dataset.mask(sample_id), mask)
        assert dataset.areas(sample_id) == class_areas(mask)
        assert dataset.pixels(sample_id) == {k: int((mask == k).sum()) for k in dataset.areas(sample_id)}


def test_the_variants_differ_where_crowds_and_second_polygons_are(made):
    root, truth = made
    a, b, c = (CocoDataset(root, v) for v in VARIANTS)
    crowded = [s for s in a.train if any(crowd for _, crowd, _ in truth.objects[s])]
    parted = [s for s in a.train if any(len(r) > 1 for _, _, r in truth.objects[s])]
    assert len(crowded) == 2 and len(parted) > 10
    assert all((c.mask(s) == 255).any() for s in crowded)
    assert not any((d.mask(s) == 255).any() for d in (a, b) for s in crowded)
    assert all(sum(b.pixels(s).values()) < sum(a.pixels(s).values()) for s in parted)
    whole = [s for s in a.train if s not in crowded and s not in parted]
    assert all(np.array_equal(a.mask(s), d.mask(s)) for d in (b, c) for s in whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lists_ascend_and_hold_the_images_with_an_instance_that_is_no_crowd(made, variant):
    root, truth = made
    dataset = CocoDataset(root, variant)
    for split, ids in (("train", dataset.train), ("val", dataset.val)):
        assert ids == truth.lists[split] == sorted(ids)
        expected = {s for s, objects in truth.objects.items() if f"_{split}2014_" in s and any(not o[1] for o in objects)}
        assert set(ids) == expected and len(truth.objects) > 2 * len(ids)


def test_photos_are_rgb_as_stored(made):
    root, truth = made
    dataset = CocoDataset(root)
    modes = set()
    for sample_id in dataset.train:
        image, drawn = dataset.image(sample_id), truth.images[sample_id]
        modes.add(Image.open(dataset.image_path(sample_id)).mode)
        assert image.shape == drawn.shape
        if not np.array_equal(image[..., 0], image[..., 1]):
            assert np.abs(image.astype(int) - drawn).mean() < 10
    assert modes == {"RGB", "L", "CMYK"} and {GREY, CMYK, TURNED} <= set(range(len(dataset.train)))


def test_every_fold_draws_supports_from_both_lists(made):
    dataset = CocoDataset(made[0], "first_polygon")
    for number in range(4):
        for source in ("train", "val"):
            fold = fold_of(dataset, number)
            support = draw_support(dataset, fold, 1, 0, seed=1, min_area=0.0, min_pixels=200, source=source)
            assert all(dataset.pixels(ids[0])[k] >= 200 for k, ids in support.items())


def test_another_variant_is_not_prepared_and_the_remedy_is_named(made, tmp_path):
    shutil.copytree(made[0] / "syn4seg-coco" / "all_polygons", tmp_path / "syn4seg-coco" / "all_polygons")
    assert CocoDataset(tmp_path).train
    with pytest.raises(UserError, match=rf"run `syn4seg prepare coco {tmp_path} --masks crowd255`"):
        CocoDataset(tmp_path, "crowd255")
    with pytest.raises(UserError, match=r"masks='\.\./x': expected one of all_polygons, first_polygon, crowd255"):
        CocoDataset(tmp_path, "../x")  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------------------- drawing
@pytest.mark.parametrize("seed", range(6))
def test_a_polygon_is_what_pycocotools_draws_but_for_its_border(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    corners = np.stack([50 + 30 * np.cos(angles), 40 + 25 * np.sin(angles)], 1)
    drawn = draw_mask(Photo("x", 80, 100, [(9, False, [corners.astype(np.int32)])]), "all_polygons") == 9
    exact = coder.decode(coder.frPyObjects([corners.ravel().tolist()], 80, 100))[..., 0]
    square = np.ones((5, 5), np.uint8)
    assert drawn[cv2.erode(exact, square) > 0].all() and not drawn[cv2.dilate(exact, square) == 0].any()


def test_run_lengths_are_read_as_a_list_and_compressed_and_later_objects_lie_on_top():
    region = np.zeros((7, 5), np.uint8)
    region[2:5, 1:3] = 1
    packed = coder.encode(np.asfortranarray(region))
    plain = {"size": [7, 5], "counts": [9, 3, 4, 3, 16]}
    whole = [np.array([[0, 0], [4, 0], [4, 6], [0, 6]], np.int32)]
    for code in (plain, {"size": [7, 5], "counts": packed["counts"].decode()}):
        above = draw_mask(Photo("x", 7, 5, [(3, False, whole), (80, False, code)]), "first_polygon")
        assert np.array_equal(above, np.where(region, 80, 3))
        assert np.array_equal(
            draw_mask(Photo("x", 7, 5, [(3, False, whole), (80, True, code)]), "crowd255"), np.where(region, 255, 3)
        )
        assert (draw_mask(Photo("x", 7, 5, [(80, True, code), (3, False, whole)]), "crowd255") == 3).all()


@pytest.mark.parametrize(
    "code",
    [
        {"size": [7, 5], "counts": [1, 2]},
        {"size": [7, 5], "counts": [40, -5]},
        {"size": [5, 7], "counts": [35]},
        {"size": [7, 5], "counts": "zz~"},
        {"size": [7, 5], "counts": 3},
        {"size": [7, 5]},
        {"counts": [35]},
    ],
)
def test_run_lengths_that_do_not_fit_name_their_image(code):
    with pytest.raises(UserError, match=r"COCO_x.*unpack annotations_trainval2014"):
        draw_mask(Photo("COCO_x", 7, 5, [(3, False, code)]), "all_polygons")


# ------------------------------------------------------------------------------------------ annotation files
CATEGORIES = [{"id": k, "name": n} for k, n in zip(CATEGORY_IDS, CLASSES, strict=True)]
IMAGE = {"id": 1, "file_name": "COCO_val2014_000000000001.jpg", "height": 4, "width": 6}
OBJECT = {"image_id": 1, "category_id": 90, "iscrowd": 0, "segmentation": [[0, 0, 3.9, 0, 3, 3]]}


def _file(tmp_path, **changes):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [IMAGE], "annotations": [OBJECT], "categories": CATEGORIES} | changes))
    return path


def test_category_ids_become_contiguous_in_ascending_order_whatever_the_file_s_order(tmp_path):
    assert CATEGORY_IDS[-1] == 90 and len(CATEGORY_IDS) == 80
    objects = [OBJECT | {"category_id": k} for k in CATEGORY_IDS]
    (photo,) = read_annotations(_file(tmp_path, annotations=objects, categories=CATEGORIES[::-1]))
    assert [o[0] for o in photo.objects] == list(range(1, 81))
    assert photo.objects[0][2][0].tolist() == [[0, 0], [3, 0], [3, 3]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": CATEGORIES[:-1]}, "79 categories"),
        ({"categories": [CATEGORIES[0] | {"name": "robot"}, *CATEGORIES[1:]]}, "'robot'"),
        ({"images": [IMAGE | {"file_name": "../../COCO_val2014_000000000001.jpg"}]}, "is none of COCO 2014"),
        ({"images": [IMAGE | {"height": 10**6, "width": 10**6}]}, "is none of COCO 2014"),
        ({"images": [{"id": 1}]}, "KeyError"),
        ({"annotations": [OBJECT, OBJECT | {"image_id": 5}]}, "annotation 1 is malformed"),
        ({"annotations": [OBJECT | {"category_id": 12}]}, "annotation 0 is malformed"),
        ({"annotations": [OBJECT | {"segmentation": [[1, 2, 3]]}]}, "annotation 0 is malformed"),
        ({"annotations": [OBJECT | {"segmentation": [["a", "b"]]}]}, "annotation 0 is malformed"),
    ],
)
def test_a_wrong_annotation_file_is_refused_by_name(tmp_path, changes, words):
    with pytest.raises(UserError, match=rf"instances\.json.*{words}.*unpack annotations_trainval2014\.zip again"):
        read_annotations(_file(tmp_path, **changes))


def test_a_cut_annotation_file_is_refused_by_name(tmp_path):
    path = _file(tmp_path)
    path.write_text(path.read_text()[:-10])
    with pytest.raises(UserError, match=r"instances\.json is not a file of COCO instances"):
        read_annotations(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"instances\.json"):
        read_annotations(path)
