"""Folders of PNG files: PASCAL VOC's and mmsegmentation's. Images are PNG too, as JPEG would change their pixels."""

from __future__ import annotations

import io
import itertools
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.exports.info import ExportInfo, Parts, palette
from syn4seg.schema import UNLABELED
from syn4seg.store.files import map_threads
from syn4seg.store.images import encode_image

if TYPE_CHECKING:
    from syn4seg.exports.selection import ExportSample
    from syn4seg.exports.target import Target


def voc(parts: Parts, target: Target, info: ExportInfo) -> None:
    """Write JPEGImages/ID.png, SegmentationClass/ID.png with VOC's palette, ImageSets/Segmentation/SPLIT.txt, labelmap.txt.

    labelmap.txt holds the names and colours, as CVAT and datumaro read them: without it they take VOC's own twenty classes.
    """
    colours = palette(256)
    names = [*enumerate(info.classes), (UNLABELED, "ignored")]
    lines = [f"{name.replace(':', ' ')}:{','.join(map(str, colours[i]))}::" for i, name in names]
    target.write("labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]).encode())

    def one(item: ExportSample) -> None:
        target.write(f"JPEGImages/{item.sample_id}.png", encode_image(item.image))
        target.write(f"SegmentationClass/{item.sample_id}.png", _palette_png(item.label, colours))

    for split, some in itertools.groupby(parts, key=itemgetter(0)):
        with target.published(f"ImageSets/Segmentation/{split}.txt") as partial, partial.open("w", newline="\n") as ids:
            for _, items in some:
                map_threads(one, items)
                ids.writelines(f"{item.sample_id}\n" for item in items)


def _palette_png(label: np.ndarray, colours: np.ndarray) -> bytes:
    from PIL import Image

    image, data = Image.fromarray(label), io.BytesIO()
    image.putpalette(colours.tobytes())
    image.save(data, format="PNG")
    return data.getvalue()


_MMSEG = '''"""{name} for mmsegmentation 1.x: `Config.fromfile` of this file, then DATASETS[SPLIT] | dict(data_root=...)."""

METAINFO = dict(
    classes={classes!r},
    palette={palette!r},
)

DATASETS = {{
    split: dict(
        type="BaseSegDataset", metainfo=METAINFO, img_suffix=".png", seg_map_suffix=".png", ignore_index=255,
        reduce_zero_label=False, data_prefix=dict(img_path="img_dir/" + split, seg_map_path="ann_dir/" + split),
    )
    for split in {splits!r}
}}
'''


def mmseg(parts: Parts, target: Target, info: ExportInfo) -> None:
    """Write img_dir/SPLIT/ID.png, ann_dir/SPLIT/ID.png (plain 8-bit class indices, 255 ignored) and dataset.py."""
    splits = []

    def one(item: ExportSample) -> None:
        target.write(f"img_dir/{item.row['split']}/{item.sample_id}.png", encode_image(item.image))
        target.write(f"ann_dir/{item.row['split']}/{item.sample_id}.png", encode_image(item.label))

    for split, some in itertools.groupby(parts, key=itemgetter(0)):
        splits.append(split)
        for _, items in some:
            map_threads(one, items)
    facts = {"name": info.name, "classes": info.classes, "palette": palette(len(info.classes)).tolist(), "splits": splits}
    target.write("dataset.py", _MMSEG.format(**facts).encode())
