"""The figures of a run for its report, as plain values: how far it is, the funnel, prompts, label quality, training and load."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.report.reading import Truth, read_pages
from syn4seg.schema import FAULT, LABEL_COLUMNS, UNLABELED
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.rows import HDIG
from syn4seg.stages.setup import draws_of
from syn4seg.store.files import MAX_TABLE, exists, read_bytes, read_json
from syn4seg.store.rundir import RunDir
from syn4seg.store.tables import read_parquet
from syn4seg.watch import timeline as story

PROMPTS = 600
"""Prompts on the map."""
POINTS = 500
"""Points of a curve over time."""
MEASURED = 400
"""Accepted samples whose labels are compared with the exact masks."""


def read_metrics(run: RunDir) -> list[dict[str, Any]]:
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


def run_progress(run: RunDir, config: Config) -> list[tuple[str, int, int]]:
    """(what, done, planned) of everything that a run makes, in order; planned is 0 before there is a plan.

    A sample that was quarantined counts as made: nothing more happens to it.
    """
    plan = len(read_planned_samples(run)) if exists(run.plan) else 0
    ended = pa.chunked_array([*run.samples.images()["sample_id"].chunks, pa.array(run.quarantined_ids(), pa.string())])
    found = [("images", len(pc.unique(ended)), plan)]
    for number in draws_of(config):
        manifest = run.draw(number).manifest
        done = read_parquet(manifest, ["sample_id"]).num_rows if exists(manifest) else len(run.draw(number).done())
        found.append((f"labels of draw {number}", done, plan))
    found.append(("results", int(exists(run.results)), 1))
    return found


# --------------------------------------------------------------------------------------------------------- funnel
def count_funnel(run: RunDir, records: pa.Table) -> list[tuple[str, int, dict[str, int]]]:
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


def iter_audits(records: pa.Table) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(class name, class index, audit) of every record."""
    for batch in records.select(["class", "class_id", "audit"]).to_batches(max_chunksize=4096):
        for name, index, audit in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield name, index, json.loads(audit or "{}")


@dataclass(frozen=True)
class LabelingSummary:
    """What APF, APR and SABR did to all samples of a draw.

    Attributes:
        samples: that were labelled.
        regions: of any class, by why APF freed them; "" for those that it kept.
        shares: mean share of the pixels that are free, relabeled, unlabeled, of the target, and moved by SABR.
        masks: how many of SAM's masks were accepted and refused.
        similarity: by class: s(r) of the target's regions, whether each was kept, and lambda_keep.
    """

    samples: int
    regions: Counter[str]
    shares: dict[str, float]
    masks: Counter[str]
    similarity: dict[str, tuple[np.ndarray, np.ndarray, float]]


def summarize_labeling(records: pa.Table) -> LabelingSummary:
    """`Totals` of the records of a draw, in one pass."""
    regions, pixels, masks, samples = Counter[str](), Counter[str](), Counter[str](), 0
    similar: dict[str, tuple[list[float], list[bool], float]] = {}
    for name, index, audit in iter_audits(records):
        if "pixels" not in audit:
            continue
        samples += 1
        sam = audit.get("sam", {})
        pixels.update(audit["pixels"] | {"moved": sam.get("changed", 0)})
        masks.update({key: sam.get(key, 0) for key in ("accepted", "refused")})
        for region in audit.get("regions", ()):
            regions[region["why"]] += 1
            if region["class"] == index and region["similarity"] is not None:
                values, kept, _ = similar.setdefault(name, ([], [], float(audit["lambda_keep"])))
                values.append(region["similarity"])
                kept.append(not region["why"])
    arrays = {name: (np.array(v), np.array(kept), least) for name, (v, kept, least) in sorted(similar.items())}
    return LabelingSummary(samples, regions, {key: value / samples for key, value in pixels.items()}, masks, arrays)


# -------------------------------------------------------------------------------------------------------- prompts
def prompt_banks(run: RunDir) -> list[dict[str, Any]]:
    """By class: accepted and refused prompts with similarity, nearest and why, and how diverse the bank is."""
    if not exists(run.prompts):
        return []
    table = read_parquet(run.prompts)
    said = {line["class_name"]: line for line in read_metrics(run) if line.get("stage") == "prompts" and "class_name" in line}
    found = []
    for name in pc.unique(table["class"]).to_pylist():
        rows = table.filter(pc.equal(table["class"], name)).to_pylist()
        bank = [row for row in rows if row["bank"] == HDIG]
        found.append(
            {
                "class": name,
                "plain": next((r["prompt"] for r in rows if r["bank"] != HDIG), ""),
                "accepted": [r for r in bank if r["accepted"]],
                "refused": [r for r in bank if not r["accepted"]],
                "diversity": said.get(name, {}),
            }
        )
    return found


