"""Compute the figures of a run for its report, as plain values: progress, funnel, prompts, label quality, training and load."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.tree import Config
from syn4seg.report.reading import read_pages
from syn4seg.schema import FAULT, LABEL_COLUMNS, PROMPTS_FILE, RECORD, UNLABELED
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.results import with_bank
from syn4seg.stages.rows import CLASS_NAME, HDIG
from syn4seg.stages.setup import draws_of
from syn4seg.stages.truth import Truth, truth_source
from syn4seg.store.files import MAX_TABLE, exists, read_bytes
from syn4seg.store.readback import Results, read_checked
from syn4seg.store.rundir import RunDir
from syn4seg.store.tables import read_parquet
from syn4seg.watch.state import parse_line
from syn4seg.watch.timeline import finite_number, is_load_line, starts_new_stream

BANK_TITLES = {HDIG: "of the HDIG bank", CLASS_NAME: "of the control bank (class names alone)"}
PROMPTS = 600
"""Number of prompts on the map."""
POINTS = 500
"""Number of points of a curve over time."""
MEASURED = 400
"""Number of accepted samples whose labels are compared with the exact masks."""


def read_metrics(run: RunDir) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; damaged ones, e.g. the last line of a run that died, are left out."""
    data = read_bytes(run.metrics, MAX_TABLE) if exists(run.metrics) else b""
    return [line for line in map(parse_line, data.splitlines()) if line is not None]


def read_results(run: RunDir) -> dict[str, Any] | None:
    """Return results.json, or None before there is one."""
    return read_checked(run.results, Results) if exists(run.results) else None


def run_progress(run: RunDir, config: Config) -> list[tuple[str, int, int]]:
    """Return (what, done, planned) of the outputs of a run, in order; planned is 0 before there is a plan.

    A quarantined sample counts as done: nothing more happens to it.
    """
    planned = len(read_planned_samples(run)) if exists(run.plan) else 0
    images = pa.chunked_array([*run.samples.images()["sample_id"].chunks, pa.array(run.quarantined_ids(), pa.string())])
    progress = [("images", len(pc.unique(images)), planned)]
    for number in draws_of(config):
        draw = run.draw(number)
        done = read_parquet(draw.manifest, ["sample_id"], RECORD).num_rows if exists(draw.manifest) else len(draw.done())
        progress.append((f"labels of draw {number}", done, planned))
    return [*progress, ("results", int(exists(run.results)), 1)]


def count_funnel(run: RunDir, records: pa.Table) -> list[tuple[str, int, dict[str, int]]]:
    """Return (step, number that passed, {reason: number that did not}) from prompts to labels, for the records of one draw."""
    steps: list[tuple[str, int, dict[str, int]]] = []
    if exists(run.prompts):
        table = _prompts(run)
        reasons = Counter(table.filter(pc.equal(table["bank"], HDIG))["why"].to_pylist())
        steps.append(("prompts accepted", reasons.pop("", 0), dict(reasons)))
    reasons = Counter(records["reason"].to_pylist())
    faults = {r.removeprefix(FAULT): n for r, n in reasons.items() if r.startswith(FAULT)}
    rejected = {r: n for r, n in reasons.items() if r and not r.startswith(FAULT)}
    if len(records):
        steps.append(("images made and labelled", len(records) - sum(faults.values()), faults))
        steps.append(("samples accepted", reasons.get("", 0), rejected))
        steps += _by_bank(run, records)
    return steps


def _by_bank(run: RunDir, records: pa.Table) -> list[tuple[str, int, dict[str, int]]]:
    """Return the last step of the funnel for each prompt bank; nothing for a run with one bank."""
    if not exists(run.plan):
        return []
    table = with_bank(records, read_planned_samples(run))
    steps = []
    for bank, title in BANK_TITLES.items():
        reasons = Counter(table.filter(pc.equal(table["bank"], bank))["reason"].to_pylist())
        rejected = {r: n for r, n in reasons.items() if r and not r.startswith(FAULT)}
        if reasons:
            steps.append((f"of these, {title}", reasons.get("", 0), rejected))
    return steps if len(steps) > 1 else []


