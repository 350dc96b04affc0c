"""What a run ends with: manifest and digest of each draw, results.json, and the tables that people read."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.fingerprint import config_digest
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Fold
from syn4seg.errors import UserError
from syn4seg.schema import FAULT, LABEL_STAGES, RECORD
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.rows import BASELINE, RESULT_NAMES, rows_of
from syn4seg.store.files import exists, explain_errors, write_json
from syn4seg.store.rundir import Draw, RunDir, table_digest
from syn4seg.store.samples import check_names
from syn4seg.store.tables import read_parquet, write_parquet

METRICS = ("base", "base_with_background", "novel", "mean", "total", "harmonic", "harmonic_with_background")


def write_manifest(run: RunDir, draw: int) -> Counter:
    """Writes a draw's manifest.parquet from its records; returns how many samples ended with which reason."""
    records = run.draw(draw).table()
    write_parquet(run.draw(draw).manifest, records)
    return count_values(records["reason"])


def count_values(column: pa.ChunkedArray) -> Counter:
    """How often each text occurs in a column."""
    return Counter({row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()})


# -------------------------------------------------------------------------------------------------- verify
def verify_run(run: RunDir, quick: bool = False) -> tuple[str, list[str]]:
    """Recomputes every digest from the pixels in the run and compares it with the manifests.

    Args:
        quick: decode no pixel: compare manifest, plan and what is there (of a sharded run also the digests beside the pixels).

    Returns:
        The digest over all images and labels (`quick`: that of the manifests), and one line per mismatch (none if all is well).

    Raises:
        UserError: the run has no manifest yet, or it or the plan is damaged.
    """
    draws = [draw for draw in run.draws() if exists(draw.manifest)]
    if not draws:
        raise UserError(f"{run.root}: no manifest; expected a run that has finished `refine`; run the same command to finish it")
    wanted = read_planned_samples(run)["sample_id"]
    problems = [
        f"draw {draw.number}: has no manifest; run the same command again to finish it"
        for draw in run.draws()
        if draw not in draws and _begun(draw)
    ]
    columns, samples = [], RunDir(run.root).samples  # which knows nothing from before
    for draw in draws:
        table = _manifest(draw)
        twice = sorted(name for name, count in count_values(table["sample_id"]).items() if count > 1)
        problems += [f"draw {draw.number}: {s} is in the manifest more than once" for s in twice]
        for lacks in (_lacking(wanted, table["sample_id"]), _lacking(table["sample_id"], wanted)):
            problems += [f"draw {draw.number}: {s} is in the plan or the manifest, but not in both" for s in lacks]
        found, damaged = samples.digests(draw.number, table, quick)
        problems += [line for line in damaged if line not in problems]
        for key in ("image", *LABEL_STAGES):
            problems += _differing(draw.number, key, table, found[key])
        said = pc.if_else(pc.equal(pc.fill_null(found["label"], ""), ""), _verdicts(table["reason"]), found["label"])
        names = pc.binary_join_element_wise(f"{draw.number}", table["sample_id"], "/")
        columns.append((names, pc.fill_null(found["image"], ""), said))
    return table_digest(
        *(pa.chunked_array([chunk for c in column for chunk in c.chunks], pa.string()) for column in zip(*columns, strict=True))
    ), problems


def _begun(draw: Draw) -> bool:
    with explain_errors(draw.root, "read"):
        return any((draw.root / name).is_dir() for name in ("records", "labels"))


def _manifest(draw: Draw) -> pa.Table:
    """What is compared of a draw's manifest, with the types of `RECORD`."""
    columns = pa.schema([RECORD.field(name) for name in ("sample_id", "class", "reason", "image", *LABEL_STAGES)])
    table = read_parquet(draw.manifest, columns.names).select(columns.names).cast(columns)
    for name in ("sample_id", "class"):
        check_names(table[name], f"{draw.manifest}: {name}")
    return table


def _lacking(ids: pa.ChunkedArray, others: pa.ChunkedArray) -> list[str]:
    """What is among `ids` but not among `others`, sorted."""
    return sorted(ids.filter(pc.invert(pc.is_in(ids, others.combine_chunks()))).to_pylist())


