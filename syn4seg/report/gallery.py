"""The samples of a draw as a page shows them: a fair selection, thumbnails, and the facts about each, as JSON values."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.report.reading import GallerySample, read_pages
from syn4seg.report.sheets import ROW, WHO_COLORS, encode_labels, encode_photo, provenance, shrink, tile
from syn4seg.schema import FAULT, LABEL_COLUMNS, UNLABELED
from syn4seg.stages.truth import Truth
from syn4seg.store.files import map_threads
from syn4seg.store.layout_files import FileSamples
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import escape_name

PAGE = 16
"""Number of samples whose full pictures are in memory at a time."""
BUDGET = 22 * 2**20
"""Bytes of thumbnails and facts in a page; the samples that do not fit are left out, and the page says so."""
SIDES = ((400, 128), (2000, 80), (np.inf, 48))
"""(number of samples up to which it is used, side of a thumbnail in pixels)."""
REGIONS = 6
"""Number of regions of a sample that are listed."""


@dataclass
class Gallery:
    """The data of the page's script.

    Attributes:
        layers: layer name -> colour of each code; empty for a photo.
        count: number of samples to show, which decides the side of a thumbnail.
        total: number of samples that there are.
        sheets: layer name -> data URLs, `ROW` x `ROW` samples each.
        items: facts about each sample, in the order of the cells.
        damage: one line for each sample whose files cannot be read.
    """

    layers: dict[str, Sequence[str]]
    count: int
    total: int
    sheets: dict[str, list[str]] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)

    @property
    def side(self) -> int:
        """Side of the cell of a thumbnail, in pixels."""
        return next(side for most, side in SIDES if self.count <= most)

    def fill(
        self,
        pages: Iterable[Iterable[Any]],
        layers_of: Callable[[Any], dict[str, np.ndarray]],
        describe: Callable[[Any], dict[str, Any]],
        progress: Callable[[int, int], None],
        budget: int = BUDGET,
    ) -> None:
        """Add samples, a sheet at a time, until the budget is spent; only one page of full pictures is in memory.

        Args:
            layers_of: returns the pictures of a sample by layer: uint8 (H, W, 3), or codes uint8 (H, W).
            describe: returns the facts about a sample, as JSON values.
            progress: called with (done, total).
            budget: limit in bytes.
        """
        spent = 0
        cells = (
            ({layer: shrink(pixels, self.side) for layer, pixels in layers_of(sample).items()}, describe(sample))
            for page in pages
            for sample in page
        )
        while batch := list(islice(cells, ROW * ROW)):
            thumbs, items = zip(*batch, strict=True)
            urls = map_threads(partial(self._encode, thumbs), self.layers)
            spent += sum(map(len, urls)) + len(json.dumps(items))
            if spent > budget:
                break
            for layer, url in zip(self.layers, urls, strict=True):
                self.sheets.setdefault(layer, []).append(url)
            self.items += items
            self.damage += [item["damage"] for item in items if "damage" in item]
            progress(len(self.items), self.count)

    def _encode(self, thumbs: Sequence[dict[str, np.ndarray]], layer: str) -> str:
        pixels = tile([layers.get(layer) for layers in thumbs], self.side)
        if self.layers[layer]:
            return encode_labels(pixels, self.layers[layer])
        return encode_photo(pixels if pixels.ndim == 3 else np.zeros((*pixels.shape, 3), np.uint8))


def label_iou(label: np.ndarray, truth: np.ndarray, target: int) -> float:
    """Return the IoU of one class in a label with that in the truth, both uint8 (H, W); pixels without a truth do not count."""
    seen = truth != UNLABELED
    ours, theirs = (label == target) & seen, (truth == target) & seen
    return float((ours & theirs).sum() / max(1, (ours | theirs).sum()))


def changed_share(audit: dict[str, Any]) -> float:
    """Return the share of the pixels that changed: those that APF freed (APR labels only such ones) and those that SABR moved."""
    free, moved = audit.get("pixels", {}).get("free", 0), audit.get("sam", {}).get("changed", 0)
    return round(min(1.0, float(free) + float(moved)), 4)


def fair_order(records: pa.Table) -> np.ndarray:
    """Return row numbers int64 (N,) with classes and verdicts in turn, in each the most changed first: any beginning is fair."""
    groups: dict[tuple[str, bool], list[tuple[float, str, int]]] = {}
    columns = (records[name].to_pylist() for name in ("sample_id", "class", "reason", "audit"))
    for i, (sample_id, name, reason, audit) in enumerate(zip(*columns, strict=True)):
        tie_breaker = hashlib.blake2b(sample_id.encode(), digest_size=4).hexdigest()
        groups.setdefault((name, bool(reason)), []).append((-changed_share(json.loads(audit or "{}")), tie_breaker, i))
    order = []
    for group, (_, members) in enumerate(sorted(groups.items())):
        order += [(turn, group, i) for turn, (_, _, i) in enumerate(sorted(members))]
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
    """Return the gallery of one draw.

    Args:
        records: as `read_records` returns them.
        colors: of the class indices, `#rrggbb`.
        progress: called with (done, total).
        truth: as `numbers.truth_source` returns it; adds to every sample its exact label, and the IoU of its label with it.
        budget: limit in bytes.
    """
    rows = records.filter(pc.invert(pc.starts_with(records["reason"], FAULT)))
    layers = {"image": (), **dict.fromkeys(LABEL_COLUMNS, colors), "who": WHO_COLORS}
    gallery = Gallery(layers if truth is None else layers | {"truth": colors}, len(rows), len(rows))
    ordered = rows.take(fair_order(rows)) if len(rows) else rows

    def add_truth(sample: GallerySample) -> GallerySample:
        if truth is None or sample.image is None:
            return sample
        return replace(sample, truth=truth(sample.record, sample.image.shape[0]))

    pages = (map(add_truth, page) for page in read_pages(run, draw, ordered, PAGE))
    gallery.fill(pages, _layers_of, describe_sample, progress, budget)
    return gallery


def _layers_of(sample: GallerySample) -> dict[str, np.ndarray]:
    layers = {"image": sample.image, **sample.labels, "truth": sample.truth}
    layers["who"] = provenance(sample.labels) if sample.labels else None
    return {layer: pixels for layer, pixels in layers.items() if pixels is not None}


def describe_sample(sample: GallerySample) -> dict[str, Any]:
    """Return the facts about a sample, as JSON values, without empty ones; keys are short, since there may be 10,000 samples."""
    record, audit = sample.record, sample.record["audit"]
    regions, target = sorted(audit.get("regions", ()), key=lambda r: -r["area"]), record["class_id"]
    own = [r for r in regions if r["class"] == target]
    similar = [r["similarity"] for r in own if r["similarity"] is not None]
    item = {
        "id": record["sample_id"],
        "class": record["class"],
        **({"folder": folder} if (folder := escape_name(record["class"])) != record["class"] else {}),
        "k": target,
        "reason": record.get("reason", ""),
        "prompt": record["prompt"],
        "seed": str(record["noise_seed"]),
        "changed": changed_share(audit),
        "s": max(similar, default=None),
        "lambda": audit.get("lambda_keep"),
        "pixels": audit.get("pixels", {}),
        "sam": audit.get("sam", {}),
        "damage": sample.damage,
        "own": len(own),
        "judged": len(regions),
        "freed": dict(Counter(r["why"] for r in regions if r["why"])),
        "regions": [[r["class"], r["area"], r["similarity"], r["why"]] for r in regions[:REGIONS]],
        "more": max(0, len(regions) - REGIONS),
    }
    if sample.image is not None:
        height, width = sample.image.shape[:2]
        item["size"] = [width, height]
    item["stages"] = list(sample.labels)
    if sample.labels:
        last = sample.labels[item["stages"][-1]]
        if sample.truth is not None:
            item["ious"] = [round(label_iou(label, sample.truth, target), 4) for label in sample.labels.values()]
            item["iou"] = item["ious"][-1]
        item["shares"] = [
            [int(k), round(float(n) / last.size, 4)] for k, n in zip(*np.unique(last, return_counts=True), strict=True)
        ]
    return {key: value for key, value in item.items() if value not in ("", None, {}, [])}


def full_image_paths(run: RunDir, draw: int) -> dict[str, str] | None:
    """Return layer -> path of the full pictures, relative to the run directory, with {class} and {id}; None for shards."""
    if not isinstance(run.samples, FileSamples):
        return None
    paths = {"image": run.samples.image("CLASS", "{id}")}
    paths |= {stage: run.samples.label(draw, stage, "CLASS", "{id}") for stage in LABEL_COLUMNS}
    skipped = len(run.root.parts)
    return {layer: "/".join(path.parts[skipped:]).replace("/CLASS/", "/{class}/") for layer, path in paths.items()}
