"""Folders of PNG files: PASCAL VOC's and mmsegmentation's. Images are PNG too, as JPEG would change their pixels."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.exports.info import ExportInfo, Parts, palette
from syn4seg.schema import UNLABELED
from syn4seg.store.files import map_threads
from syn4seg.store.images import encode_image

if TYPE_CHECKING:
    from syn4seg.exports.samples import ExportSample
    from syn4seg.exports.target import Target


def voc(parts: Parts, target: Target, info: ExportInfo) -> None:
    """Write JPEGImages/ID.png, SegmentationClass/ID.png with VOC's palette, ImageSets/Segmentation/SPLIT.txt, labelmap.txt.

    labelmap.txt holds the names and colours, as CVAT and datumaro read them: without it they take VOC's own twenty classes.
    """
    colours, names = palette(256), labelmap_names([*info.classes, "ignored"])
    values = [*range(len(info.classes)), UNLABELED]
    lines = [f"{name}:{','.join(map(str, colours[value]))}::" for name, value in zip(names, values, strict=True)]
    target.write("labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]).encode())
    if renamed := [f"{there!r} for {name!r}" for name, there in zip(info.classes, names, strict=False) if name != there]:
        info.note(f"labelmap.txt cannot hold every sign: it has {', '.join(renamed)}; classes.json has the names as they are")

    def one(item: ExportSample) -> None:
        target.write(f"JPEGImages/{item.sample_id}.png", encode_image(item.image))
        target.write(f"SegmentationClass/{item.sample_id}.png", _palette_png(item.label, colours))

    for split, some in itertools.groupby(parts, key=itemgetter(0)):
        with target.published(f"ImageSets/Segmentation/{split}.txt") as partial, partial.open("w", newline="\n") as ids:
            for _, items in some:
                map_threads(one, items)
                ids.writelines(f"{item.sample_id}\n" for item in items)


def labelmap_names(names: Sequence[str]) -> list[str]:
    """Return names as VOC's labelmap.txt can hold them (`name:r,g,b:parts:actions` in lines, `#` begins a comment), all different.

    The form has no way to quote: a colon becomes a hyphen, what does not print a space, and `#` in front gets a `_` before it.
    """
    taken, kept = {name for name in names if _fits_labelmap(name)}, set()
    found = []
    for name in names:
        if name not in taken or name in kept:
            plain = " ".join("".join(c if c.isprintable() else " " for c in name.replace(":", "-")).split())
            plain = f"_{plain}" if plain.startswith("#") or not plain else plain
            tries = itertools.chain([plain], (f"{plain} ({i})" for i in itertools.count(2)))
            name = next(one for one in tries if one not in taken)
        taken.add(name)
        kept.add(name)
        found.append(name)
    return found


def _fits_labelmap(name: str) -> bool:
    return bool(name) and ":" not in name and not name.startswith("#") and name.isprintable() and name == name.strip()


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
