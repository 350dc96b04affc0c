"""The whole stream on one screen: plan -> Synthesizer -> Labeler -> Refiner -> Writer."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import functools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.balance import rebalance, sample_size
from actors.cluster import connect, joins_others, node_resources, store_bytes_for
from actors.columns import FAULT
from actors.labeler import Labeler
from actors.metrics import Meter, Totals
from actors.placement import Operator, preflight
from actors.refiner import Refiner
from actors.requester import Requester
from actors.streaming import run_inline, run_stream
from actors.synthesizer import Importer, Synthesizer, audit_warnings
from actors.writer import QuarantineWriter, Writer
from syn4seg.config.placement import PoolConfig, TrainingConfig
from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.models.generators import GENERATORS, load_generator
from syn4seg.models.support_images import load_image_to_image
from syn4seg.stages.results import count_values
from syn4seg.stages.setup import speed_of, support_pictures
from syn4seg.store.pulse import Pulse
from syn4seg.store.rundir import RunDir

STORE_SHARE = 0.5
"""Share of `store_bytes_for(placement)` that Ray Data may plan with: it overruns its limit by what is in flight."""
FUSED_ACTORS = 4
"""Most actors that hold the whole chain each: a pool for every operator would not keep more cores busy."""
MIN_ENDED = 64
"""Samples that must have ended before a share of them says anything about the whole run."""
COMPACT_SECONDS = 60.0
"""How often the finished parts of a sharded run are looked at while it runs, to be merged if they fill a shard."""
Progress = Callable[[int, int, Counter], None]
"""Called with (rows done, rows in all, reasons so far)."""


def operator_pools(config: Config) -> dict[str, PoolConfig]:
    """Return the pool of each operator; generator calls take whole planned batches. `placement.sizes=auto` begins with size 1."""
    place, planned = config.placement, config.synthesis.batch
    whole = math.ceil(place.synthesis.batch / planned) * planned
    pools = {
        "synthesis": place.synthesis.model_copy(update={"batch": whole}),
        "labeling": place.labeling,
        "refinement": place.refinement,
        "writing": PoolConfig(batch=place.refinement.batch, cpus=min(0.25, place.refinement.cpus)),
    }
    if place.sizes == "auto":
        return {name: pool.model_copy(update={"size": 1}) for name, pool in pools.items()}
    return pools


def fused_actors(config: Config, calls: int) -> int:
    """Return how many actors hold the whole chain each; 0: a pool of actors for each operator.

    Args:
        calls: of the stream; no more actors than that.
    """
    place, source = config.placement, config.synthesis
    if not place.fused:
        return 0
    if place.fused == "auto" and (place.is_pooled or joins_others(place.address) or source.source == "api"):
        return 0
    is_large = source.source == "generate" and source.model not in GENERATORS  # its weights once, whatever they weigh
    return 1 if is_large else max(1, min(os.cpu_count() or 1, FUSED_ACTORS, calls))


def check_placement(config: Config) -> None:
    """Join Ray and refuse a placement that does not fit, before any model loads.

    Raises:
        UserError: pools that do not fit on the cluster, or a GPU that is not there.
    """
    place, pools = config.placement, operator_pools(config)
    loading = {"encoding": place.encoding} | {name: pool for name, pool in pools.items() if name != "writing"}
    if place.runner == "ray":
        connect(place)
        preflight([Operator(Labeler, {}, place.encoding, "encoding")], node_resources())
        preflight([Operator(Labeler, {}, pool, name) for name, pool in pools.items()], node_resources())
        without = [name for name, pool in loading.items() if not pool.gpus]
        if place.device == "cuda" and without:
            raise UserError(
                f"placement.device=cuda: an actor sees a GPU only if its pool has a share of one; set "
                f"placement.{without[0]}.gpus above 0, or placement.device=auto"
            )
        return
    on_gpu = [name for name, pool in loading.items() if device_of(config, pool) == "cuda"]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                f"placement.{on_gpu[0]}.gpus={loading[on_gpu[0]].gpus:g}, placement.device={place.device}: this machine "
                "has no usable GPU; set the gpus of every pool to 0, or placement.device=cpu"
            )


def device_of(config: Config, pool: PoolConfig) -> str:
    """Return the device of a pool: `auto` is the GPU for one that asks for a share, else the CPU; the same with and without Ray."""
    return ("cuda" if pool.gpus else "cpu") if config.placement.device == "auto" else config.placement.device


def operators(config: Config, run: RunDir, names: tuple[str, ...], draw: int | None) -> list[Operator]:
    """Return the operators of one pass: images only (`draw` None), or images and every label of one support draw."""
    pools, root = operator_pools(config), run.address
    devices = {name: device_of(config, pool) for name, pool in pools.items()}
    written = {"run": root, "names": names}

    def operator(name: str, actor: type, **kwargs: Any) -> Operator:
        return Operator(actor, kwargs, pools[name], name)

    if config.synthesis.source == "folder":
        images = operator("synthesis", Importer, **written, root=str(config.synthesis.root))
    elif config.synthesis.source == "api":
        images = operator("synthesis", Requester, **written, settings=config.synthesis)
    else:
        settings = config.synthesis
        load = functools.partial(
            load_generator,
            settings.model,
            steps=settings.steps,
            guidance=settings.guidance,
            size=settings.size,
            device=devices["synthesis"],
            speed=speed_of(config),
        )
        if settings.support == "image_to_image":
            load = functools.partial(load_image_to_image, load, support_pictures(config), settings.support_strength)
        images = operator("synthesis", Synthesizer, **written, load=load, planned=settings.batch)
    if draw is None:
        return [images, operator("writing", QuarantineWriter, **written)]
    limits = config.labeling.min_target, config.labeling.max_target
    return [
        images,
        operator("labeling", Labeler, **written, draw=draw, config=config, device=devices["labeling"]),
        operator("refinement", Refiner, settings=config.refinement, limits=limits, device=devices["refinement"]),
        operator("writing", Writer, **written, draw=draw),
    ]


def unfinished_rows(plan: pa.Table, finished: Iterable[str] | pa.ChunkedArray, images: pa.Table | None = None) -> pa.Table:
    """Return the plan's rows of every generator batch with unfinished samples, with the columns `todo`, `image_at` and no reason.

    Args:
        finished: ids of the samples that are done.
        images: columns `sample_id` and `image_at` of the images that exist already.
    """
    done = finished.combine_chunks() if isinstance(finished, pa.ChunkedArray) else pa.array(list(finished), pa.string())
    unfinished = pc.and_(pc.invert(plan["padding"]), pc.invert(pc.is_in(plan["sample_id"], done)))
    in_batch = pc.is_in(plan["batch"], pc.unique(plan["batch"].filter(unfinished)))
    table = plan.drop_columns(["padding"]).append_column("todo", unfinished).filter(in_batch)
    paths = empty = pa.array([""] * table.num_rows, pa.string())
    if images is not None:
        index = pc.index_in(table["sample_id"], images["sample_id"].combine_chunks())
        paths = pc.fill_null(images["image_at"].take(index), "")
    return table.append_column("image_at", paths).append_column("reason", empty).append_column("traceback", empty)


def stream(
    config: Config,
    run: RunDir,
    names: tuple[str, ...],
    draw: int | None,
    progress: Progress,
    note: Callable[[str], None] = lambda line: None,
    beside: TrainingConfig | None = None,
) -> Counter:
    """Make everything that the plan still lacks; safe to stop at any moment and to call again.

    Args:
        names: class names by class index (0 is the background).
        draw: the support draw to label with, or None to make images only.
        note: called with one line for each thing that a person should know about the images, and about the sizes of the pools.
        beside: training workers that run at the same time, whose share of the cluster is not the stream's.

    Returns:
        How many samples of this pass ended with which reason ("" is accepted).

    Raises:
        UserError: the placement does not fit, or more than `placement.max_quarantined` of the finished samples are faults.
    """
    run.samples.compact(draw)
    plan, images, ended = run.read_plan(), run.samples.images(), Counter()
    planned = pc.sum(pc.invert(plan["padding"])).as_py()
    if draw is None:
        finished = [*images["sample_id"].to_pylist(), *run.quarantined_ids()]
    else:
        complete = run.draw(draw).complete()
        finished, ended = complete["sample_id"], count_values(complete["reason"])
    rows = unfinished_rows(plan, finished, images)
    reasons, kinds = Counter(), _kinds(ended)
    done = planned - (pc.sum(rows["todo"]).as_py() or 0)
    pulse = Pulse(run.log, stage="stream", draw=draw)

    def report() -> None:
        progress(done, planned, ended)
        pulse(done, planned, reasons=kinds)
        _stop_if_failing(config, ended, kinds, planned)

    report()
    if rows.num_rows == 0:
        return reasons
    started, first, audits = time.time(), done, []
    compacted = started
    for batch in _run(config, run, rows, operators(config, run, names, draw), draw, note, beside):
        counts = Counter(str(r) for r in batch["reason"])
        reasons.update(counts)
        ended.update(counts)
        kinds.update(_kinds(counts))
        done += counts.total()
        report()
        audits += [json.loads(text) for text in batch["synthesis_audit"] if text != "{}"]
        if time.time() - compacted > COMPACT_SECONDS:
            run.samples.compact(draw, whole=False)
            compacted = time.time()
    run.samples.compact(draw)
    for line in audit_warnings(audits):
        note(f"warning: {line}")
    seconds = time.time() - started
    run.log(stage="stream", draw=draw, rows=done - first, seconds=seconds, rows_per_second=(done - first) / seconds)
    return reasons


def _run(
    config: Config,
    run: RunDir,
    rows: pa.Table,
    chain: list[Operator],
    draw: int | None,
    note: Callable[[str], None],
    beside: TrainingConfig | None,
) -> Iterator[dict[str, Any]]:
    """Run the rows through the operators; with `placement.sizes=auto` a sample of them first, to measure each operator."""
    place, block = config.placement, chain[0].pool.batch
    if place.runner == "inline":
        yield from run_inline(rows, chain, block)
        return
    connect(place)
    pools = ", ".join(f"{operator.name} {operator.pool.size}" for operator in chain)
    fused = fused_actors(config, math.ceil(rows.num_rows / block))
    note(f"starting actors ({f'{fused}, each with all stages' if fused else pools}); each loads its models first")
    measured: dict[str, Mapping[str, float]] = {}

    def streamed(part: pa.Table, chain: list[Operator]) -> Iterator[dict[str, Any]]:
        entered = pc.sum(part["todo"]).as_py()
        meter = Meter(run.log, config.name, [operator.name for operator in chain], entered, stage="stream", draw=draw)

        def report(totals: Totals) -> None:
            meter(totals)
            measured.update(totals)

        settings: dict[str, Any] = {"run": config.name, "deadline": place.row_deadline}
        settings |= {
            "store_bytes": STORE_SHARE * store_bytes_for(place),
            "fused": fused_actors(config, math.ceil(len(part) / block)),
        }
        return run_stream(part, chain, block, **settings, report=report)

    size = sample_size({operator.name: operator.pool for operator in chain})
    if place.sizes == "auto" and size < rows.num_rows:
        first = rows.num_rows - size  # the last rows: after a stop the first ones may have their images already
        single = [replace(operator, pool=operator.pool.model_copy(update={"max_size": None})) for operator in chain]
        yield from streamed(rows.slice(first), single)
        chain, line = _resize(chain, measured, beside)
        note(f"placement.sizes=auto: {line}")
        rows = rows.slice(0, first)
    yield from streamed(rows, chain)


def _resize(chain: list[Operator], totals: Totals, training: TrainingConfig | None) -> tuple[list[Operator], str]:
    """Return the operators with the pools that the connected cluster's nodes allow, and a line about them.

    Args:
        totals: what a sample of the rows took, see `Ledger.totals`.
        training: training workers that run beside the stream, and have their share first.
    """
    import ray

    measured = {}
    for operator in chain:
        total = totals.get(operator.name, {})
        warm = "warm_" if total.get("warm_rows") else ""
        measured[operator.name] = (int(total.get(f"{warm}rows", 0)), total.get(f"{warm}seconds", 0.0))
    nodes, living = node_resources(), sum(node["Alive"] for node in ray.nodes())
    pools, line = rebalance(measured, {o.name: o.pool for o in chain}, nodes[:living], nodes[living:], training)
    return [replace(operator, pool=pools[operator.name]) for operator in chain], line


def _stop_if_failing(config: Config, reasons: Counter, kinds: Counter, planned: int) -> None:
    """Raise a UserError if too many of the samples that have ended are faults; the first `MIN_ENDED` say too little."""
    faults = Counter({kind: count for kind, count in kinds.items() if kind.startswith(FAULT)})
    limit, ended = config.placement.max_quarantined, kinds.total()
    if faults.total() > limit * max(ended, min(planned, MIN_ENDED)):
        frequent = faults.most_common(1)[0][0]
        example = next(reason for reason in reasons if reason.startswith(FAULT) and _kind(reason) == frequent)
        raise UserError(
            f"{faults.total()} of {planned} samples are quarantined ({ended} have ended so far), more than "
            f"placement.max_quarantined={limit:g}; most frequent: {example}. Mend the cause, delete "
            "quarantined/, and run the same command again, which makes these samples anew"
        )


def _kinds(reasons: Counter) -> Counter:
    """Return how often each kind of reason occurs."""
    return sum((Counter({_kind(reason): count}) for reason, count in reasons.items()), Counter())


def _kind(reason: str) -> str:
    """Return the step and type of a fault: its text may name a row, a path or a number."""
    return ":".join(reason.split(":")[:3])