@dataclass(frozen=True)
class LabelingSummary:
    """The effects of APF, APR and SABR on all samples of a draw (method.md 3.1, 3.2, 4).

    Attributes:
        samples: number of labelled samples.
        regions: number of regions, of any class, by the reason why APF freed them; "" for those that it kept.
        shares: mean share of the pixels that are free, relabeled, unlabeled, of the target, and moved by SABR.
        masks: number of SAM's masks that were accepted and refused.
        similarity: class name -> s(r) of the target's regions (N,), whether each was kept (N,), and lambda_keep.
    """

    samples: int
    regions: Counter[str]
    shares: dict[str, float]
    masks: Counter[str]
    similarity: dict[str, tuple[np.ndarray, np.ndarray, float]]


def summarize_labeling(records: pa.Table) -> LabelingSummary:
    """Return the summary of the records of a draw, in one pass."""
    regions, pixels, masks, samples = Counter[str](), Counter[str](), Counter[str](), 0
    similar: dict[str, tuple[list[float], list[bool], float]] = {}
    batches = records.select(["class", "class_id", "audit"]).to_batches(max_chunksize=4096)
    for row in (row for batch in batches for row in batch.to_pylist()):
        audit = json.loads(row["audit"] or "{}")
        if "pixels" not in audit:
            continue
        samples += 1
        sam = audit.get("sam", {})
        pixels.update(audit["pixels"] | {"moved": sam.get("changed", 0)})
        masks.update({key: sam.get(key, 0) for key in ("accepted", "refused")})
        for region in audit.get("regions", ()):
            regions[region["why"]] += 1
            if region["class"] == row["class_id"] and region["similarity"] is not None:
                values, kept, _ = similar.setdefault(row["class"], ([], [], float(audit["lambda_keep"])))
                values.append(region["similarity"])
                kept.append(not region["why"])
    arrays = {name: (np.array(v), np.array(kept), least) for name, (v, kept, least) in sorted(similar.items())}
    return LabelingSummary(samples, regions, {key: value / samples for key, value in pixels.items()}, masks, arrays)


def prompt_banks(run: RunDir) -> list[dict[str, Any]]:
    """Return for each class its accepted and refused prompts (similarity, nearest, why), and the diversity of the bank."""
    if not exists(run.prompts):
        return []
    table = _prompts(run)
    lines = (line for line in read_metrics(run) if line.get("stage") == "prompts" and "class_name" in line)
    diversity = {line["class_name"]: line for line in lines}
    banks = []
    for name in pc.unique(table["class"]).to_pylist():
        rows = table.filter(pc.equal(table["class"], name)).to_pylist()
        diverse = [row for row in rows if row["bank"] == HDIG]
        banks.append(
            {
                "class": name,
                "class_name_prompt": next((row["prompt"] for row in rows if row["bank"] != HDIG), ""),
                "accepted": [row for row in diverse if row["accepted"]],
                "refused": [row for row in diverse if not row["accepted"]],
                "diversity": diversity.get(name, {}),
            }
        )
    return banks


def prompt_map(run: RunDir) -> list[dict[str, Any]]:
    """Return prompts on a plane: {"class", "prompt", "x", "y"}, x and y in [0, 1] along the two main directions of the embeddings.

    They are at most `PROMPTS` in all, with the same limit for each class.
    """
    from syn4seg.models.embeddings import EmbeddingStore

    if not (exists(run.plan) and exists(run.embeddings) and exists(run.prompts)):
        return []
    plan, names = (read_planned_samples(run), {row["class_id"]: row["class"] for row in _prompts(run).to_pylist()})
    limit, counts = max(1, min(48, PROMPTS // max(1, len(names)))), Counter[int]()
    prompts: dict[tuple[int, int], str] = {}
    for index, prompt, row in zip(*(plan[c].to_pylist() for c in ("class_id", "prompt", "prompt_row")), strict=True):
        if counts[index] < limit and (index, row) not in prompts:
            prompts[index, row] = prompt
            counts[index] += 1
    if len(prompts) < 2:
        return []
    vectors = EmbeddingStore(run.embeddings).pooled([row for _, row in prompts]).astype(np.float64)
    centred = vectors - vectors.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # the signs of the SVD are arbitrary
    points = centred @ axes.T
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 1)))
    points = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    return [
        {"class": names[index], "prompt": prompt, "x": round(float(x), 4), "y": round(float(y), 4)}
        for ((index, _), prompt), (x, y) in zip(prompts.items(), points, strict=True)
    ]


