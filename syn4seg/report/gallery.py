"""The samples of a draw as a page shows them: which ones, their thumbnails, and what is known about each, as plain JSON values."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.report.reading import GallerySample, Truth, read_pages
from syn4seg.report.sheets import ROW, WHO_COLORS, encode_labels, encode_photo, provenance, shrink, tile
from syn4seg.schema import FAULT, LABEL_COLUMNS
from syn4seg.store.files import map_threads
from syn4seg.store.layout_files import FileSamples
from syn4seg.store.rundir import RunDir

LAYERS = ("image", *LABEL_COLUMNS, "who")
PHOTOS = ("image", "other")
AT_ONCE = 16
"""Samples whose full pictures are in memory at a time."""
BUDGET = 22 * 2**20
"""Bytes of thumbnails and facts in a page; what does not fit is not shown, and the page says so."""
SIDES = ((400, 128), (2000, 80), (np.inf, 48))
"""Side of a thumbnail, in pixels, for at most so many samples."""
REGIONS = 6
"""Regions of a sample that are listed."""


@dataclass
class Gallery:
    """What the page's script needs.

    Attributes:
        side: of a thumbnail's cell, in pixels.
        sheets: layer name -> data URLs, `ROW` x `ROW` samples each.
        items: one per sample, in the order of the cells.
        total: samples that there are.
        damage: one line for each sample whose files cannot be read.
    """

    side: int
    sheets: dict[str, list[str]] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    damage: list[str] = field(default_factory=list)


def changed_share(audit: dict[str, Any]) -> float:
    """Share of the pixels that a stage changed: those that APF freed (APR labels only such) and those that SABR moved."""
    free, moved = audit.get("pixels", {}).get("free", 0), audit.get("sam", {}).get("changed", 0)
    return round(min(1.0, float(free) + float(moved)), 4)


def fair_order(records: pa.Table) -> np.ndarray:
    """Row numbers, classes and verdicts in turn, within each those first that changed most: a beginning of it is a fair sample."""
    groups: dict[tuple[str, bool], list[tuple[float, str, int]]] = {}
    columns = (records[name].to_pylist() for name in ("sample_id", "class", "reason", "audit"))
    for i, (sample, name, reason, audit) in enumerate(zip(*columns, strict=True)):
        change = changed_share(json.loads(audit or "{}"))
        rare = hashlib.blake2b(sample.encode(), digest_size=4).hexdigest()
        groups.setdefault((name, bool(reason)), []).append((-change, rare, i))
    order = []
    for place, members in enumerate(groups[key] for key in sorted(groups)):
        order += [(turn, place, i) for turn, (_, _, i) in enumerate(sorted(members))]
    return np.array([i for _, _, i in sorted(order)], np.int64)


def build_gallery(
    run: RunDir,
    draw: int,
    records: pa.Table,
    colors: Sequence[str],
    progress: Callable[[int, int], None],
    truth: Truth | None = None,
    budget: int = BUDGET,
) -> Gallery:
    """The gallery of one draw.

    Args:
        records: as `records_of`.
        colors: of the class indices.
        progress: told (done, total).
        truth: as `numbers.truth_of`; then every sample also shows its exact label, and its IoU with it.
        budget: bytes that it may take.
    """
    rows = records.filter(pc.invert(pc.starts_with(records["reason"], FAULT)))
    made = Gallery(next(side for most, side in SIDES if len(rows) <= most), total=len(rows))
    layers = LAYERS if truth is None else (*LAYERS, "truth")
    spent, ordered = 0, rows.take(fair_order(rows)) if len(rows) else rows
    seen = (_with_truth(page, truth) for page in read_pages(run, draw, ordered, AT_ONCE))
    for thumbs, items in iter_sheets(seen, lambda one: make_thumbnails(one, made.side), describe_sample):
        paint = partial(encode_layer, thumbs=thumbs, side=made.side, colors=colors)
        urls = dict(zip(layers, map_threads(paint, layers), strict=True))
        spent += sum(map(len, urls.values())) + len(json.dumps(items))
        if spent > budget:
            break
        for layer in layers:
            made.sheets.setdefault(layer, []).append(urls[layer])
        made.items += items
        made.damage += [item["damage"] for item in items if "damage" in item]
        progress(len(made.items), len(ordered))
    return made


def _with_truth(page: Sequence[GallerySample], truth: Truth | None) -> list[GallerySample]:
    if truth is None:
        return list(page)
    return [s if s.image is None else replace(s, truth=truth(s.record, s.image.shape[0])) for s in page]


Thumbs = list[dict[str, np.ndarray]]
Items = list[dict[str, Any]]


def iter_sheets(
    page_by_page: Iterable[Sequence[Any]], thumb: Callable[[Any], dict[str, np.ndarray]], tell: Callable[[Any], dict[str, Any]]
) -> Iterator[tuple[Thumbs, Items]]:
    """Thumbnails by layer and facts of ROW x ROW samples at a time; of full pictures only a page is in memory."""
    thumbs: Thumbs = []
    items: Items = []
    for page in page_by_page:
        thumbs += [thumb(one) for one in page]
        items += [tell(one) for one in page]
        while len(items) >= ROW * ROW:
            yield thumbs[: ROW * ROW], items[: ROW * ROW]
            thumbs, items = thumbs[ROW * ROW :], items[ROW * ROW :]
    if items:
        yield thumbs, items


def make_thumbnails(shown: GallerySample, side: int) -> dict[str, np.ndarray]:
    """The layers of a sample that there are, small."""
    layers = {} if shown.image is None else {"image": shrink(shown.image, side)}
    layers |= {stage: shrink(label, side) for stage, label in shown.labels.items()}
    layers |= {} if shown.truth is None else {"truth": shrink(shown.truth, side)}
    return layers | ({"who": shrink(provenance(shown.labels), side)} if shown.labels else {})


def encode_layer(layer: str, thumbs: Sequence[dict[str, np.ndarray]], side: int, colors: Sequence[str]) -> str:
    """The data URL of one layer's sheet; `image` and `other` are photos, `who` has colours of its own."""
    pixels = tile([one.get(layer) for one in thumbs], side)
    if layer in PHOTOS:
        return encode_photo(pixels if pixels.ndim == 3 else np.zeros((*pixels.shape, 3), np.uint8))
    return encode_labels(pixels, WHO_COLORS if layer == "who" else colors)


