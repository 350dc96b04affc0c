"""What a run ends with: manifest and digest of each draw, and results.json."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.fingerprint import config_digest
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Fold
from syn4seg.errors import DamagedError, UserError
from syn4seg.schema import FAULT, LABEL_COLUMNS, RECORD
from syn4seg.stages.gains import paired_gains
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.rows import BASELINE, RESULT_NAMES, scored_rows
from syn4seg.store.files import exists, explain_errors
from syn4seg.store.rundir import Draw, RunDir, table_digest
from syn4seg.store.samples import check_class_name, check_names
from syn4seg.store.seals import broken_seals, write_sealed_json
from syn4seg.store.tables import read_parquet, write_parquet

if TYPE_CHECKING:
    from syn4seg.segmenter.evaluation import Metrics

NO_QUERIES = "none"
"""What a protocol says of the queries where the data set has none, so that nothing was scored."""
METRICS = ("base", "base_with_background", "novel", "mean", "total", "harmonic", "harmonic_with_background")


def write_manifest(run: RunDir, draw: int) -> Counter:
    """Write a draw's manifest.parquet from its records, with the bank of each prompt; return how many samples ended with which
    reason."""
    records = run.draw(draw).table()
    table = with_bank(records, read_planned_samples(run)) if exists(run.plan) else records
    write_parquet(run.draw(draw).manifest, table)
    return count_values(records["reason"])


def with_bank(records: pa.Table, plan: pa.Table) -> pa.Table:
    """Return records with a last column `bank`, which the plan has; empty for a sample that is not planned."""
    rows = pc.index_in(records["sample_id"], plan["sample_id"].combine_chunks())
    return records.append_column("bank", pc.fill_null(plan["bank"].take(rows), ""))


def count_values(column: pa.ChunkedArray) -> Counter:
    """Return how often each text occurs in a column."""
    return Counter({row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()})


def verify_run(run: RunDir, quick: bool = False) -> tuple[str, list[str]]:
    """Recompute every digest from the pixels in the run and in its earlier rounds, and compare it with the manifests.

    Args:
        quick: decode no pixel: compare manifest, plan and the existing files (of a sharded run also the digests beside the pixels).

    Returns:
        The digest over all images and labels (`quick`: that of the manifests), and one line per mismatch (none if all is well).

    Raises:
        UserError: the run has no manifest yet, or it or the plan is damaged.
    """
    draws = [draw for draw in run.draws() if exists(draw.manifest)]
    if not draws:
        raise UserError(f"{run.root}: no manifest; expected a run that has finished `refine`; run the same command to finish it")
    problems = broken_seals(run.root)
    planned = read_planned_samples(run)["sample_id"]
    problems += [
        f"draw {draw.number}: has no manifest; run the same command again to finish it"
        for draw in run.draws()
        if draw not in draws and _begun(draw)
    ]
    columns, samples = [], RunDir(run.root).samples  # a new object, which has cached nothing
    for draw in draws:
        table = _manifest(draw)
        ids = table["sample_id"]
        twice = sorted(name for name, count in count_values(ids).items() if count > 1)
        problems += [f"draw {draw.number}: {s} is in the manifest more than once" for s in twice]
        for missing in (_difference(planned, ids), _difference(ids, planned)):
            problems += [f"draw {draw.number}: {s} is in the plan or the manifest, but not in both" for s in missing]
        if not quick:
            problems += _changed_records(draw)
        digests, damaged = samples.digests(draw.number, table, quick)
        problems += [line for line in damaged if line not in problems]
        for key in ("image", *LABEL_COLUMNS):
            problems += _mismatches(draw.number, key, table, digests[key])
        has_label = pc.not_equal(pc.fill_null(digests["label"], ""), "")
        labels = pc.if_else(has_label, digests["label"], _verdicts(table["reason"]))
        names = pc.binary_join_element_wise(f"{draw.number}", ids, "/")
        columns.append((names, pc.fill_null(digests["image"], ""), labels))
    for earlier in run.rounds():
        problems += [f"{earlier.root}: {line}" for line in verify_run(earlier, quick)[1]]
    chunks = ([chunk for part in column for chunk in part.chunks] for column in zip(*columns, strict=True))
    return table_digest(*(pa.chunked_array(c, pa.string()) for c in chunks)), problems


def _changed_records(draw: Draw) -> list[str]:
    """Return a line for every sample whose record is not readable, or does not say what the manifest says."""
    columns = [name for name in RECORD.names if name not in ("image", *LABEL_COLUMNS)]  # those are compared with the pixels
    recorded, listed = draw.table(), read_parquet(draw.manifest, columns, RECORD)
    rows = pc.index_in(listed["sample_id"], value_set=recorded["sample_id"].combine_chunks())
    without = listed["sample_id"].filter(rows.is_null()).to_pylist()
    lines = [f"draw {draw.number}: the record of {sample} is missing or damaged" for sample in without]
    listed, recorded = listed.filter(rows.is_valid()), recorded.take(rows.drop_null())
    for name in columns[1:]:
        kind = RECORD.field(name).type
        same = pc.equal(*(pc.fill_null(table[name].cast(kind), "" if kind == pa.string() else -1) for table in (recorded, listed)))
        for sample in recorded["sample_id"].filter(pc.invert(same)).to_pylist():
            lines.append(f"draw {draw.number}: {name} of {sample} is another one in its record than in the manifest")
    return lines


def _begun(draw: Draw) -> bool:
    """Return whether anything of a draw has been written."""
    with explain_errors(draw.root, "read"):
        return any((draw.root / name).is_dir() for name in ("records", "labels"))


def _manifest(draw: Draw) -> pa.Table:
    """Return the columns of a draw's manifest that are compared, with the types of `RECORD`."""
    columns = pa.schema([RECORD.field(name) for name in ("sample_id", "class", "reason", "image", *LABEL_COLUMNS)])
    table = read_parquet(draw.manifest, columns.names, RECORD).select(columns.names).cast(columns)
    check_names(table["sample_id"], f"{draw.manifest}: sample_id")
    for name in pc.unique(table["class"]).to_pylist():
        try:
            check_class_name(name or "")
        except UserError as error:
            raise DamagedError(f"{draw.manifest}: {error}") from None
    return table