def measure_label_quality(run: RunDir, draw: int, records: pa.Table, truth: Truth) -> dict[str, dict[str, float]]:
    """Compare the labels of each label column with the exact masks.

    Args:
        records: of the samples to compare.
        truth: as `truth_source` returns it.

    Returns:
        Label column -> target_iou, target_precision, target_recall, boundary_iou_2px, labelled_share, each in [0, 1].
    """
    from syn4seg.segmenter.evaluation import boundary_iou, confusion

    pairs: dict[str, tuple[list, list, list]] = {stage: ([], [], []) for stage in LABEL_COLUMNS}
    for sample in (sample for page in read_pages(run, draw, records) for sample in page if sample.labels):
        target, exact = sample.record["class_id"], truth(sample.record, sample.labels["label"].shape[0])
        if exact is None:
            continue
        for stage, (labels, masks, labelled) in pairs.items():
            label = sample.labels[stage]
            labels.append(np.where(label == UNLABELED, UNLABELED, label == target).astype(np.uint8))
            masks.append((exact == target).astype(np.uint8))
            labelled.append((label != UNLABELED).mean())
    quality = {}
    for stage, (labels, masks, labelled) in pairs.items():
        matrix = sum((confusion(a, b, 2) for a, b in zip(labels, masks, strict=True)), np.zeros((2, 2), np.int64))
        missed = sum(int(((a == UNLABELED) & (b == 1)).sum()) for a, b in zip(labels, masks, strict=True))
        quality[stage] = {
            "target_iou": matrix[1, 1] / max(1, matrix[1].sum() + matrix[0, 1]),
            "target_precision": matrix[1, 1] / max(1, matrix[:, 1].sum()),
            "target_recall": matrix[1, 1] / max(1, matrix[1].sum() + missed),
            "boundary_iou_2px": float(boundary_iou(labels, masks, 2, 2)[1]) if labels else float("nan"),
            "labelled_share": float(np.mean(labelled)) if labelled else 0.0,
        }
    return quality


def measure_run_quality(run: RunDir, config: Config, draw: int, records: pa.Table) -> dict[str, dict[str, float]]:
    """Measure the labels of at most `MEASURED` accepted samples of the diverse bank; empty if the truth is unknown."""
    truth = truth_source(config)
    accepted = records.filter(pc.and_(pc.equal(records["reason"], ""), pc.starts_with(records["sample_id"], HDIG)))
    if truth is None or not len(accepted):
        return {}
    step = -(-len(accepted) // MEASURED)
    return measure_label_quality(run, draw, accepted.take(np.arange(0, len(accepted), step)), truth)


def load_curves(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Return for each stage of the stream the arrays seconds, rows_per_second and busy_share, with a NaN between two streams."""
    curves: dict[str, dict[str, list[float]]] = {}
    offset, before = 0.0, None
    for line in (line for line in lines if line.get("kind") == "load" and is_load_line(line)):
        again = before is not None and starts_new_stream(before, line)
        if before is not None and again:
            offset += _number(before, "seconds", 0.0)
        before, moment = line, offset + _number(line, "seconds", 0.0)
        for name, values in line["stages"].items():
            curve = curves.setdefault(name, {"seconds": [], "rows_per_second": [], "busy_share": []})
            curve["seconds"] += [offset, moment] if again else [moment]
            for key in ("rows_per_second", "busy_share"):
                curve[key] += [float("nan")] * again + [_number(values, key, float("nan"))]
    return {name: {k: np.array(v, float) for k, v in curve.items()} for name, curve in curves.items()}


def _number(values: dict[str, Any], key: str, default: float) -> float:
    value = finite_number(values.get(key))
    return default if value is None else float(value)


def loss_curves(lines: Sequence[dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return curve name -> (steps, losses), as far as they were logged, thinned to `POINTS`."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        loss, step = line.get("loss"), line.get("step", line.get("done", line.get("epoch")))
        if isinstance(loss, int | float) and isinstance(step, int | float) and np.isfinite(loss):
            name = " ".join(str(part) for part in (line.get("stage", ""), line.get("row", "")) if part)
            name += f", draw {line['draw']}" if "draw" in line else ""
            curve = curves.setdefault(name, [])
            if curve and step <= curve[-1][0]:  # the training was started again
                curve[:] = [point for point in curve if point[0] < step]
            curve.append((float(step), float(loss)))
    thin = {
        name: np.array([curve[i] for i in np.linspace(0, len(curve) - 1, min(len(curve), POINTS)).round().astype(int)])
        for name, curve in curves.items()
    }
    return {name: (points[:, 0], points[:, 1]) for name, points in thin.items()}


def _prompts(run: RunDir) -> pa.Table:
    """Return prompts.parquet."""
    return read_parquet(run.prompts, schema=PROMPTS_FILE)
