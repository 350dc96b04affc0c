"""The whole stream on one screen: plan -> Synthesizer -> Labeler -> Refiner -> Writer."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import functools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.balance import rebalance, sample_size
from actors.cluster import connect, node_resources, store_bytes_for
from actors.columns import FAULT
from actors.labeler import Labeler
from actors.metrics import Meter, Totals
from actors.placement import Operator, preflight
from actors.refiner import Refiner
from actors.streaming import run_inline, run_stream
from actors.synthesizer import Importer, Synthesizer, audit_warnings
from actors.writer import QuarantineWriter, Writer
from syn4seg.config.sections import PoolConfig, TrainingConfig
from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.models.generators import load_generator
from syn4seg.stages.results import count_values
from syn4seg.stages.setup import speed_of
from syn4seg.store.pulse import Pulse
from syn4seg.store.rundir import RunDir

STORE_SHARE = 0.5
"""Share of `store_bytes_for(placement)` that Ray Data may plan with: it overruns its limit by what is in flight."""
FEW = 64
"""Samples that must have ended before a share of them says anything about the whole run."""
COMPACT_SECONDS = 60.0
"""How often the finished parts of a sharded run are looked at while it runs, to be merged if they fill a shard."""
Progress = Callable[[int, int, Counter], None]
"""Called with (rows done, rows in all, reasons so far)."""


def operator_pools(config: Config) -> dict[str, PoolConfig]:
    """The pool of each stage; generator calls take whole planned batches. `placement.sizes=auto` begins with one actor each."""
    place, planned = config.placement, config.synthesis.batch
    whole = math.ceil(place.synthesis.batch / planned) * planned
    writing = PoolConfig(batch=place.refinement.batch, cpus=min(0.25, place.refinement.cpus))
    found = {
        "synthesis": place.synthesis.model_copy(update={"batch": whole}),
        "labeling": place.labeling,
        "refinement": place.refinement,
        "writing": writing,
    }
    if place.sizes == "auto":
        return {name: pool.model_copy(update={"size": 1}) for name, pool in found.items()}
    return found


def check_placement(config: Config) -> None:
    """Joins Ray and refuses a placement that does not fit, before any model loads.

    Raises:
        UserError: pools that do not fit on the cluster, or a GPU that is not there.
    """
    place = config.placement
    used = {"encoding": place.encoding, **operator_pools(config)}
    if place.runner == "ray":
        connect(place)
        preflight([Operator(Labeler, {}, place.encoding, "encoding")], node_resources())
        preflight([Operator(Labeler, {}, pool, name) for name, pool in operator_pools(config).items()], node_resources())
        without = [name for name, pool in used.items() if name != "writing" and not pool.gpus]
        if place.device == "cuda" and without:
            raise UserError(
                f"placement.device=cuda: an actor sees a GPU only if its pool has a share of one; set "
                f"placement.{without[0]}.gpus above 0, or placement.device=auto"
            )
        return
    wanted = [name for name, pool in used.items() if name != "writing" and device_of(config, pool) == "cuda"]
    if wanted:
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                f"placement.{wanted[0]}.gpus={used[wanted[0]].gpus:g}, placement.device={place.device}: this machine "
                "has no usable GPU; set the gpus of every pool to 0, or placement.device=cpu"
            )


def device_of(config: Config, pool: PoolConfig) -> str:
    """`auto` means the GPU for a pool that asks for one, else the CPU; the same with and without Ray."""
    return ("cuda" if pool.gpus else "cpu") if config.placement.device == "auto" else config.placement.device


def operators(config: Config, run: RunDir, names: tuple[str, ...], draw: int | None) -> list[Operator]:
    """The stages of one pass: images only (`draw` None), or images and every label of one support draw."""
    pool, root = operator_pools(config), run.address
    if config.synthesis.source == "folder":
        make = Operator(Importer, {"run": root, "names": names, "root": str(config.synthesis.root)}, pool["synthesis"], "synthesis")
    else:
        synthesis = config.synthesis
        speed = speed_of(config)
        load = functools.partial(
            load_generator,
            synthesis.model,
            steps=synthesis.steps,
            guidance=synthesis.guidance,
            size=synthesis.size,
            device=device_of(config, pool["synthesis"]),
            speed=speed,
        )
        make = Operator(
            Synthesizer, {"run": root, "names": names, "load": load, "planned": synthesis.batch}, pool["synthesis"], "synthesis"
        )
    if draw is None:
        return [make, Operator(QuarantineWriter, {"run": root, "names": names}, pool["writing"], "writing")]
    return [
        make,
        Operator(
            Labeler,
            {"run": root, "draw": draw, "config": config, "device": device_of(config, pool["labeling"])},
            pool["labeling"],
            "labeling",
        ),
        Operator(
            Refiner,
            {"settings": config.refinement, "device": device_of(config, pool["refinement"])},
            pool["refinement"],
            "refinement",
        ),
        Operator(Writer, {"run": root, "draw": draw, "names": names}, pool["writing"], "writing"),
    ]


def unfinished_rows(plan: pa.Table, finished: Iterable[str] | pa.ChunkedArray, images: pa.Table | None = None) -> pa.Table:
    """The rows of every generator batch with unfinished samples: the plan with the columns `todo`, `image_at` and no reason yet.

    Args:
        finished: ids of the samples that are done.
        images: columns `sample_id` and `image_at` of the images that are there already.
    """
    done = finished.combine_chunks() if isinstance(finished, pa.ChunkedArray) else pa.array(list(finished), pa.string())
    open_row = pc.and_(pc.invert(plan["padding"]), pc.invert(pc.is_in(plan["sample_id"], done)))
    wanted = pc.is_in(plan["batch"], pc.unique(plan["batch"].filter(open_row)))
    table = plan.drop_columns(["padding"]).append_column("todo", open_row).filter(wanted)
    empty = pa.array([""] * table.num_rows, pa.string())
    at = empty
    if images is not None:
        index = pc.index_in(table["sample_id"], images["sample_id"].combine_chunks())
        at = pc.fill_null(images["image_at"].take(index), "")
    return table.append_column("image_at", at).append_column("reason", empty).append_column("traceback", empty)


def stream(
    config: Config,
    run: RunDir,
    names: tuple[str, ...],
    draw: int | None,
    progress: Progress,
    note: Callable[[str], None] = lambda line: None,
    beside: TrainingConfig | None = None,
) -> Counter:
    """Makes everything that the plan still lacks; safe to stop at any moment and to call again.

    Args:
        names: class names by class index (0 is the background).
        draw: the support draw to label with, or None to make images only.
        note: called with one line for each thing that a person should know about the images, and about sizes that were chosen.
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
    rows, steps = unfinished_rows(plan, finished, images), operators(config, run, names, draw)
    reasons, kinds = Counter(), _kinds(ended)
    done = planned - (pc.sum(rows["todo"]).as_py() or 0)
    pulse = Pulse(run.log, stage="stream", draw=draw)

    def tell() -> None:
        progress(done, planned, ended)
        pulse(done, planned, reasons=kinds)
        _stop_if_failing(config, ended, kinds, planned)

    tell()
    if rows.num_rows == 0:
        return reasons
    started, first, audits = time.time(), done, []
    merged = started
    for batch in _run(config, run, rows, steps, draw, note, beside):
        new = Counter(str(r) for r in batch["reason"])
        reasons.update(new)
        ended.update(new)
        kinds.update(_kinds(new))
        done += new.total()
        tell()
        audits += [json.loads(text) for text in batch["synthesis_audit"] if text != "{}"]
        if time.time() - merged > COMPACT_SECONDS:
            run.samples.compact(draw, whole=False)
            merged = time.time()
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
    steps: list[Operator],
    draw: int | None,
    note: Callable[[str], None],
    beside: TrainingConfig | None,
) -> Iterator[dict[str, Any]]:
    """The rows through the stages; with `placement.sizes=auto` some of them first, to see what each stage takes."""
    place = config.placement
    if place.runner == "inline":
        yield from run_inline(rows, steps, steps[0].pool.batch)
        return
    connect(place)

    def streamed(part: pa.Table, steps: list[Operator]) -> Iterator[dict[str, Any]]:
        entered = pc.sum(part["todo"]).as_py()
        meter = Meter(run.log, config.name, [step.name for step in steps], entered, stage="stream", draw=draw)

        def report(totals: Totals) -> None:
            meter(totals)
            seen.update(totals)

        return run_stream(
            part,
            steps,
            steps[0].pool.batch,
            run=config.name,
            deadline=place.row_deadline,
            store_bytes=STORE_SHARE * store_bytes_for(place),
            report=report,
        )

    seen: dict[str, Mapping[str, float]] = {}
    few = sample_size({step.name: step.pool for step in steps})
    if place.sizes == "auto" and few < rows.num_rows:
        first = rows.num_rows - few  # the last rows: after a stop the first ones may have their images already
        one_each = [replace(step, pool=step.pool.model_copy(update={"max_size": None})) for step in steps]
        yield from streamed(rows.slice(first), one_each)
        steps, line = _resized(steps, seen, beside)
        note(f"placement.sizes=auto: {line}")
        rows = rows.slice(0, first)
    yield from streamed(rows, steps)


