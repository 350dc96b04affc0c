"""COCO exports: instances are connected components, and panoptic pixels come back."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from scipy import ndimage

from tests.shared_exports import export


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