def _differing(draw: int, key: str, table: pa.Table, found: pa.ChunkedArray) -> list[str]:
    wrong = pc.fill_null(pc.not_equal(table[key], found), False)
    return [
        f"draw {draw}: {key} of {sample} {'differs' if value else 'is missing'}"
        for sample, value in zip(table["sample_id"].filter(wrong).to_pylist(), found.filter(wrong).to_pylist(), strict=True)
    ]


def _verdicts(reasons: pa.ChunkedArray) -> pa.ChunkedArray:
    """The reasons of rejections; of faults only that they are some, for their texts may name places."""
    return pc.if_else(pc.starts_with(reasons, FAULT), pc.replace_substring_regex(reasons, "(?s):.*", ""), reasons)


# ------------------------------------------------------------------------------------------------- results
def summarise(
    config: Config, fold: Fold, matrices: dict[int, dict[str, np.ndarray]], unpublished: Sequence[str] = ()
) -> dict[str, Any]:
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
        "classes": list(fold.index_names),  # by class index; the keys of per_class are sorted when they are written
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
    return (
        {m: spread([f[m] for f in found]) for m in METRICS},
        {name: spread(ious[:, i]) for i, name in enumerate(fold.index_names)},
    )


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
        "preset": config.protocol,
        "deviations": [*config.deviations(), *strange],
        "data": data.source,
        "train_list": lists,
        "backbone": config.segmenter.backbone,
        "weights": config.segmenter.weights or "none",
        "masks": data.masks if data.source == "coco" else "as given",
        "canvas": config.segmenter.size,
        "canvas_kind": config.segmenter.canvas,
        "align_corners": config.segmenter.align_corners,
        "first_draw": data.first_draw,
        "fold": data.fold,
        "shots": data.shots,
        "draws": data.draws,
        "novel": [fold.names[k - 1] for k in fold.novel],
        "support_from": f"{data.support_from} list",
        "support_draw": data.support_draw,
        "support_reserve": data.support_reserve,
        "min_support_pixels": data.min_support_pixels,
        "only_one_novel_in_support": data.only_one_novel,
        "base_in_support": data.base_in_support,
        "base_images": config.base.images,
        "base_checkpoint": config.base.checkpoint,
        "evaluation_space": "original pixels" if evaluation.space == "original" else f"{config.segmenter.size} canvas",
        "queries": "val list"
        + (" without the draw's support" if data.support_from == "val" else "")
        + (f", {evaluation.queries} of them by a named draw" if evaluation.queries else ""),
        "base_mIoU": "with the background" if evaluation.background_in_base else "foreground base classes",
        "mean": "(base + novel) / 2" if evaluation.mean == "base_novel" else "over all classes (total)",
        "harmonic": "2bn / (b + n), per draw, of the base and novel mIoU shown",
        "replayed_base_images": config.novel.replay_images,
        "base_prototype_images": config.labeling.base_prototype_images,
        "transductive": config.synthesis.source != "generate",
        "generator": config.synthesis.model if config.synthesis.source == "generate" else "imported images",
    }


def funnel(run: RunDir) -> dict[str, Any]:
    """Counts per draw: planned, accepted, and each reason of rejection or quarantine."""
    draws = {}
    for draw in (draw for draw in run.draws() if exists(draw.manifest)):
        counts = count_values(read_parquet(draw.manifest, ["reason"])["reason"])
        draws[str(draw.number)] = {"accepted": counts.pop("", 0), "rejected": dict(sorted(counts.items()))}
    return {"planned": read_planned_samples(run).num_rows, "draws": draws}


def write_results(
    run: RunDir, config: Config, fold: Fold, matrices: dict[int, dict[str, np.ndarray]], unpublished: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes results.json, returns it, and logs the mean of every row and metric; `unpublished` as in `summarise`."""
    found = summarise(config, fold, matrices, unpublished) | {"funnel": funnel(run)}
    write_json(run.results, found)
    shown = found["rows"] | {name: told["metrics"] for name, told in found["baselines"].items()}
    run.log(stage="results", **{row: {metric: told[metric]["mean"] for metric in METRICS} for row, told in shown.items()})
    return found