def prompt_map(run: RunDir) -> list[dict[str, Any]]:
    """Prompts on a plane: {"class", "prompt", "x", "y"}, the two directions of their embeddings that vary most, each in [0, 1].

    At most `PROMPTS` in all, of every class as many.
    """
    from syn4seg.models.embeddings import EmbeddingStore

    if not (exists(run.plan) and exists(run.embeddings) and exists(run.prompts)):
        return []
    plan, names = read_planned_samples(run), {row["class_id"]: row["class"] for row in read_parquet(run.prompts).to_pylist()}
    most, taken = max(1, min(48, PROMPTS // max(1, len(names)))), Counter[int]()
    first: dict[tuple[int, int], str] = {}
    for index, prompt, row in zip(*(plan[c].to_pylist() for c in ("class_id", "prompt", "prompt_row")), strict=True):
        if taken[index] < most and (index, row) not in first:
            first[index, row] = prompt
            taken[index] += 1
    if len(first) < 2:
        return []
    vectors = EmbeddingStore(run.embeddings).pooled([row for _, row in first]).astype(np.float64)
    centred = vectors - vectors.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # else the signs are any
    places = centred @ axes.T
    if places.shape[1] < 2:
        places = np.pad(places, ((0, 0), (0, 1)))
    span = np.maximum(np.ptp(places, axis=0), 1e-9)
    places = (places - places.min(0)) / span
    return [
        {"class": names[index], "prompt": prompt, "x": round(float(x), 4), "y": round(float(y), 4)}
        for ((index, _), prompt), (x, y) in zip(first.items(), places, strict=True)
    ]


# -------------------------------------------------------------------------------------------------- label quality
def measure_label_quality(run: RunDir, draw: int, records: pa.Table, truth_of_one: Truth) -> dict[str, dict[str, float]]:
    """Quality of each stage's labels of samples that the renderer made, against its exact masks.

    Args:
        records: of the samples to compare.
        truth_of_one: as `truth_of` gives it.

    Returns:
        By stage, each in [0, 1]: target_iou, target_precision, target_recall, boundary_iou_2px, labelled_share.
    """
    from syn4seg.segmenter.evaluation import boundary_iou, confusion

    found: dict[str, tuple[list, list, list]] = {stage: ([], [], []) for stage in LABEL_COLUMNS}
    for page in read_pages(run, draw, records):
        for shown in (s for s in page if s.labels):
            record = shown.record
            exact = truth_of_one(record, shown.labels["label"].shape[0])
            if exact is None:
                continue
            truth = exact == record["class_id"]
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
        }
    return quality


def truth_source(config: Config) -> Truth | None:
    """What tells the exact label of an image, or None where nothing does: the renderer can draw an image once more."""
    from syn4seg.models.generators import generator_source
    from syn4seg.stages.setup import load_dataset

    if config.synthesis.source != "generate" or config.data.source != "embedded":
        return None
    truth = generator_source(config.synthesis.model).truth
    if truth is None:
        return None

    table = load_dataset(config)[1].to_index

    def drawn_again(record: dict[str, Any], side: int) -> np.ndarray | None:
        try:
            return table[truth(record["prompt"], record["noise_seed"], side)].astype(np.uint8)
        except UserError:  # no prompt of the embedded world: somebody changed the record
            return None

    return drawn_again


def measure_run_quality(run: RunDir, config: Config, draw: int, records: pa.Table) -> dict[str, dict[str, float]]:
    """`label_quality` of accepted samples of the diverse bank, at most `MEASURED`; empty where the truth is not known."""
    truth = truth_source(config)
    wanted = records.filter(pc.and_(pc.equal(records["reason"], ""), pc.starts_with(records["sample_id"], HDIG)))
    if truth is None or not len(wanted):
        return {}
    step = -(-len(wanted) // MEASURED)
    return measure_label_quality(run, draw, wanted.take(np.arange(0, len(wanted), step)), truth)


# -------------------------------------------------------------------------------------------------- over time
def load_curves(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """By stage of the stream: arrays seconds, rows_per_second, busy_share; streams follow one another, with a gap (nan)."""
    found: dict[str, dict[str, list[float]]] = {}
    offset, before = 0.0, None
    for line in (line for line in lines if line.get("kind") == "load" and story.is_load_line(line)):
        again = before is not None and story.starts_new_stream(before, line)
        if before is not None and again:
            offset += _number(before, "seconds", 0.0)
        before, moment = line, offset + _number(line, "seconds", 0.0)
        for name, values in line["stages"].items():
            series = found.setdefault(name, {"seconds": [], "rows_per_second": [], "busy_share": []})
            series["seconds"] += [offset, moment] if again else [moment]
            for key in ("rows_per_second", "busy_share"):
                series[key] += [float("nan")] * again + [_number(values, key, float("nan"))]
    return {name: {k: np.array(v, float) for k, v in series.items()} for name, series in found.items()}


def _number(values: dict[str, Any], key: str, otherwise: float) -> float:
    found = story.finite_number(values.get(key))
    return otherwise if found is None else float(found)


def loss_curves(lines: Sequence[dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name of a curve: steps and losses, as far as the run wrote them down, thinned to `POINTS`."""
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
    thin = {
        name: [curve[i] for i in np.linspace(0, len(curve) - 1, min(len(curve), POINTS)).round().astype(int)]
        for name, curve in found.items()
    }
    return {name: (np.array([s for s, _ in curve]), np.array([v for _, v in curve])) for name, curve in thin.items()}


def read_results(run: RunDir) -> dict[str, Any] | None:
    """results.json, or None before there is one."""
    return read_json(run.results) if exists(run.results) else None