def describe_sample(shown: GallerySample) -> dict[str, Any]:
    """What the page says about a sample; short keys, since there may be 10,000."""
    record, audit = shown.record, shown.record["audit"]
    regions, target = sorted(audit.get("regions", ()), key=lambda r: -r["area"]), record["class_id"]
    own = [r for r in regions if r["class"] == target]
    similar = [r["similarity"] for r in own if r["similarity"] is not None]
    item = {
        "id": record["sample_id"],
        "class": record["class"],
        "k": target,
        "reason": record.get("reason", ""),
        "prompt": record["prompt"],
        "seed": str(record["noise_seed"]),
        "changed": changed_share(audit),
        "s": max(similar, default=None),
        "lambda": audit.get("lambda_keep"),
        "pixels": audit.get("pixels", {}),
        "sam": audit.get("sam", {}),
        "damage": shown.damage,
        "own": len(own),
        "judged": len(regions),
        "freed": dict(Counter(r["why"] for r in regions if r["why"])),
        "regions": [[r["class"], r["area"], r["similarity"], r["why"]] for r in regions[:REGIONS]],
        "more": max(0, len(regions) - REGIONS),
    }
    if shown.image is not None:
        height, width = shown.image.shape[:2]
        item["size"] = [width, height]
    item["stages"] = list(shown.labels)
    if shown.labels:
        last = shown.labels[item["stages"][-1]]
        if shown.truth is not None:
            both, either = (f(last == target, shown.truth == target) for f in (np.logical_and, np.logical_or))
            item["iou"] = round(float(both.sum() / max(1, either.sum())), 4)
        item["shares"] = [
            [int(k), round(float(n) / last.size, 4)] for k, n in zip(*np.unique(last, return_counts=True), strict=True)
        ]
    return {key: value for key, value in item.items() if value not in ("", None, {}, [])}


def full_image_paths(run: RunDir, draw: int) -> dict[str, str] | None:
    """Where full pictures lie, relative to the run directory, with {class} and {id} to be filled in; None in shards."""
    if not isinstance(run.samples, FileSamples):
        return None
    found = {"image": run.samples.image("{class}", "{id}")}
    found |= {stage: run.samples.label(draw, stage, "{class}", "{id}") for stage in LABEL_COLUMNS}
    skipped = len(run.root.parts)
    return {layer: "/".join(path.parts[skipped:]) for layer, path in found.items()}
