"""COCO 2014 from the official files: annotations to masks of dataset ids, in the three variants that the field uses.

    ROOT/annotations/instances_{train,val}2014.json  ROOT/train2014/  ROOT/val2014/     official
    ROOT/syn4seg-coco/VARIANT/                       made by `syn4seg prepare coco ROOT --masks VARIANT`

Masks are drawn as DIaM's and POP's scripts draw them, so that pixels are counted alike: corners cut to whole pixels,
`cv2.fillPoly` with its border pixels, instances in the order of the file, later ones over earlier ones. Run-length encoded
regions (crowds) go through pycocotools. Category ids are made contiguous, 1..80 in ascending order.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np

from syn4seg.data.photos import MAX_PIXELS
from syn4seg.data.prepared import PreparedDataset
from syn4seg.data.regions import decode_runs
from syn4seg.errors import UserError
from syn4seg.schema import UNLABELED

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking "
    "meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, "
    "suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis "
    "racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, "
    "pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell "
    "phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
CLASSES: tuple[str, ...] = tuple(_NAMES.split(", "))
"""By dataset id: COCO's own names, checked against those of the annotation files."""
FOLDS = tuple(tuple(range(f + 1, 81, 4)) for f in range(4))
"""COCO-20i, interleaved."""
Variant = Literal["all_polygons", "first_polygon", "crowd255"]
SPLITS = {"train": "train2014", "val": "val2014"}
_NAME = re.compile(r"(COCO_(?:train|val)2014_\d{12})\.jpg")
_MAX_JSON = 2_000_000_000  # bytes; the official train file has 0.33 GB


class CocoDataset(PreparedDataset):
    """COCO-20i.

    Args:
        root: folder that holds train2014/, val2014/ and the prepared folder.
        masks: "all_polygons" (POP), "first_polygon" (DIaM: the first polygon of each instance alone), both without
            crowds; or "crowd255" (CAPL, VP: all polygons, crowd regions unlabeled).

    Raises:
        UserError: this variant is not prepared.
    """

    classes: tuple[str, ...] = CLASSES
    folds: tuple[tuple[int, ...], ...] = FOLDS

    def __init__(self, root: str | Path, masks: Variant = "all_polygons"):
        option = "" if masks == "all_polygons" else f" --masks {masks}"
        root = Path(root)
        super().__init__(root, prepared_folder(root, masks), "train", f"syn4seg prepare coco {root}{option}")

    def image_path(self, sample_id: str) -> Path:
        """Return train2014/ID.jpg or val2014/ID.jpg."""
        return self.root / ("train2014" if "_train2014_" in sample_id else "val2014") / f"{sample_id}.jpg"


def prepared_folder(root: Path, masks: Variant) -> Path:
    """Return the folder that `syn4seg prepare coco` writes; the variants lie beside each other.

    Raises:
        UserError: there is no such variant.
    """
    if masks not in get_args(Variant):
        raise UserError(f"masks={masks!r}: expected one of {', '.join(get_args(Variant))}")
    return root / "syn4seg-coco" / masks


@dataclass(frozen=True)
class Photo:
    """An image of an annotation file.

    Attributes:
        sample_id: file name without suffix.
        height: rows.
        width: columns.
        objects: per instance, in the order of the file: dataset id, whether it is a crowd, and its region: int32 (N, 2)
            polygons (column, row) or a run-length encoding.
    """

    sample_id: str
    height: int
    width: int
    objects: list[tuple[int, bool, list[np.ndarray] | dict[str, Any]]]

    @property
    def listed(self) -> bool:
        """Whether the lists of the field hold the photo: it has an instance that is no crowd, else DIaM's script writes no mask."""
        return any(not crowd for _, crowd, _ in self.objects)


def read_annotations(path: Path) -> list[Photo]:
    """Read every image of an instances file, sorted by id.

    Raises:
        UserError: damaged, or not COCO's instances.
    """
    again = "unpack annotations_trainval2014.zip again"
    if path.stat().st_size > _MAX_JSON:
        raise UserError(f"{path} has {path.stat().st_size} bytes; expected at most {_MAX_JSON}: {again}")
    try:
        content = json.loads(path.read_bytes())
        index = _class_ids(content["categories"])
        photos = {image["id"]: _photo(image) for image in content["images"]}
        annotations = content.pop("annotations")
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of COCO instances ({type(error).__name__}: {error}); {again}") from error
    for number in range(len(annotations)):
        item, annotations[number] = annotations[number], None  # frees the text's numbers while arrays take their place
        try:
            region = item["segmentation"]
            if not isinstance(region, dict):
                region = [np.asarray(p, np.float64).reshape(-1, 2).astype(np.int32) for p in region if len(p)]
            photos[item["image_id"]].objects.append((index[item["category_id"]], bool(item["iscrowd"]), region))
        except (UserError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: annotation {number} is malformed ({type(error).__name__}: {error}); {again}") from error
    return sorted(photos.values(), key=lambda photo: photo.sample_id)


def _class_ids(categories: list[dict[str, Any]]) -> dict[int, int]:
    """Return a table COCO category id -> dataset id."""
    ordered = sorted(categories, key=lambda c: c["id"])
    names = tuple(c["name"] for c in ordered)
    if names != CLASSES:
        unexpected = next((a for a, b in zip(names, CLASSES, strict=False) if a != b), "none")
        raise UserError(f"{len(names)} categories, the first unexpected one {unexpected!r}; expected COCO's 80")
    return {c["id"]: k for k, c in enumerate(ordered, 1)}


def _photo(image: dict[str, Any]) -> Photo:
    name = _NAME.fullmatch(image["file_name"])
    height, width = int(image["height"]), int(image["width"])
    if name is None or not 0 < height * width <= MAX_PIXELS or height < 0:
        raise UserError(f"image {image['file_name']!r} of {width}x{height} pixels is none of COCO 2014")
    return Photo(name[1], height, width, [])


def draw_mask(photo: Photo, variant: Variant) -> np.ndarray:
    """Draw the annotations of an image as dataset ids uint8 (H, W) (method.md 7.2).

    Raises:
        UserError: a run-length encoding does not fit the image.
    """
    mask = np.zeros((photo.height, photo.width), np.uint8)
    for class_id, crowd, region in photo.objects:
        if crowd and variant != "crowd255":
            continue
        value = UNLABELED if crowd else class_id
        if isinstance(region, dict):
            mask[_decode_runs(photo, region)] = value
            continue
        for polygon in region[:1] if variant == "first_polygon" else region:
            cv2.fillPoly(mask, [polygon], value)
    return mask


def _decode_runs(photo: Photo, region: dict[str, Any]) -> np.ndarray:
    """Decode a run-length encoding, counts as a list or compressed, to bool (H, W)."""
    try:
        return decode_runs(region, photo.height, photo.width)
    except ValueError as error:
        raise UserError(f"{photo.sample_id}: {error}; unpack annotations_trainval2014.zip again") from error