def _difference(ids: pa.ChunkedArray, others: pa.ChunkedArray) -> list[str]:
    """Return the ids that are not among `others`, sorted."""
    return sorted(ids.filter(pc.invert(pc.is_in(ids, others.combine_chunks()))).to_pylist())


def _mismatches(draw: int, key: str, table: pa.Table, digests: pa.ChunkedArray) -> list[str]:
    """Return a line for each sample whose digest is not that of the manifest."""
    wrong = pc.fill_null(pc.not_equal(table[key], digests), False)
    return [
        f"draw {draw}: {key} of {sample} {'differs' if digest else 'is missing'}"
        for sample, digest in zip(table["sample_id"].filter(wrong).to_pylist(), digests.filter(wrong).to_pylist(), strict=True)
    ]


def _verdicts(reasons: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the reasons of rejections; a fault without its text, which may name paths."""
    return pc.if_else(pc.starts_with(reasons, FAULT), pc.replace_substring_regex(reasons, "(?s):.*", ""), reasons)


def summarise(
    config: Config, fold: Fold, matrices: dict[int, dict[str, np.ndarray]], unpublished: Sequence[str] = ()
) -> dict[str, Any]:
    """Return results.json: every metric of every row and baseline as mean, standard deviation and number of draws.

    Args:
        matrices: of every draw and row; none where the data set has no queries: then every figure is None.
        unpublished: a line for each list of the data set that is not the published one.
    """
    from syn4seg.baselines import facts_of

    rows, per_class, by_draw = {}, {}, {}
    for row in scored_rows(config):
        name = RESULT_NAMES.get(row, row)
        by_draw[name] = _by_draw(fold, row, matrices)
        rows[name], per_class[name] = _figures(fold, by_draw[name])
    baselines = {}
    for name in config.evaluation.baselines:
        figures, classes = _figures(fold, _by_draw(fold, BASELINE + name, matrices))
        baselines[name] = {"metrics": figures, "per_class": classes, **facts_of(name)}
    return {
        "classes": list(fold.index_names),  # by class index; the keys of per_class are sorted when they are written
        "rows": rows,
        "gains": paired_gains(by_draw),
        "per_class": per_class,
        "baselines": baselines,
        "protocol": protocol(config, fold, unpublished) | ({} if matrices else {"queries": NO_QUERIES}),
        "config_digest": config_digest(config),
    }


def _by_draw(fold: Fold, row: str, matrices: dict[int, dict[str, np.ndarray]]) -> list[Metrics]:
    from syn4seg.segmenter.evaluation import metrics

    return [metrics(rows[row], len(fold.base), len(fold.novel)) for _, rows in sorted(matrices.items())]


def _figures(fold: Fold, draws: list[Metrics]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the spread of every metric and of every class's IoU over the draws of a row.

    Two harmonic means are among them: `harmonic`, the mean over draws of each draw's, and `harmonic_of_means`, that of the two
    means shown beside it. They differ where draws do.
    """
    ious = np.array([values["per_class"] for values in draws], float).reshape(len(draws), len(fold.index_names))
    per_class = {name: spread(ious[:, i]) for i, name in enumerate(fold.index_names)}
    figures = {metric: spread([values[metric] for values in draws]) for metric in METRICS}
    base, novel = figures["base"]["mean"], figures["novel"]["mean"]
    of_means = None if None in (base, novel) else 2 * base * novel / (base + novel) if base and novel else 0.0
    return figures | {"harmonic_of_means": {"mean": of_means, "std": None, "n": len(draws)}}, per_class


def spread(values: Iterable[float | None]) -> dict[str, Any]:
    """Return mean, sample standard deviation (0 for one value) and count of the values that are neither None nor nan."""
    numbers = np.array([v for v in values if v is not None and not np.isnan(v)], float)
    if not len(numbers):
        return {"mean": None, "std": None, "n": 0}
    return {"mean": float(numbers.mean()), "std": float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0, "n": len(numbers)}


def protocol(config: Config, fold: Fold, unpublished: Sequence[str] = ()) -> dict[str, Any]:
    """Return everything that makes numbers comparable (method.md 7); imported images count as transductive (may be queries)."""
    data, evaluation = config.data, config.evaluation
    extra = unpublished if config.protocol != "none" else ()
    lists = {"pascal": data.train_list, "coco": "train2014"}.get(data.source, "train list")
    as_set = ("first_draw", "fold", "shots", "draws", "support_draw", "support_reserve", "min_support_pixels", "base_in_support")
    return {
        **{key: getattr(data, key) for key in as_set},
        "preset": config.protocol,
        "deviations": [*config.deviations(), *extra],
        "data": data.source,
        "train_list": lists,
        "backbone": config.network,
        "weights": config.segmenter.weights or "none",
        "masks": data.masks if data.source == "coco" else "as given",
        "canvas": config.segmenter.size,
        "canvas_kind": config.segmenter.canvas,
        "align_corners": config.segmenter.align_corners,
        "novel": [fold.names[k - 1] for k in fold.novel],
        "support_from": f"{data.support_from} list",
        "only_one_novel_in_support": data.only_one_novel,
        "base_images": config.base.images,
        "base_checkpoint": config.base.checkpoint,
        "evaluation_space": "original pixels" if evaluation.space == "original" else f"{config.segmenter.size} canvas",
        "queries": "val list"
        + (" without the draw's support" if data.support_from == "val" else "")
        + (f", {evaluation.queries} of them by a named draw" if evaluation.queries else ""),
        "base_mIoU": "with the background" if evaluation.background_in_base else "foreground base classes",
        "mean": "(base + novel) / 2" if evaluation.mean == "base_novel" else "over all classes (total)",
        "harmonic": "2bn / (b + n), per draw, of the base and novel mIoU shown; harmonic_of_means: of their means over draws",
        "base_data": config.novel.base_data,
        "replayed_base_images": config.base_images_used[0],
        "base_prototype_images": config.base_images_used[1],
        "transductive": not config.synthesis.from_prompts,
        "generator": config.synthesis.generator if config.synthesis.from_prompts else "imported images",
        **({"features": config.labeling.feature_backbone} if config.labeling.by_other_features else {}),
        **({"by_name": config.evaluation.by_name} if config.evaluation.by_name else {}),
    }


def funnel(run: RunDir) -> dict[str, Any]:
    """Return counts per draw: planned, accepted, and each reason of rejection or quarantine."""
    draws = {}
    for draw in (draw for draw in run.draws() if exists(draw.manifest)):
        counts = count_values(read_parquet(draw.manifest, ["reason"], RECORD)["reason"])
        draws[str(draw.number)] = {"accepted": counts.pop("", 0), "rejected": dict(sorted(counts.items()))}
    return {"planned": read_planned_samples(run).num_rows, "draws": draws}


def write_results(
    run: RunDir, config: Config, fold: Fold, matrices: dict[int, dict[str, np.ndarray]], unpublished: Sequence[str] = ()
) -> dict[str, Any]:
    """Write results.json, return it, and log the mean of every row and metric; `unpublished` as in `summarise`."""
    results = summarise(config, fold, matrices, unpublished) | {"funnel": funnel(run)}
    write_sealed_json(run.results, results)
    rows = results["rows"] | {name: baseline["metrics"] for name, baseline in results["baselines"].items()}
    run.log(stage="results", **{row: {metric: values[metric]["mean"] for metric in METRICS} for row, values in rows.items()})
    return results
