"""The figures of a run for its report, as plain values: how far it is, the funnel, prompts, label quality, training and load."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config import Config
from syn4seg.files import MAX_TABLE, exists, read_bytes, read_json
from syn4seg.report.reading import pages, records_of
from syn4seg.rundir import RunDir
from syn4seg.schema import FAULT, LABEL_STAGES, UNLABELED
from syn4seg.stages.plan import HDIG, planned
from syn4seg.tables import read_parquet

AUDITS = 100_000
"""Records whose audits are read; more would not change a figure that anybody can see."""
MEASURED = 400
"""Accepted samples whose labels are compared with the exact masks."""


def log_lines(run: RunDir) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; one that was being written when the run died is left out."""
    found = []
    if exists(run.metrics):
        for line in read_bytes(run.metrics, MAX_TABLE).decode("utf-8", "replace").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
    return found


def progress_of(run: RunDir, config: Config) -> list[tuple[str, int, int]]:
    """(what, done, planned) of everything that a run makes, in order; planned is 0 before there is a plan."""
    plan = len(planned(run)) if exists(run.plan) else 0
    images = len(run.samples.images())
    found = [("images", images, plan)]
    for number in range(config.data.draws):
        found.append((f"labels of draw {number}", len(records_of(run, number)), plan))
    found.append(("results", int(exists(run.results)), 1))
    return found


# --------------------------------------------------------------------------------------------------------- funnel
def funnel(run: RunDir, records: pa.Table) -> list[tuple[str, int, dict[str, int]]]:
    """(step, how many went on, {why: how many did not}) from prompts to labels, for one draw."""
    steps: list[tuple[str, int, dict[str, int]]] = []
    if exists(run.prompts):
        table = read_parquet(run.prompts)
        table = table.filter(pc.equal(table["bank"], HDIG))
        why = Counter(table["why"].to_pylist())
        steps.append(("prompts accepted", why.pop("", 0), dict(why)))
    reasons = Counter(records["reason"].to_pylist())
    faults = {r.removeprefix(FAULT): n for r, n in reasons.items() if r.startswith(FAULT)}
    rejected = {r: n for r, n in reasons.items() if r and not r.startswith(FAULT)}
    if len(records):
        steps.append(("images made and labelled", len(records) - sum(faults.values()), faults))
        steps.append(("samples accepted", reasons.get("", 0), rejected))
    return steps


def accounts(records: pa.Table) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """(class name, class index, reason, audit) of the first `AUDITS` records."""
    columns = (records[name].slice(0, AUDITS).to_pylist() for name in ("class", "class_id", "reason", "audit"))
    for name, index, reason, audit in zip(*columns, strict=True):
        yield name, index, reason, json.loads(audit or "{}")


def totals(records: pa.Table) -> dict[str, Any]:
    """Regions of the target kept and freed by reason, mean shares of pixels, and SAM's masks, over all samples of a draw."""
    regions, pixels, masks, samples = Counter(), Counter(), Counter(), 0
    for _, _, _, audit in accounts(records):
        if "pixels" not in audit:
            continue
        samples += 1
        regions.update(region["why"] for region in audit.get("regions", ()))
        pixels.update(audit["pixels"])
        masks.update({key: audit.get("sam", {}).get(key, 0) for key in ("accepted", "refused", "changed")})
    shares = {key: value / samples for key, value in pixels.items()} if samples else {}
    return {"samples": samples, "kept": regions.pop("", 0), "freed": dict(regions), "shares": shares,
            "sam": {"accepted": masks["accepted"], "refused": masks["refused"],
                    "changed": masks["changed"] / samples if samples else 0.0}}  # fmt: skip


def similarities(records: pa.Table) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """By class: s(r) of the target's regions, whether each was kept, and lambda_keep."""
    found: dict[str, tuple[list[float], list[bool], float]] = {}
    for name, index, _, audit in accounts(records):
        for region in audit.get("regions", ()):
            if region["class"] == index and region["similarity"] is not None:
                values, kept, _ = found.setdefault(name, ([], [], float(audit["lambda_keep"])))
                values.append(region["similarity"])
                kept.append(not region["why"])
    return {name: (np.array(v), np.array(kept), least) for name, (v, kept, least) in sorted(found.items())}


# -------------------------------------------------------------------------------------------------------- prompts
def prompts_of(run: RunDir) -> list[dict[str, Any]]:
    """By class: accepted and refused prompts with similarity, nearest and why, and how diverse the bank is."""
    if not exists(run.prompts):
        return []
    table = read_parquet(run.prompts)
    said = {
        line["class_name"]: line for line in log_lines(run) if line.get("stage") == "prompts" and "class_name" in line
    }
    found = []
    for name in pc.unique(table["class"]).to_pylist():
        rows = table.filter(pc.equal(table["class"], name)).to_pylist()
        bank = [row for row in rows if row["bank"] == HDIG]
        found.append({"class": name, "plain": next((r["prompt"] for r in rows if r["bank"] != HDIG), ""),
                      "accepted": [r for r in bank if r["accepted"]], "refused": [r for r in bank if not r["accepted"]],
                      "diversity": said.get(name, {})})  # fmt: skip
    return found


