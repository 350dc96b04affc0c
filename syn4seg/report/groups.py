"""How the labels of groups of samples came out, stage by stage: by class, by verdict, by prompt, by background.

One number per sample and figure is in memory, whatever the number of prompts; what a page shows of them are a few rows, the worst
first. IoU with the truth is known for the samples that are in the page, since their files are read anyway.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.schema import FAULT, LABEL_COLUMNS

SHARES = ("free", "relabeled", "unlabeled", "moved")
"""Shares of the pixels of an image, in the order of the stages: freed, relabeled, unlabeled after it, moved at the boundary."""
PROMPTS, BACKGROUNDS, LINKS = 20, 10, 3
"""Prompts and backgrounds in the tables of the worst, and samples that a row links to."""
_PLACE = re.compile(r"[^,.;:]*\b((?:in|on|at|under|near|next to|behind|against|beside|by)\s[^,.;:]+)")


@dataclass(frozen=True)
class SampleFigures:
    """What is known of each of N samples that are no faults.

    Attributes:
        ids: names of the samples (N,).
        keys: "class", "reason", "prompt" -> the text of each sample (N,), dictionary-encoded.
        rejected: bool (N,).
        figures: "similarity" (the largest of a region of the class) and `SHARES` -> float32 (N,), nan where unknown.
        ious: float32 (4, N): the class's IoU with the truth at each of `LABEL_COLUMNS`, nan where unknown.
        in_page: bool (N,).
        regions: (class, why) -> number of regions in the drafts of the images made for the class; "" for those that APF kept.
    """

    ids: pa.ChunkedArray
    keys: dict[str, pa.DictionaryArray]
    rejected: np.ndarray
    figures: dict[str, np.ndarray]
    ious: np.ndarray
    in_page: np.ndarray
    regions: Counter[tuple[str, str]]

    @property
    def is_truth_known(self) -> bool:
        """Whether the truth of any sample is known."""
        return bool(np.isfinite(self.ious).any())

    @property
    def worth(self) -> np.ndarray:
        """float32 (N,) by which samples are ranked: 0 if rejected, else the last label's IoU; without a truth the similarity, and
        without that the share of the pixels that were not freed."""
        if self.is_truth_known:
            value = np.where(np.isnan(self.ious[3]), self.ious[2], self.ious[3])
        else:
            similar = self.figures["similarity"]
            value = np.where(np.isnan(similar), 1 - self.figures["free"], np.maximum(similar, 0))
        return np.where(self.rejected, np.float32(0), value)


def figures_of(records: pa.Table, items: Sequence[Mapping[str, Any]]) -> SampleFigures:
    """Return the figures of the records of a draw, in one pass.

    Args:
        items: of the gallery, for `ious` and `in_page`.
    """
    rows = records.filter(pc.invert(pc.starts_with(records["reason"], FAULT)))
    figures = {key: np.full(len(rows), np.nan, np.float32) for key in ("similarity", *SHARES)}
    regions, at = Counter[tuple[str, str]](), 0
    for batch in rows.select(["class", "class_id", "audit"]).to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            audit = json.loads(row["audit"] or "{}")
            pixels = audit.get("pixels", {}) | {"moved": audit.get("sam", {}).get("changed", 0 if "pixels" in audit else np.nan)}
            for key in SHARES:
                figures[key][at] = pixels.get(key, np.nan)
            best = None
            for region in audit.get("regions", ()):
                regions[row["class"], region["why"]] += 1
                if region["class"] == row["class_id"] and (value := region["similarity"]) is not None:
                    best = value if best is None else max(best, value)
            figures["similarity"][at] = np.nan if best is None else best
            at += 1
    ious, in_page = np.full((len(LABEL_COLUMNS), len(rows)), np.nan, np.float32), np.zeros(len(rows), bool)
    places = pc.index_in(pa.array([item["id"] for item in items], pa.string()), rows["sample_id"].combine_chunks()).to_pylist()
    for place, item in zip(places, items, strict=True):
        if place is not None:
            in_page[place] = True
            known = item.get("ious", ())
            ious[: len(known), place] = known
    keys = {key: _encoded(rows[key]) for key in ("class", "reason", "prompt")}
    return SampleFigures(rows["sample_id"], keys, np.array(pc.not_equal(rows["reason"], "")), figures, ious, in_page, regions)


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    return pc.dictionary_encode(column.combine_chunks().cast(pa.string()))


def background_of(prompt: str) -> str:
    """Return where a prompt puts its objects: the last words of place before the first comma ("on grass"), or ""."""
    match = _PLACE.match(prompt)  # greedy: the last such word of the part
    return " ".join(match[1].split()) if match else ""


def by_key(figures: SampleFigures, key: str, most: int | None = None) -> list[dict[str, Any]]:
    """Return the groups of samples by "class", "reason", "prompt" or "background", the worst first, at most `most` of them.

    Returns:
        For each group name, samples, rejected (a share), reasons (reason -> number), the means similarity and `SHARES` and ious (a
        list of 4), each None where nothing is known, measured (samples with a truth), worst (ids of samples in the page) and
        classes (at most two names of classes in it).
    """
    if key == "background":
        encoded = figures.keys["prompt"]
        places = pc.dictionary_encode(pa.array([background_of(text) for text in encoded.dictionary.to_pylist()], pa.string()))
        codes, names = np.array(places.indices)[np.array(encoded.indices)] if len(encoded) else np.zeros(0, int), places.dictionary
    else:
        codes, names = np.array(figures.keys[key].indices), figures.keys[key].dictionary
    counts, worth = np.bincount(codes, minlength=len(names)), figures.worth
    rank = _means(codes, worth, len(names))
    rejected = np.bincount(codes, weights=figures.rejected, minlength=len(names)) / np.maximum(1, counts)
    order = np.lexsort((np.arange(len(names)), -rejected, np.nan_to_num(rank, nan=2.0))).tolist()
    chosen = [g for g in order if key != "background" or names[g].as_py()][:most]
    return [_group(figures, names[g].as_py(), np.flatnonzero(codes == g), float(rejected[g]), worth) for g in chosen]


def _means(codes: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    """Return the mean of the known values of each group, nan for none."""
    known = np.isfinite(values)
    sums, counts = (np.bincount(codes[known], weights=w, minlength=groups).astype(float) for w in (values[known], None))
    return np.divide(sums, counts, out=np.full(groups, np.nan), where=counts > 0)


def _group(figures: SampleFigures, name: str, rows: np.ndarray, rejected: float, worth: np.ndarray) -> dict[str, Any]:
    shown = rows[figures.in_page[rows]]
    worst = shown[np.argsort(np.nan_to_num(worth[shown], nan=2.0), kind="stable")[:LINKS]]
    reasons, classes = (figures.keys[key] for key in ("reason", "class"))
    counted = np.bincount(np.array(reasons.indices)[rows], minlength=len(reasons.dictionary))
    ious = figures.ious[:, rows]
    return {
        "name": name,
        "samples": len(rows),
        "rejected": rejected,
        "reasons": {why: int(n) for why, n in zip(reasons.dictionary.to_pylist(), counted, strict=True) if why and n},
        **{key: _mean(values[rows]) for key, values in figures.figures.items()},
        "ious": [_mean(stage) for stage in ious],
        "measured": int(np.isfinite(ious).any(0).sum()),
        "worst": figures.ids.take(worst).to_pylist(),
        "classes": [classes.dictionary[int(k)].as_py() for k in np.unique(np.array(classes.indices)[rows])[:2]],
    }


def _mean(values: np.ndarray) -> float | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but nan
        mean = float(np.nanmean(values, dtype=np.float64)) if len(values) else np.nan
    return None if np.isnan(mean) else mean