def _resized(
    steps: list[Operator], seen: Mapping[str, Mapping[str, float]], training: TrainingConfig | None
) -> tuple[list[Operator], str]:
    """The stages with the pools that the connected cluster's nodes allow, from what a sample took (see `Ledger.totals`).

    Args:
        training: training workers that run beside the stream, and have their share first.
    """
    import ray

    measured = {}
    for step in steps:
        total = seen.get(step.name, {})
        warm = "warm_" if total.get("warm_rows") else ""
        measured[step.name] = (int(total.get(f"{warm}rows", 0)), total.get(f"{warm}seconds", 0.0))
    nodes, living = node_resources(), sum(node["Alive"] for node in ray.nodes())
    found, line = rebalance(measured, {step.name: step.pool for step in steps}, nodes[:living], nodes[living:], training)
    return [replace(step, pool=found[step.name]) for step in steps], line


def _stop_if_failing(config: Config, reasons: Counter, kinds: Counter, planned: int) -> None:
    """Refuses to go on if too many of the samples that have ended so far are faults; the first `FEW` are too few to tell."""
    faults = Counter({kind: count for kind, count in kinds.items() if kind.startswith(FAULT)})
    limit, ended = config.placement.max_quarantined, kinds.total()
    if faults.total() > limit * max(ended, min(planned, FEW)):
        worst = faults.most_common(1)[0][0]
        said = next(reason for reason in reasons if reason.startswith(FAULT) and _kind(reason) == worst)
        raise UserError(
            f"{faults.total()} of {planned} samples are quarantined ({ended} have ended so far), more than "
            f"placement.max_quarantined={limit:g}; most frequent: {said}. Mend the cause, delete "
            "quarantined/, and run the same command again, which makes these samples anew"
        )


def _kinds(reasons: Counter) -> Counter:
    """How often each kind of reason occurs."""
    kinds: Counter = Counter()
    for reason, count in reasons.items():
        kinds[_kind(reason)] += count
    return kinds


def _kind(reason: str) -> str:
    """Of a fault stage and type alone: its text may name a row, a path or a number."""
    return ":".join(reason.split(":")[:3])
