"""What a run ends with: manifest and digest of each draw, results.json, and the tables that people read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from syn4seg.config import Config, config_digest
from syn4seg.data.datasets import Fold
from syn4seg.rundir import Draw, RunDir, pixel_digest, read_image, run_digest, write_json
from syn4seg.schema import LABEL_STAGES
from syn4seg.stages.novel import BASELINE, RESULT_NAMES, rows_of
from syn4seg.stages.plan import planned, write_parquet

METRICS = ("base", "base_with_background", "novel", "mean", "total", "harmonic", "harmonic_with_background")


def write_manifest(run: RunDir, draw: int) -> Counter:
    """Writes a draw's manifest.parquet from its records; returns how many samples ended with which reason."""
    rows, reasons = [], Counter()
    for record in run.draw(draw).records():
        reasons[record["reason"]] += 1
        columns = ("sample_id", "class", "class_id", "prompt", "noise_seed", "batch", "reason", "image", *LABEL_STAGES)
        rows.append({key: record.get(key) for key in columns} | {"audit": json.dumps(record.get("audit", {}))})
    write_parquet(run.draw(draw).manifest, pa.Table.from_pylist(rows))
    return reasons


def verify(run: RunDir) -> tuple[str, list[str]]:
    """Recomputes every digest from the pixels on disk and compares it with the manifests.

    Returns:
        The digest over all images and labels, and one line per mismatch (none if all is well).

    Raises:
        ValueError: the run has no manifest yet.
    """
    manifests = sorted(run.root.glob("draws/*/manifest.parquet"), key=lambda p: int(p.parent.name))
    if not manifests:
        raise ValueError(
            f"{run.root}: no manifest; expected a run that has finished `refine`; run the same command to finish it"
        )
    wanted = set(planned(run)["sample_id"].to_pylist())
    rows, problems = [], []
    open_draws = {p.parent.name for p in run.root.glob("draws/*/records")} - {p.parent.name for p in manifests}
    problems += [
        f"draw {name}: has no manifest; run the same command again to finish it" for name in sorted(open_draws)
    ]
    for path in manifests:
        draw = Draw(path.parent)
        table = pq.read_table(path).to_pylist()
        for sample in sorted(wanted ^ {row["sample_id"] for row in table}):
            problems.append(f"draw {draw.root.name}: {sample} is in the plan or the manifest, but not in both")
        for row in table:
            found = {key: _digest_of(run, draw, row, key) for key in ("image", *LABEL_STAGES) if row[key] is not None}
            problems += [f"draw {draw.root.name}: {key} of {row['sample_id']} {'is missing' if not value else 'differs'}"
                         for key, value in found.items() if value != row[key]]  # fmt: skip
            said = found.get("label") or _verdict(row["reason"])
            rows.append((f"{draw.root.name}/{row['sample_id']}", found.get("image") or "", said))
    return run_digest(rows), problems


def _verdict(reason: str) -> str:
    """The reason of a rejection; of a fault only that it is one, for its text may name places."""
    return reason.partition(":")[0] if reason.startswith("fault") else reason


def _digest_of(run: RunDir, draw: Draw, row: dict[str, Any], key: str) -> str:
    name, sample = row["class"], row["sample_id"]
    path = run.image(name, sample) if key == "image" else draw.label(key, name, sample)
    try:
        return pixel_digest(read_image(path))
    except ValueError:
        return ""


# ------------------------------------------------------------------------------------------------- results
def summarise(config: Config, fold: Fold, matrices: dict[int, dict[str, np.ndarray]],
              unpublished: Sequence[str] = ()) -> dict[str, Any]:  # fmt: skip
    """results.json: every metric of every row and baseline as mean, standard deviation and number of draws.

    Args:
        unpublished: a line for each list of the data set that is not the published one.
    """
    from syn4seg.baselines import facts

    rows, per_class = {}, {}
    for row in rows_of(config):
        rows[RESULT_NAMES[row]], per_class[RESULT_NAMES[row]] = _figures(fold, row, matrices)
    baselines = {}
    for name in config.evaluation.baselines:
        figures, classes = _figures(fold, BASELINE + name, matrices)
        baselines[name] = {"metrics": figures, "per_class": classes, **facts(name)}
    return {
        "rows": rows,
        "per_class": per_class,
        "baselines": baselines,
        "protocol": protocol(config, fold, unpublished),
        "config_digest": config_digest(config),
    }


