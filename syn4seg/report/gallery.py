"""The samples of a draw as a page shows them: which ones, their thumbnails, and what is known about each, as plain JSON values."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.files import each
from syn4seg.report.reading import Shown, pages
from syn4seg.report.sheets import ROW, WHO_COLORS, label_url, photo_url, provenance, sheet, shrunk
from syn4seg.rundir import RunDir
from syn4seg.samples import FileSamples
from syn4seg.schema import FAULT, LABEL_STAGES

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
    """Share of the pixels that APF freed, APR labelled or SABR moved; a pixel counts once for each."""
    pixels = audit.get("pixels", {})
    return round(
        sum(
            float(v)
            for v in (pixels.get("free", 0), pixels.get("relabeled", 0), audit.get("sam", {}).get("changed", 0))
        ),
        4,
    )


def in_turn(records: pa.Table) -> np.ndarray:
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


def gallery(run: RunDir, draw: int, records: pa.Table, colors: Sequence[str], progress: Callable[[int, int], None],
            budget: int = BUDGET) -> Gallery:  # fmt: skip
    """The gallery of one draw.

    Args:
        records: as `records_of`.
        colors: of the class indices.
        progress: told (done, total).
        budget: bytes that it may take.
    """
    rows = records.filter(pc.invert(pc.starts_with(records["reason"], FAULT)))
    made = Gallery(next(side for most, side in SIDES if len(rows) <= most), total=len(rows))
    spent, ordered = 0, rows.take(in_turn(rows)) if len(rows) else rows
    layers = ("image", *LABEL_STAGES, "who")
    for page in pages(run, draw, ordered, ROW * ROW):
        urls = _urls(page, made.side, colors)
        items = [item_of(shown) for shown in page]
        spent += sum(map(len, urls.values())) + len(json.dumps(items))
        if spent > budget:
            break
        for layer in layers:
            made.sheets.setdefault(layer, []).append(urls[layer])
        made.items += items
        made.damage += [shown.damage for shown in page if shown.damage]
        progress(len(made.items), len(ordered))
    return made


def _urls(page: Sequence[Shown], side: int, colors: Sequence[str]) -> dict[str, str]:
    """A data URL per layer of a page of samples."""
    thumbs: dict[str, list[np.ndarray | None]] = {
        "image": [None if s.image is None else shrunk(s.image, side) for s in page],
        **{
            stage: [shrunk(s.labels[stage], side) if stage in s.labels else None for s in page]
            for stage in LABEL_STAGES
        },
        "who": [shrunk(provenance(s.labels), side) if s.labels else None for s in page],
    }

    def encode(layer: str) -> str:
        pixels = sheet(thumbs[layer], side)
        if layer == "image":
            return photo_url(pixels if pixels.ndim == 3 else np.zeros((*pixels.shape, 3), np.uint8))
        return label_url(pixels, WHO_COLORS if layer == "who" else colors)

    return dict(zip(thumbs, each(encode, list(thumbs)), strict=True))


def item_of(shown: Shown) -> dict[str, Any]:
    """What the page says about a sample; short keys, since there may be 10,000."""
    record, audit = shown.record, shown.record["audit"]
    regions = sorted(audit.get("regions", ()), key=lambda r: -r["area"])
    target = record["class_id"]
    similar = [r["similarity"] for r in regions if r["class"] == target and r["similarity"] is not None]
    item = {
        "id": record["sample_id"], "class": record["class"], "k": target, "reason": record.get("reason", ""),
        "prompt": record["prompt"], "seed": str(record["noise_seed"]), "changed": changed_share(audit),
        "s": max(similar, default=None), "lambda": audit.get("lambda_keep"), "pixels": audit.get("pixels", {}),
        "best": audit.get("similarity_best"), "sam": audit.get("sam", {}), "damage": shown.damage,
        "regions": [[r["class"], r["area"], r["similarity"], r["why"]] for r in regions[:REGIONS]],
        "more": max(0, len(regions) - REGIONS),
    }  # fmt: skip
    if shown.image is not None:
        height, width = shown.image.shape[:2]
        item["size"] = [width, height]
    item["stages"] = list(shown.labels)
    if shown.labels:
        last = shown.labels[item["stages"][-1]]
        item["shares"] = [[int(k), round(float(n) / last.size, 4)]
                          for k, n in zip(*np.unique(last, return_counts=True), strict=True)]  # fmt: skip
    return {key: value for key, value in item.items() if value not in ("", None, {}, [])}


def files_beside(run: RunDir, draw: int) -> dict[str, str] | None:
    """Where full pictures lie, relative to the run directory, with {class} and {id} to be filled in; None in shards."""
    if not isinstance(run.samples, FileSamples):
        return None
    found = {"image": run.samples.image("{class}", "{id}")}
    found |= {stage: run.samples.label(draw, stage, "{class}", "{id}") for stage in LABEL_STAGES}
    skipped = len(run.root.parts)
    return {layer: "/".join(path.parts[skipped:]) for layer, path in found.items()}
