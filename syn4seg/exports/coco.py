"""COCO: panoptic (every pixel) and instances (foreground). There is no instance truth: an instance is a connected component.

Category ids of classes are label values. The background is stuff (isthing 0) of the panoptic files, under the id after the last
class: 0 stands for "no label" in the tools that turn a panoptic file into semantic maps. In panoptic PNGs 0 is unlabeled (255),
1 the background, 2... the components of the image.
The annotations of a panoptic file have an `id` and a `category_id` (of the image's novel class) more than COCO's own, which
pycocotools cannot open.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from syn4seg.exports.info import ExportInfo, Parts, palette
from syn4seg.labeling.components import Components, find_components
from syn4seg.schema import BACKGROUND, UNLABELED
from syn4seg.store.files import explain_errors, map_threads
from syn4seg.store.images import encode_image

if TYPE_CHECKING:
    from syn4seg.exports.samples import ExportSample
    from syn4seg.exports.target import Target

TRUTH = "instances are 8-connected components of each class in the label: there is no instance truth"


def coco(parts: Parts, target: Target, info: ExportInfo) -> None:
    """Write images/ID.png, annotations/{instances,panoptic}_SPLIT.json and annotations/panoptic_SPLIT/ID.png."""
    image_id, segment_id, background = itertools.count(1), itertools.count(1), len(info.classes)
    for split, some in itertools.groupby(parts, key=itemgetter(0)):
        with (
            _lists(target, f"annotations/instances_{split}.json", _head(info, things_only=True)) as instances,
            _lists(target, f"annotations/panoptic_{split}.json", _head(info, things_only=False)) as panoptic,
        ):
            for _, items in some:
                written = map_threads(lambda item: _write_images(item, target, background), items)
                for item, annotations in zip(items, written, strict=True):
                    number = next(image_id)
                    image = _image(item, number)
                    instances.add("images", image)
                    panoptic.add("images", image)
                    for segment in annotations.instances:
                        instances.add("annotations", segment | {"id": next(segment_id), "image_id": number})
                    whole = {"image_id": number, "file_name": image["file_name"], "segments_info": annotations.segments}
                    panoptic.add("annotations", whole | {"id": number, "category_id": item.row["class_id"] or background})


class _Annotations:
    """The two kinds of annotations of one label; `background` is the category id of its background."""

    def __init__(self, label: np.ndarray, background: int):
        regions = find_components(label)
        self.instances = [
            {"category_id": int(category), "segmentation": rle, "area": int(area), "bbox": _box(box), "iscrowd": 0}
            for category, rle, area, box in zip(regions.class_index, run_lengths(regions), regions.area, regions.box, strict=True)
        ]
        self.pixels = np.where(regions.map > 0, regions.map + 1, (label == BACKGROUND).astype(np.int32))
        ground = np.argwhere(label == BACKGROUND)
        self.segments = [
            {key: instance[key] for key in ("category_id", "area", "bbox", "iscrowd")} | {"id": i + 2}
            for i, instance in enumerate(self.instances)
        ]
        if len(ground):
            (top, left), (bottom, right) = ground.min(0), ground.max(0) + 1
            box = _box([left, top, right, bottom])
            whole = {"id": 1, "category_id": background, "area": len(ground), "bbox": box, "iscrowd": 0}
            self.segments.insert(0, whole)


def _write_images(item: ExportSample, target: Target, background: int) -> _Annotations:
    annotations, name = _Annotations(item.label, background), f"{item.sample_id}.png"
    shifts = np.array([0, 8, 16])
    target.write(f"images/{name}", encode_image(item.image))
    ids = (annotations.pixels[..., None] >> shifts & 255).astype(np.uint8)  # R + 256 G + 65536 B
    target.write(f"annotations/panoptic_{item.row['split']}/{name}", encode_image(ids))
    return annotations


def run_lengths(regions: Components) -> list[dict[str, Any]]:
    """Return COCO's compressed run-length code of each component, from one sort of all pixels by component and column."""
    from pycocotools import mask

    height, width = regions.map.shape
    flat = regions.map.ravel(order="F")
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(1, len(regions.area) + 2))
    codes = []
    for start, end in itertools.pairwise(bounds):
        pixels = order[start:end]
        cuts = np.flatnonzero(np.diff(pixels) > 1)
        edges = np.stack([pixels[np.r_[0, cuts + 1]], pixels[np.r_[cuts, -1]] + 1], 1).ravel()
        counts = np.diff(edges, prepend=0, append=height * width).tolist()
        code = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        codes.append({"size": [height, width], "counts": code["counts"].decode()})  # pyright: ignore[reportAttributeAccessIssue]
    return codes


def _box(box: Any) -> list[int]:
    """Convert XYXY in pixels, inclusive-exclusive, to COCO's XYWH."""
    left, top, right, bottom = (int(x) for x in box)
    return [left, top, right - left, bottom - top]


def _image(item: ExportSample, number: int) -> dict[str, Any]:
    height, width = item.label.shape
    return {"id": number, "file_name": f"{item.sample_id}.png", "height": height, "width": width, "license": 1, "lineage": item.row}


def _head(info: ExportInfo, things_only: bool) -> dict[str, Any]:
    text = "; ".join(f"{model}: {licence}" for model, licence in info.licences.items())
    colours = palette(len(info.classes)).tolist()
    categories = [
        {"id": i, "name": name, "supercategory": "", "isthing": 1, "color": colours[i]}
        for i, name in enumerate(info.classes)
        if i != BACKGROUND
    ]
    if not things_only:
        name, colour = info.classes[BACKGROUND], colours[BACKGROUND]
        categories.append({"id": len(info.classes), "name": name, "supercategory": name, "isthing": 0, "color": colour})
    return {
        "info": {"description": f"{info.name}; {TRUTH}; unlabeled is {UNLABELED} in the label and 0 in panoptic PNGs"},
        "licenses": [{"id": 1, "name": text, "url": ""}],
        "categories": categories,
    }


class _Lists:
    """The two long lists of a COCO file, kept in temporary files until both are whole."""

    def __init__(self, files: dict[str, IO[str]]):
        self.files = files

    def add(self, name: str, value: dict[str, Any]) -> None:
        file = self.files[name]
        file.write((",\n" if file.tell() else "\n") + json.dumps(value, sort_keys=True))


@contextlib.contextmanager
def _lists(target: Target, name: str, head: dict[str, Any]) -> Iterator[_Lists]:
    """Write a COCO file entry by entry, never as a whole in memory.

    Raises:
        StoreError: it or its temporary files, which have no name, cannot be written.
    """
    temporary = Path(tempfile.gettempdir(), "a temporary file of the export")
    with explain_errors(temporary, "written"), contextlib.ExitStack() as stack:
        lists = _Lists({key: stack.enter_context(tempfile.TemporaryFile("w+")) for key in ("images", "annotations")})
        yield lists
        for file in lists.files.values():
            file.seek(0)  # writes what is still in memory, before the other file is begun
        out = stack.enter_context(stack.enter_context(target.published(name)).open("w", newline="\n"))
        out.write("{" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()))
        for key, file in lists.files.items():
            out.write(f',\n"{key}": [')
            shutil.copyfileobj(file, out)
            out.write("\n]")
        out.write("}\n")