def _figures(fold: Fold, row: str, matrices: dict[int, dict[str, np.ndarray]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Spread of every metric and of every class's IoU over the draws of a row."""
    from syn4seg.segmenter.evaluation import metrics

    found = [metrics(rows[row], len(fold.base), len(fold.novel)) for _, rows in sorted(matrices.items())]
    ious = np.array([f["per_class"] for f in found], float)
    return ({m: spread([f[m] for f in found]) for m in METRICS},
            {name: spread(ious[:, i]) for i, name in enumerate(fold.index_names)})  # fmt: skip


def spread(values) -> dict[str, Any]:
    """Mean, sample standard deviation (0 for one value) and count of the values that are not nan."""
    there = np.array([v for v in values if v is not None and not np.isnan(v)], float)
    if not len(there):
        return {"mean": None, "std": None, "n": 0}
    return {"mean": float(there.mean()), "std": float(there.std(ddof=1)) if len(there) > 1 else 0.0, "n": len(there)}


def protocol(config: Config, fold: Fold, unpublished: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that makes numbers comparable or not; imported images count as transductive (they may be queries)."""
    data, evaluation, strange = config.data, config.evaluation, unpublished if config.protocol != "none" else ()
    lists = {"pascal": data.train_list, "coco": "train2014"}.get(data.source, "train list")
    return {
        "preset": config.protocol, "deviations": [*config.deviations(), *strange], "data": data.source, "train_list": lists,
        "backbone": config.segmenter.backbone, "weights": config.segmenter.weights or "none",
        "masks": data.masks if data.source == "coco" else "as given", "canvas": config.segmenter.size,
        "canvas_kind": config.segmenter.canvas, "align_corners": config.segmenter.align_corners,
        "first_draw": data.first_draw, "fold": data.fold, "shots": data.shots, "draws": data.draws,
        "novel": [fold.names[k - 1] for k in fold.novel], "support_from": f"{data.support_from} list",
        "support_draw": data.support_draw, "support_reserve": data.support_reserve,
        "min_support_pixels": data.min_support_pixels, "only_one_novel_in_support": data.only_one_novel,
        "base_in_support": data.base_in_support, "base_images": config.base.images, "base_checkpoint": config.base.checkpoint,
        "evaluation_space": "original pixels" if evaluation.space == "original" else f"{config.segmenter.size} canvas",
        "queries": "val list" + (" without the draw's support" if data.support_from == "val" else "")
        + (f", {evaluation.queries} of them by a named draw" if evaluation.queries else ""),
        "base_mIoU": "with the background" if evaluation.background_in_base else "foreground base classes",
        "mean": "(base + novel) / 2" if evaluation.mean == "base_novel" else "over all classes (total)",
        "harmonic": "2bn / (b + n), per draw, of the base and novel mIoU shown", "replayed_base_images": config.novel.replay_images,
        "base_prototype_images": config.labeling.base_prototype_images,
        "transductive": config.synthesis.source != "generate",
        "generator": config.synthesis.model if config.synthesis.source == "generate" else "imported images",
    }  # fmt: skip


def funnel(run: RunDir) -> dict[str, Any]:
    """Counts per draw: planned, accepted, and each reason of rejection or quarantine."""
    draws = {}
    for path in sorted(run.root.glob("draws/*/manifest.parquet")):
        counts = Counter(pq.read_table(path, columns=["reason"])["reason"].to_pylist())
        draws[path.parent.name] = {"accepted": counts.pop("", 0), "rejected": dict(sorted(counts.items()))}
    return {"planned": planned(run).num_rows, "draws": draws}


def write_results(run: RunDir, config: Config, fold: Fold, matrices: dict[int, dict[str, np.ndarray]],
                  unpublished: Sequence[str] = ()) -> dict[str, Any]:  # fmt: skip
    """Writes results.json and returns it; `unpublished` as in `summarise`."""
    found = summarise(config, fold, matrices, unpublished) | {"funnel": funnel(run)}
    write_json(run.results, found)
    return found
