"""Write the folder of a trained model from a run: weights, config.json and the card; it names no path of the machine."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.exports.lineage import licences, public_name, shared_columns
from syn4seg.exports.target import lies_in
from syn4seg.report.sheets import class_colors, rgb_of
from syn4seg.schema import FAULT, RECORD
from syn4seg.segmenter.model_folder import CONFIG, FILES, README, ModelCanvas, ModelClass, ModelConfig, ModelWeights
from syn4seg.stages.classifiers import best_row, trained_segmenter
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.rows import RESULT_NAMES, ROWS, WITHOUT_VERDICT, joint_rows, scored_rows
from syn4seg.store.files import as_path, check_reachable, exists, remove, write_atomically
from syn4seg.store.listing import list_files
from syn4seg.store.readback import BaseFacts, Provenance, Results, SupportFacts, read_checked
from syn4seg.store.tables import read_parquet
from syn4seg.trained.card import card

if TYPE_CHECKING:
    from syn4seg.data.datasets import Fold
    from syn4seg.segmenter.network import NetworkShape, Segmenter
    from syn4seg.store.files import AnyPath
    from syn4seg.store.rundir import RunDir

Write = Callable[["AnyPath", bytes], None]


def write_model(
    run: RunDir,
    config: Config,
    fold: Fold,
    folder: AnyPath,
    *,
    draw: int | None = None,
    row: str | None = None,
    write: Write = write_atomically,
) -> ModelConfig:
    """Write the model of a row as safetensors, config.json and README.md; the same run gives the same bytes.

    config.json is written last and names the digest of the weights: a folder that a crash left half written is refused.

    Args:
        draw: by default the first one of the run; never the one with the best scores, which would be chosen by the queries.
        row: by default the one that was trained in the fullest way (`best_row`).
        write: puts bytes there; `seals.rewrite_sealed` inside a run.

    Raises:
        UserError: the run has no such draw or row, or it is not trained.
    """
    from syn4seg.segmenter.network import save_segmenter

    draw, row = choose(run, config, draw, row)
    segmenter, header = trained_segmenter(config, run, draw, row)
    shape = public_shape(segmenter, header)
    kept: list[bytes] = []
    save_segmenter(
        segmenter, folder / FILES["safetensors"], backbone=shape.backbone, facts={}, write=lambda _, d: kept.append(d), whole=True
    )
    write(folder / FILES["safetensors"], kept[0])
    digest = hashlib.sha256(kept[0]).hexdigest()
    found = describe_model(run, config, fold, draw, row, shape, "safetensors", digest)
    write_facts(folder, found, write)
    return found


def public_shape(segmenter: Segmenter, header: NetworkShape) -> NetworkShape:
    """Return what a segmenter is built of, without the place from which its backbone came."""
    from syn4seg.segmenter.network import shape_of

    is_public = header.mean is not None or not isinstance(header.backbone, str)  # that of a model that was extended is
    backbone = header.backbone if is_public else public_name(str(header.backbone))
    return shape_of(segmenter, backbone, whole=True)


def describe_model(
    run: RunDir, config: Config, fold: Fold, draw: int, row: str, network: NetworkShape, format: str, digest: str
) -> ModelConfig:
    """Return the config.json of a model whose weights have a format of `FILES` and a SHA-256."""
    return ModelConfig(
        weights=ModelWeights.model_validate({"format": format, "sha256": digest}),
        network=network,
        canvas=ModelCanvas(size=config.segmenter.size, kind=config.segmenter.canvas),
        classes=_classes(fold),
        provenance=provenance_of(run, config, draw, row),
    )


def model_folder(to: str, run: AnyPath) -> AnyPath:
    """Return the folder that a model is written to.

    Raises:
        UserError: it holds other files than those of a model, or lies in the run.
    """
    folder = as_path(to)
    check_reachable(folder)
    if exists(folder):
        raise UserError(f"--to {to}: is a file; give a folder that is empty or not there yet")
    if lies_in(folder, run):
        raise UserError(f"--to {to}: lies in the run {run}, whose own model is {run / 'model'}; give a folder outside of it")
    files = set(list_files(folder))
    if files and not (CONFIG in files and files <= {CONFIG, README, *FILES.values()}):
        raise UserError(f"--to {to}: holds other files ({min(files)}); give a folder that is empty or not there yet")
    return folder


def write_facts(folder: AnyPath, config: ModelConfig, write: Write = write_atomically) -> None:
    """Write README.md and config.json of a model."""
    write(folder / README, card(config).encode())
    write(folder / CONFIG, (config.model_dump_json(indent=1, exclude_none=True) + "\n").encode())
    for format, name in FILES.items():
        if format != config.weights.format and exists(folder / name):  # of an earlier model
            remove(folder / name)


def choose(run: RunDir, config: Config, draw: int | None, row: str | None) -> tuple[int, str]:
    """Return the draw and the row of which the model is made; see `write_model`.

    Raises:
        UserError: the run has no such draw or row, or it is not trained.
    """
    from syn4seg.stages.setup import draws_of

    draws = draws_of(config)
    if draw is None:
        draw = draws[0]
    if draw not in draws:
        raise UserError(f"--draw {draw}: this run has the draws {', '.join(map(str, draws))}")
    if row is None:
        return draw, best_row(config, run, draw)
    if row not in scored_rows(config):
        raise UserError(f"--row {row}: this run has the rows {', '.join(scored_rows(config))}")
    return draw, row


def _classes(fold: Fold) -> tuple[ModelClass, ...]:
    kinds = ["background", *("base" for _ in fold.base), *("novel" for _ in fold.novel)]
    ids, colors = [0, *fold.base, *fold.novel], map(rgb_of, class_colors(len(kinds)))
    rows = zip(fold.index_names, kinds, ids, colors, strict=True)
    return tuple(ModelClass.model_validate({"name": n, "kind": k, "id": i, "color": c}) for n, k, i, c in rows)


def provenance_of(run: RunDir, config: Config, draw: int, row: str) -> dict[str, Any]:
    """Return where a model comes from, as plain JSON; no path, no secret.

    Scores are those of the row over all draws of the run, null before its evaluation.
    """
    common = shared_columns(run, config)
    paths, stored = run.draw(draw), read_checked(run.provenance, Provenance) if exists(run.provenance) else {}
    support = read_checked(paths.support_json, SupportFacts)["support"] if exists(paths.support_json) else {}
    scores = read_checked(run.results, Results) if exists(run.results) else None
    name, base = RESULT_NAMES.get(row, row), read_checked(run.base_facts, BaseFacts) if exists(run.base_facts) else {}
    trained_on = joint_rows(config).get(row, row)
    used, prompts = ROWS[trained_on], Counter()
    if used[0]:
        prompts = synthetic_counts(run, draw, trained_on)
    parts = licences(common) if used[0] else {common["segmenter"]: licences(common)[common["segmenter"]]}
    return {
        "run": config.name,
        "row": name,
        "draw": draw,
        "draws": config.data.draws,
        "protocol": config.protocol,
        "data": config.data.source,
        "fold": str(config.data.fold),
        "shots": config.data.shots,
        "support": support,
        "synthetic_images": dict(sorted(prompts.items())),
        "generator": common["generator"] if used[0] else "none",
        "generator_revision": common["generator_revision"] if used[0] else "",
        "prompts_by": common["prompts_by"] if used[0] else "",
        "refiner": common["refiner"] if used[0] else "",
        "backbone": common["segmenter"],
        "trains": config.novel.trains if row in joint_rows(config) else "classifier",
        "base_stage": base.get("origin", ""),
        "scores": None if scores is None else scores["rows"].get(name),
        "per_class": None if scores is None else scores["per_class"].get(name),
        "scored_on": None if scores is None else scores["protocol"].get("evaluation_space"),
        "licences": parts | {f"data set {config.data.source}": _data_licence(config)},
        "fingerprints": stored.get("fingerprints", {}),
        "config_digest": common["config_digest"],
        "versions": stored.get("versions", {}),
    }


def synthetic_counts(run: RunDir, draw: int, row: str) -> Counter[str]:
    """Return how many synthetic images of each class a row was trained on."""
    bank, column = ROWS[row]
    manifest = run.draw(draw).manifest
    if not exists(manifest):
        return Counter()
    plan = read_planned_samples(run)
    banks = dict(zip(plan["sample_id"].to_pylist(), plan["bank"].to_pylist(), strict=True))
    records = read_parquet(manifest, ["sample_id", "class", "reason"], RECORD)
    columns = (records[key].to_pylist() for key in ("sample_id", "class", "reason"))
    taken = column in WITHOUT_VERDICT
    return Counter(
        name
        for sample, name, reason in zip(*columns, strict=True)
        if banks.get(sample) == bank and (not reason or (taken and not reason.startswith(FAULT)))
    )


def _data_licence(config: Config) -> str:
    return "Apache-2.0 (part of Syn4Seg on Ray)" if config.data.source == "embedded" else "see the data set's own terms"
