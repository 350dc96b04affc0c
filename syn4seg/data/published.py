"""What the field has published about its lists, as digests: no list is shipped, every one is derived and then compared.

The digest of a list is the SHA-256 of its sorted ids joined by newlines, so it says nothing about order. Counts and lists:
BAM, DIaM and BCM (noduplicate, both val lists), CAPL and POP (trainaug, COCO's train list).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """An official download.

    Attributes:
        name: file name.
        size: of the download, in words.
        source: address.
        unpack: where it is unpacked; {root} stands for the data folder.
    """

    name: str
    size: str
    source: str
    unpack: str

    def where(self, root: object) -> str:
        """Return one line: what to download, how large it is, where it goes."""
        return f"{self.name} ({self.size}, {self.source}), unpacked in {self.unpack.format(root=root)}"


VOC = Archive(
    "VOCtrainval_11-May-2012.tar", "2.0 GB", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/", "{root} (makes VOCdevkit/VOC2012)"
)
SBD = Archive(
    "benchmark.tgz",
    "1.4 GB",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/",
    "{root} (makes benchmark_RELEASE/dataset)",
)
COCO_ANNOTATIONS = Archive(
    "annotations_trainval2014.zip", "253 MB", "http://images.cocodataset.org/annotations/", "{root} (makes annotations/)"
)
COCO_IMAGES = {
    "train2014": Archive("train2014.zip", "13.5 GB", "http://images.cocodataset.org/zips/", "{root} (makes train2014/)"),
    "val2014": Archive("val2014.zip", "6.6 GB", "http://images.cocodataset.org/zips/", "{root} (makes val2014/)"),
}

LISTS = {
    "pascal": {
        "noduplicate": (5953, "677f4a7eaef19497f8c70f34168a39ee0f71ca8fc03e9525b0609f409b9fd247"),
        "trainaug": (10582, "855dff350b7f447bf43cb98ea626a32e0d0b3b7c5786e03b2712a21355b635bf"),
        "val": (1449, "6f8edc37993764f6e212237d39546fb595246244147e8a050813c520aac0ade1"),
    },
    "coco": {
        "train": (82081, "90d248d90d7100693e3df06da665fef4ec4d0508976de1a46a876a34fc93eb2e"),
        "val": (40137, "ef820c89e3de866bc65018a3402b37a236a703307e7012640d0663a69ca939a0"),
    },
}
"""Data set -> list -> (number of ids, digest)."""


def ids_digest(ids: Iterable[str]) -> str:
    """Return the SHA-256 (64 hex digits) of the sorted ids joined by newlines."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def compare(dataset: str, name: str, ids: Sequence[str]) -> tuple[bool, str]:
    """Return whether a derived list has the published ids, and a sentence about it."""
    count, digest = LISTS[dataset][name]
    if len(ids) == count and ids_digest(ids) == digest:
        return True, f"{dataset} {name}: equal to the published list ({count})"
    return False, (
        f"{dataset} {name}: {len(ids)} ids, not the published list ({count}); numbers will not be comparable with published ones"
    )