def prompt_map(run: RunDir, most: int = 48) -> list[dict[str, Any]]:
    """Prompts on a plane: {"class", "prompt", "x", "y"}, the two directions of their embeddings that vary most, each in [0, 1].

    Args:
        most: prompts of a class.
    """
    from syn4seg.models.generators import EmbeddingStore

    if not (exists(run.plan) and exists(run.embeddings)):
        return []
    plan, names = planned(run), {row["class_id"]: row["class"] for row in read_parquet(run.prompts).to_pylist()}
    first: dict[tuple[str, int], str] = {}
    for index, prompt, row in zip(*(plan[c].to_pylist() for c in ("class_id", "prompt", "prompt_row")), strict=True):
        key = (names[index], row)
        if key not in first and sum(k[0] == key[0] for k in first) < most:
            first[key] = prompt
    if len(first) < 2:
        return []
    vectors = EmbeddingStore(run.embeddings).rows([row for _, row in first]).pooled.astype(np.float64)
    centred = vectors - vectors.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # else the signs are any
    places = centred @ axes.T
    if places.shape[1] < 2:
        places = np.pad(places, ((0, 0), (0, 1)))
    span = np.maximum(np.ptp(places, axis=0), 1e-9)
    places = (places - places.min(0)) / span
    return [{"class": name, "prompt": prompt, "x": round(float(x), 4), "y": round(float(y), 4)}
            for ((name, _), prompt), (x, y) in zip(first.items(), places, strict=True)]  # fmt: skip


# -------------------------------------------------------------------------------------------------- label quality
def label_quality(run: RunDir, draw: int, records: pa.Table, table: np.ndarray) -> dict[str, dict[str, float]]:
    """Quality of each stage's labels of samples that the renderer made, against its exact masks.

    Args:
        records: of the samples to compare.
        table: class number of the embedded world -> class index, as `Fold.to_index`.

    Returns:
        By stage, each in [0, 1]: target_iou, target_precision, target_recall, boundary_iou_2px, labelled_share.
    """
    from syn4seg.models.renderer import Renderer
    from syn4seg.segmenter.evaluation import boundary_iou, confusion

    found: dict[str, tuple[list, list, list]] = {stage: ([], [], []) for stage in LABEL_STAGES}
    for page in pages(run, draw, records):
        for shown in (s for s in page if s.labels):
            record = shown.record
            renderer = Renderer(shown.labels["label"].shape[0])
            truth = table[renderer.truth(record["prompt"], record["noise_seed"])] == record["class_id"]
            for stage, (labels, truths, known) in found.items():
                label = shown.labels[stage]
                labels.append(np.where(label == UNLABELED, UNLABELED, label == record["class_id"]).astype(np.uint8))
                truths.append(truth.astype(np.uint8))
                known.append((label != UNLABELED).mean())
    quality = {}
    for stage, (labels, truths, known) in found.items():
        matrix = sum((confusion(a, b, 2) for a, b in zip(labels, truths, strict=True)), np.zeros((2, 2), np.int64))
        missed = sum(int(((a == UNLABELED) & (b == 1)).sum()) for a, b in zip(labels, truths, strict=True))
        quality[stage] = {
            "target_iou": matrix[1, 1] / max(1, matrix[1].sum() + matrix[0, 1]),
            "target_precision": matrix[1, 1] / max(1, matrix[:, 1].sum()),
            "target_recall": matrix[1, 1] / max(1, matrix[1].sum() + missed),
            "boundary_iou_2px": float(boundary_iou(labels, truths, 2, 2)[1]) if labels else float("nan"),
            "labelled_share": float(np.mean(known)) if known else 0.0,
        }  # fmt: skip
    return quality


def quality_of(run: RunDir, config: Config, draw: int, records: pa.Table) -> dict[str, dict[str, float]]:
    """`label_quality` of accepted samples of the diverse bank, at most `MEASURED`; empty where the truth is not known."""
    if (
        config.synthesis.source != "generate"
        or config.synthesis.model != "renderer"
        or config.data.source != "embedded"
    ):
        return {}
    from syn4seg.stages.setup import load_dataset

    wanted = records.filter(pc.and_(pc.equal(records["reason"], ""), pc.starts_with(records["sample_id"], HDIG)))
    if not len(wanted):
        return {}
    step = -(-len(wanted) // MEASURED)
    return label_quality(run, draw, wanted.take(np.arange(0, len(wanted), step)), load_dataset(config)[1].to_index)


# -------------------------------------------------------------------------------------------------- over time
def loads(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """By stage of the stream: arrays seconds, rows_per_second, busy_share, one after another where a stream was begun again."""
    found: dict[str, dict[str, list[float]]] = {}
    offset, before = 0.0, 0.0
    for line in lines:
        if line.get("kind") != "load":
            continue
        if line["seconds"] < before:
            offset += before
        before = line["seconds"]
        for name, values in line["stages"].items():
            series = found.setdefault(name, {"seconds": [], "rows_per_second": [], "busy_share": []})
            series["seconds"].append(offset + line["seconds"])
            for key in ("rows_per_second", "busy_share"):
                series[key].append(values[key])
    return {name: {k: np.array(v, float) for k, v in series.items()} for name, series in found.items()}


def losses(lines: Sequence[dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name of a curve: steps and losses, as far as the run wrote them down."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        loss, step = line.get("loss"), line.get("step", line.get("done", line.get("epoch")))
        if isinstance(loss, int | float) and isinstance(step, int | float) and np.isfinite(loss):
            name = " ".join(str(part) for part in (line.get("stage", ""), line.get("row", "")) if part)
            name += f", draw {line['draw']}" if "draw" in line else ""
            curve = found.setdefault(name, [])
            if curve and step <= curve[-1][0]:  # begun again
                curve[:] = [point for point in curve if point[0] < step]
            curve.append((float(step), float(loss)))
    return {name: (np.array([s for s, _ in curve]), np.array([v for _, v in curve])) for name, curve in found.items()}


def results_of(run: RunDir) -> dict[str, Any] | None:
    """results.json, or None before there is one."""
    return read_json(run.results) if exists(run.results) else None
