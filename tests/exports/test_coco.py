"""COCO exports: instances are connected components, and panoptic pixels come back."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
from scipy import ndimage

from syn4seg.exports.coco import _Annotations
from tests.shared_exports import export, pixels


def test_instances_are_the_connected_components_of_each_class(made, tmp_path):
    from pycocotools import mask
    from pycocotools.coco import COCO

    run, config, truth = made
    export(run, config, tmp_path / "out", "coco")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "out" / "annotations" / "instances_train.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "dog", "toy car", "bird.x"]
    for image in coco.imgs.values():
        label = truth[image["lineage"]["sample_id"]].label
        masks = {(a["category_id"], coco.annToMask(a).tobytes()) for a in coco.imgToAnns[image["id"]]}
        parts = [(k, ndimage.label(label == k, np.ones((3, 3)))) for k in range(1, 5)]
        assert masks == {(k, (found == i + 1).astype(np.uint8).tobytes()) for k, (found, n) in parts for i in range(n)}
        for one in coco.imgToAnns[image["id"]]:
            assert one["area"] == mask.area(one["segmentation"]) and one["bbox"] == mask.toBbox(one["segmentation"]).tolist()
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))


# By the rules of panopticapi (which is not on the package index): `pq_compute`, and `panoptic2semantic_segmentation`.
def read_panoptic(folder, split):
    """Yield the categories, then (label that was exported, segment ids of the PNG, segments) of every image."""
    about = json.loads((folder / "annotations" / f"panoptic_{split}.json").read_text())
    yield {one["id"]: one for one in about["categories"]}
    images = {image["id"]: image for image in about["images"]}
    for entry in about["annotations"]:
        colours = pixels(folder / "annotations" / f"panoptic_{split}" / entry["file_name"]).astype(np.int64)
        yield images[entry["image_id"]]["lineage"]["sample_id"], colours @ [1, 256, 256**2], entry["segments_info"]


def test_the_background_is_stuff_and_unlabeled_is_void_by_the_rules_of_panopticapi(made, tmp_path):
    run, config, truth = made
    export(run, config, tmp_path / "out", "coco")
    categories, *images = read_panoptic(tmp_path / "out", "train")
    assert [(k, c["name"], c["isthing"]) for k, c in categories.items()] == [
        *((k, name, 1) for k, name in enumerate(["cat", "dog", "toy car", "bird.x"], 1)),
        (5, "background", 0),
    ]
    assert len(images) == 12
    for sample_id, ids, segments in images:
        label, areas = truth[sample_id].label, dict(zip(*np.unique(ids, return_counts=True), strict=True))
        void = areas.pop(0)
        assert void == (label == 255).sum() > 0
        assert {s["id"]: s["area"] for s in segments} == areas and all(s["category_id"] in categories for s in segments)
        assert all(s["iscrowd"] == 0 for s in segments)
        ground = [s for s in segments if categories[s["category_id"]]["isthing"] == 0]
        assert len(ground) == 1 and ((ids == ground[0]["id"]) == (label == 0)).all()
        semantic = np.zeros(ids.shape, np.uint8)
        for segment in segments:
            semantic[ids == segment["id"]] = segment["category_id"]
        assert ((semantic == 0) == (label == 255)).all(), "as a semantic map, 0 is what has no label, and nothing else"


def test_datumaro_finds_its_masks_and_every_category(made, tmp_path):
    """By the rules of datumaro's reader of `coco_panoptic`: masks lie in the folder that is named as the file, ids of segments and
    categories are integers above 0, and nothing else in the folder looks like a file of annotations."""
    run, config, _ = made
    export(run, config, tmp_path / "out", "coco")
    tasks = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").glob("**/*_*.json"))
    assert tasks == ["annotations/instances_train.json", "annotations/panoptic_train.json"]
    about = json.loads((tmp_path / "out" / tasks[1]).read_text())
    known = {category["id"] for category in about["categories"]}
    assert len({category["name"] for category in about["categories"]}) == len(known)
    for entry in about["annotations"]:
        assert (tmp_path / "out" / tasks[1].removesuffix(".json") / entry["file_name"]).is_file()
        for segment in entry["segments_info"]:
            assert segment["category_id"] in known - {0} and segment["id"] > 0 and isinstance(segment["iscrowd"], int)
    assert not (tmp_path / "out/dataset_meta.json").exists(), "it would count categories from the background on"


def test_instances_have_things_alone_and_pycocotools_knows_the_background_of_the_panoptic_file(made, tmp_path):
    from pycocotools.coco import COCO

    run, config, _ = made
    export(run, config, tmp_path / "out", "coco")
    with contextlib.redirect_stdout(io.StringIO()):
        found = {kind: COCO(tmp_path / "out" / "annotations" / f"{kind}_train.json") for kind in ("instances", "panoptic")}
    assert found["instances"].getCatIds() == [1, 2, 3, 4]
    assert found["panoptic"].getCatIds(catNms=["background"]) == found["panoptic"].getCatIds(supNms=["background"]) == [5]
    assert not any(k in found["panoptic"].cats for k in (0, 255))


def test_a_label_without_background_or_without_any_label_has_no_such_segment(tmp_path):
    assert [s["category_id"] for s in _Annotations(np.full((4, 4), 2, np.uint8), 5).segments] == [2]
    assert _Annotations(np.full((4, 4), 255, np.uint8), 5).segments == []
    assert not _Annotations(np.full((4, 4), 255, np.uint8), 5).pixels.any()
