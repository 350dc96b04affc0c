"""Published lists: what the code says about them is what they are, and our derivations give them, in their order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from syn4seg.data import coco, pascal
from syn4seg.data.published import LISTS, compare, ids_digest

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "lists"
WITH_REFERENCE = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published lists are not at shared/reference/lists")


def published(name: str) -> list[str]:
    """Ids of a published list, in its order; lists of pairs give the name of the image."""
    return [Path(line.split()[0]).stem for line in (REFERENCE / name).read_text().splitlines()]


FILES = {
    ("pascal", "noduplicate"): "sinahmr_DIaM/pascal/train.txt",
    ("pascal", "trainaug"): "lsa1997_POP/voc/trainaug.txt",
    ("pascal", "val"): "sinahmr_DIaM/pascal/val.txt",
    ("coco", "train"): "lsa1997_POP/coco/train.txt",
    ("coco", "val"): "sinahmr_DIaM/coco/val.txt",
}


@WITH_REFERENCE
@pytest.mark.parametrize(("dataset", "name"), FILES)
def test_counts_and_digests_are_those_of_the_published_lists(dataset, name):
    ids = published(FILES[dataset, name])
    assert LISTS[dataset][name] == (len(ids), ids_digest(ids))
    assert compare(dataset, name, ids[::-1]) == (True, f"{dataset} {name}: equal to the published list ({len(ids)})")
    assert not compare(dataset, name, ids[1:])[0]
    assert not compare(dataset, name, [*ids[1:], "another"])[0]


@WITH_REFERENCE
def test_both_families_have_the_same_val_lists():
    assert published("sinahmr_DIaM/pascal/val.txt") == published("lsa1997_POP/voc/val.txt")
    assert published("sinahmr_DIaM/coco/val.txt") == published("lsa1997_POP/coco/val.txt")


def _official_lists() -> dict[str, list[str]]:
    """Lists of VOC and SBD that fit the published ones: VOC's 330 train images outside SBD's train list, 1134 inside."""
    noduplicate, trainaug, val = (published(FILES["pascal", n]) for n in ("noduplicate", "trainaug", "val"))
    return {
        "voc_train": sorted([*noduplicate[5623:], *noduplicate[:1134]]),
        "voc_val": val,
        "sbd_train": sorted([*noduplicate[:5623], *val[::3]]),
        "sbd_val": sorted([*(set(trainaug) - set(noduplicate)), *val[1::3]]),
    }


@WITH_REFERENCE
def test_the_pascal_lists_are_derived_in_their_published_order_from_lists_in_any_order(tmp_path):
    official = _official_lists()
    assert len(official["voc_train"]) == 1464
    for name, ids in official.items():
        (tmp_path / name).write_text("".join(f"{s}\n" for s in reversed(ids)))
    derived = pascal.derive_lists(**{name: pascal.read_ids(tmp_path / name) for name in official})
    for name, ids in derived.items():
        assert ids == published(FILES["pascal", name])
        assert compare("pascal", name, ids)[0]
    assert not set(derived["trainaug"]) & set(derived["val"])
    assert set(derived["noduplicate"]) < set(derived["trainaug"])


@WITH_REFERENCE
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_coco_lists_are_the_images_with_an_instance(tmp_path, split):
    ids = published(FILES["coco", split])
    named = [{"id": int(s[-12:]), "file_name": f"{s}.jpg", "height": 2, "width": 2} for s in ids]
    empty = {"id": 999_999, "file_name": f"COCO_{split}2014_000000999999.jpg", "height": 2, "width": 2}
    polygon = [[0, 0, 1, 0, 1, 1]]
    objects = [{"image_id": n["id"], "category_id": 7, "iscrowd": 0, "segmentation": polygon} for n in named]
    categories = [{"id": k + 5, "name": n} for k, n in enumerate(coco.CLASSES)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [*named, empty], "annotations": objects, "categories": categories}))
    derived = [photo.sample_id for photo in coco.read_annotations(path) if photo.listed]
    assert compare("coco", split, derived)[0]
    assert derived == sorted(ids)


@WITH_REFERENCE
def test_folds_and_class_order_are_the_published_ones():
    table = json.loads((REFERENCE / "classes_and_folds.json").read_text())
    alias = {"tv monitor": "tv", "couch": "sofa"}
    for name, key, module in (("pascal", "pascal5i", pascal), ("coco", "coco20i", coco)):
        assert [list(f) for f in module.FOLDS] == [table[key][str(f)] for f in range(4)]
        theirs = [table["names"][name][str(k)].replace(" ", "") for k in range(1, len(module.CLASSES) + 1)]
        assert [alias.get(n, n).replace(" ", "") for n in module.CLASSES] == theirs


def test_folds_part_the_classes_and_names_are_safe():
    for module, count in ((pascal, 20), (coco, 80)):
        assert sorted(k for fold in module.FOLDS for k in fold) == list(range(1, count + 1))
        assert len(set(module.CLASSES)) == count
        assert all(n.replace(" ", "").isalpha() and n == " ".join(n.split()) for n in module.CLASSES)


def test_a_digest_ignores_order_and_nothing_else():
    assert ids_digest(["b", "a"]) == ids_digest(["a", "b"]) != ids_digest(["a", "bb"])
    assert ids_digest(["a", "b"]) == "7e18f737311b2dc3b2f269dd78396b0351f14fb66efa879f768cb23181883c78"
