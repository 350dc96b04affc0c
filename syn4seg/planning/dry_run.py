"""`syn4seg run --dry-run`: what a run would make, what is there or taken over already, and the cost of the rest. Writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from syn4seg.config.tree import Config
from syn4seg.planning.estimate import Estimate, estimate, format_size, format_time
from syn4seg.planning.rates import stated_rates
from syn4seg.planning.workload import WorkloadFacts, facts_of, joint_step_images, samples_of
from syn4seg.stages.reuse import fitting_stages
from syn4seg.stages.rows import joint_names, rows_of
from syn4seg.stages.setup import draws_of
from syn4seg.store.files import exists
from syn4seg.store.rundir import RunDir
from syn4seg.terminal import Terminal


def finished_work(
    config: Config, run: RunDir, plan: Estimate, old: RunDir | None = None, taken: Sequence[str] = ()
) -> Counter[str]:
    """Return how many units of work of each stage of a plan are in a run directory, or would be taken from another one.

    Args:
        old, taken: an earlier run, and those of its stages that fit; see `fitting_stages`.
    """
    done: Counter[str] = Counter()
    counts = {line.stage: line.count for line in plan.lines}
    if exists(run.plan) or "prompts" in taken:
        done["encoding"] = counts.get("encoding", 0)
    if exists(run.base) or "base" in taken:
        done["base"] = counts.get("base", 0)
    sources = ([run] if exists(run.plan) else []) + ([old] if old is not None and "images" in taken else [])
    images = max((source.samples.images().num_rows for source in sources), default=0)
    whole = images >= samples_of(config, plan.facts)[0]  # a generator's last batch may be padded
    done["synthesis"] = counts.get("synthesis", 0) if whole else images
    for labelled in (run, *run.rounds()):
        for draw in draws_of(config):
            if exists(labelled.plan):
                done["labeling"] += len(labelled.draw(draw).done())
    done["refinement"] = done["labeling"]
    for draw in map(run.draw, draws_of(config)):
        done["novel"] += config.novel.steps * sum(exists(draw.checkpoint(row)) for row in rows_of(config))
        if exists(draw.drafter):  # earlier rounds are trained
            done["novel"] += config.novel.steps * (config.labeling.rounds - 1)
    joint = sum(exists(run.draw(draw).checkpoint(name)) for draw, name in joint_names(config))
    done["joint"] = joint * config.joint.steps * joint_step_images(config)
    stored = run.stored()
    if exists(run.results) and stored is not None and stored.evaluation == config.evaluation:
        done["evaluation"], done["features"] = counts.get("evaluation", 0), counts.get("features", 0)
    return done


def dry_run(
    config: Config, run: RunDir, data: tuple[Any, Any] | None, inputs: Mapping[str, str], old: RunDir | None, display: Terminal
) -> None:
    """Print what a run would make and cost.

    Args:
        data: data set and fold; None where the data set is not prepared yet.
        inputs: digests of the inputs, see `setup.digest_inputs`.
        old: an earlier run whose fitting stages are taken over.

    Raises:
        UserError: `old` is not a run, or a model is named whose size is not known.
    """
    facts, rates = facts_of(config, *(data or (None, None))), stated_rates()
    taken = fitting_stages(old, run, config, inputs) if old is not None else []
    whole = estimate(config, facts, rates)
    done = finished_work(config, run, whole, old, taken)
    left = estimate(config, facts, rates, done)
    begun = exists(run.config)
    display.answer(f"dry run of {config.name}; nothing is written")
    display.answer(f"{run.root}: {'goes on with what is there' if begun else 'a new run'}")
    if data is None:
        display.answer(f"data.root={config.data.root}: is prepared first; the published numbers of images are assumed")
    if old is not None:
        display.answer(f"taken from {old.root}: {', '.join(taken) or 'nothing fits this configuration'}")
    display.console.print(_table(whole, left))
    for line in closing_lines(left, facts, exists(run.results) and not any(line.count for line in left.lines)):
        display.answer(line)


def _table(whole: Estimate, left: Estimate) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("stage", "planned", "there", "to make", "time"):
        table.add_column(title, justify="left" if title == "stage" else "right", no_wrap=True)
    for line, rest in zip(whole.lines, left.lines, strict=True):
        unit = f"{line.unit}{'s' if line.count > 1 else ''}"
        hours = format_time(rest.wall_hours) if rest.count else ""
        table.add_row(line.stage, f"{line.count} {unit}", f"{line.count - rest.count}", f"{rest.count}", hours)
    return table


def closing_lines(left: Estimate, facts: WorkloadFacts, finished: bool) -> list[str]:
    """Return what stands below the table: the cost of what is left, and how sure that is."""
    if finished:
        return ["the run is finished: the same command without --dry-run prints its results again"]
    gpus = f", {format_time(left.gpu_hours)} of GPUs" if left.gpu_hours else ""
    sources = sorted({line.source.partition(":")[2].strip() for line in left.lines if line.count})
    disk = f"{format_size(left.disk)} of disk for the whole run, {facts.novel} classes"
    return [
        f"cost: about {format_time(left.wall_hours)}{gpus}; {disk}",
        f"times are stated, not measured ({'; '.join(sources)}), and leave out Ray's start and loading models; "
        "`syn4seg plan --measure 4` measures here",
    ]
