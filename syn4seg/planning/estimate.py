"""Plan before you pay: hours, memory and disk of every stage of a run, before anything starts or loads.

Every figure says where it comes from: measured (a rates file, or a sample run here) or stated (FLOPs over a share of a
named device's speed). Starting actors, loading weights and compiling are not in it: minutes per actor, once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from syn4seg.config.placement import PoolConfig
from syn4seg.config.tree import Config
from syn4seg.planning.footprint import FORMULAS, disk_of, memory_of
from syn4seg.planning.rates import GIB, Kind, Rates, StageWork
from syn4seg.planning.workload import WorkloadFacts, samples_of, workload

STREAMED = ("synthesis", "labeling", "refinement")
"""Stages that run at the same time, image by image."""
HEADER = ("stage", "work", "actors", "each", "GPU", "CPU", "wall", "memory/actor", "disk", "time is")


@dataclass(frozen=True)
class Line:
    """One stage.

    Attributes:
        stage: its name.
        count: units of work.
        unit: what is counted.
        actors: that share the work.
        kind: of device.
        unit_seconds: of one unit on one device.
        device_hours: busy hours of all devices together.
        wall_hours: with all actors at work.
        weights: bytes of network weights in each actor.
        memory: bytes of each actor, weights included.
        disk: bytes that it leaves in the run directory.
        source: where the time comes from; begins with "measured" or "stated".
        memory_source: likewise for `memory`.
        warning: what does not fit, or "".
    """

    stage: str
    count: int
    unit: str
    actors: int
    kind: Kind
    unit_seconds: float
    device_hours: float
    wall_hours: float
    weights: int
    memory: int
    disk: int
    source: str
    memory_source: str
    warning: str


@dataclass(frozen=True)
class Estimate:
    """A run's plan.

    Attributes:
        name: of the run.
        facts: what is taken for granted of the data set.
        lines: the stages in order.
        wall_hours: from the first prompt to the result table; streamed stages overlap.
        gpu_hours: busy GPU hours.
        gpus: that the placement holds while images stream.
        gpu_hours_held: GPU hours that a cloud bills for the stream: `gpus` for as long as it lasts, and other GPU stages.
        disk: bytes of the run directory.
        notes: what the figures leave out or assume.
    """

    name: str
    facts: WorkloadFacts
    lines: tuple[Line, ...]
    wall_hours: float
    gpu_hours: float
    gpus: int
    gpu_hours_held: float
    disk: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def estimate(config: Config, facts: WorkloadFacts, rates: Rates, done: Mapping[str, int] | None = None) -> Estimate:
    """Return the plan of a configuration.

    Args:
        facts: of the data set, see `facts_of`.
        rates: measured or stated seconds, see `read_rates`, `stated_rates` and `measure`.
        done: units of work by stage that are there already, and so are left out; disk is that of the whole run.

    Raises:
        UserError: a model is named whose size is not known.
    """
    memory, disk = memory_of(config, facts), disk_of(config, facts, rates)
    stages = [replace(stage, count=max(0, stage.count - (done or {}).get(stage.stage, 0))) for stage in workload(config, facts)]
    lines = tuple(_line(config, stage, rates, memory[stage.stage], disk.get(stage.stage, 0)) for stage in stages)
    streamed, gpus = _stream_hours(config, lines), _gpus(config)
    others = [line for line in lines if line.stage not in STREAMED]
    held = streamed * gpus + sum(line.device_hours for line in others if line.kind == "gpu")
    return Estimate(
        config.name,
        facts,
        lines,
        streamed + sum(line.wall_hours for line in others),
        sum(line.device_hours for line in lines if line.kind == "gpu"),
        gpus,
        held,
        sum(disk.values()),
        _notes(config, facts, lines, rates),
    )


def _line(config: Config, stage: StageWork, rates: Rates, memory: tuple[int, int], disk: int) -> Line:
    seconds, source, rate = rates.of(stage)
    hours = stage.count * seconds / 3600
    weights, more = memory
    if rate is not None and rate.memory:
        total, memory_source = rate.memory, f"measured on {rates.device}"
    else:
        total, memory_source = weights + more, f"stated: {FORMULAS[stage.stage]}"
    return Line(
        stage.stage,
        stage.count,
        stage.unit,
        stage.actors,
        stage.kind,
        seconds,
        hours,
        hours / stage.actors,
        weights,
        total,
        disk,
        source,
        memory_source,
        _warning(config, stage, total, rates),
    )


def _warning(config: Config, stage: StageWork, memory: int, rates: Rates) -> str:
    """Return what to do where an actor does not fit on its GPU, or on its share of one."""
    if stage.kind == "cpu":
        return ""
    pool = getattr(config.placement, stage.stage, PoolConfig())
    card, share = rates.card.memory, min(1.0, pool.gpus or 1.0)
    if memory <= card * share:
        return ""
    remedy = {
        "synthesis": "synthesis.weights=nf4 or fp8, synthesis.vae_slicing=true, or a smaller synthesis.batch",
        "base": "a smaller base.batch or base.crop",
    }.get(stage.stage, "a smaller model, or a larger card")
    if memory > card:
        return f"{stage.stage} needs {format_size(memory)}, but {rates.device} has {format_size(card)}: {remedy}"
    allowed = f"its share ({share:g}) of {format_size(card)}"
    return f"{stage.stage} needs {format_size(memory)}, more than {allowed}: raise placement.{stage.stage}.gpus"


def _gpus(config: Config) -> int:
    """Return GPUs that the pools of the stream hold together."""
    place = config.placement
    pools = [pool for pool in (place.synthesis, place.labeling, place.refinement) if place.device != "cpu"]
    if config.placement.runner == "inline":
        return int(any(pool.gpus for pool in pools) or place.device == "cuda")
    return math.ceil(sum(pool.size * pool.gpus for pool in pools) - 1e-9) or int(place.device == "cuda")


def _stream_hours(config: Config, lines: tuple[Line, ...]) -> float:
    """Return the wall hours of the stages that overlap: the slowest pool, or the GPUs that they share; images are made in the first
    draw.

    Inline, nothing overlaps.
    """
    streamed, draws = {line.stage: line for line in lines if line.stage in STREAMED}, config.data.draws
    if config.placement.runner == "inline":
        return sum(line.wall_hours for line in streamed.values())
    gpus, total = _gpus(config), 0.0
    for draw in range(draws):
        part = [
            (line, 1 if name == "synthesis" else 1 / draws) for name, line in streamed.items() if name != "synthesis" or draw == 0
        ]
        slowest = max((line.wall_hours * share for line, share in part), default=0.0)
        shared = sum(line.device_hours * share for line, share in part if line.kind == "gpu")
        total += max(slowest, shared / gpus if gpus else 0.0)
    return total


def _notes(config: Config, facts: WorkloadFacts, lines: tuple[Line, ...], rates: Rates) -> tuple[str, ...]:
    notes = [line.warning for line in lines if line.warning]
    if rates.measured:
        notes.append(", ".join(text for text in (f"measured on {rates.device}", rates.date, rates.about) if text))
    notes += [f"memory of {line.stage}: {line.memory_source}" for line in lines]
    notes.append("not counted: start of Ray and of the actors, loading weights, compiling")
    if config.prompts.agent != "grammar":
        notes.append(f"not counted: the language model ({config.prompts.agent}); prompts that are refused are encoded too")
    if config.synthesis.source == "api":
        images = samples_of(config, facts)[0]
        notes.append(
            f"not counted: the time and the price of {images} images of the service {config.synthesis.model} "
            f"(synthesis.max_images={config.synthesis.max_images})"
        )
    if config.synthesis.check:
        notes.append("not counted: the picture check (synthesis.check), which looks at every image once for each draw")
    if config.synthesis.step_cache > 0:
        notes.append("synthesis.step_cache skips part of the transformer; stated and scaled times do not count on it")
    if config.evaluation.baselines:
        notes.append(f"not counted: baselines {', '.join(config.evaluation.baselines)}")
    if config.base.images != "all":
        notes.append(f"base.images={config.base.images}: base training is counted with the whole train list, an upper bound")
    return tuple(notes)


def table(plan: Estimate) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[str]]:
    """Return the header, rows of text (the last one is the total), and footnotes, ready to be printed.

    Footnotes are lines of their own; a figure's origin is in the last column.
    """
    rows = []
    for line in plan.lines:
        gpu, cpu = (format_time(line.device_hours) if line.kind == kind else "" for kind in ("gpu", "cpu"))
        rows.append(
            (
                line.stage,
                f"{line.count} {line.unit}{'s' if line.count > 1 else ''}",
                str(line.actors),
                _seconds(line.unit_seconds),
                gpu,
                cpu,
                format_time(line.wall_hours),
                format_size(line.memory),
                format_size(line.disk) if line.disk else "",
                line.source,
            )
        )
    cpu_hours = sum(line.device_hours for line in plan.lines if line.kind == "cpu")
    origins = {line.source.split(":")[0].split(" ")[0] for line in plan.lines}
    rows.append(
        (
            "total",
            f"{plan.facts.novel} classes",
            "",
            "",
            format_time(plan.gpu_hours),
            format_time(cpu_hours),
            format_time(plan.wall_hours),
            "",
            format_size(plan.disk),
            " and ".join(sorted(origins)),
        )
    )
    held = [f"GPU time held: {format_time(plan.gpu_hours_held)} on {plan.gpus} GPU(s) while images stream"] if plan.gpus else []
    return HEADER, rows, [*held, *plan.notes]


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def format_time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"


def format_size(count: float) -> str:
    for unit, size in (("TiB", 1024 * GIB), ("GiB", GIB), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.{0 if count >= 100 * size else 1}f} {unit}"
    return f"{count / 1024:.1f} KiB"
