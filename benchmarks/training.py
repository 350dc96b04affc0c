"""What Ray Train costs: the base stage in this process, and in 1 and 2 workers, one thread each.

    python benchmarks/training.py [--images 96] [--epochs 6] [--rounds 3]

The embedded network at batch 8. Times of an epoch are those between two words of the loop about finished epochs (checkpoint
included), first epoch left out; start-up is from the call to the first of them, less one epoch. CPU seconds are those
of one training process. Ways take turns, so that other work on the machine meets all of them; medians are reported.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import machine, write

from actors.cluster import connect
from actors.training import WorkerContext, fit
from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.stages.base import train_base_stage
from syn4seg.stages.setup import load_dataset
from syn4seg.store.rundir import RunDir


def loop(arguments: dict[str, Any], context: WorkerContext) -> None:
    """The base stage with one thread; reports when each epoch ended and what this process had spent by then."""
    torch.set_num_threads(1)
    config: Config = arguments["config"]

    def report(facts: dict[str, Any]) -> None:
        context.report({"epoch": facts["epoch"], "loss": facts["loss"], "time": time.time(), "cpu": time.process_time()})

    train_base_stage(config, RunDir(arguments["run"]), *load_dataset(config), context.device, report)


def measure(config: Config, workers: int) -> dict[str, Any]:
    """One training: seconds of start-up and, per steady epoch, wall and CPU seconds of rank 0, and the last loss."""
    reports: list[dict[str, Any]] = []
    place = config.placement.training.model_copy(update={"workers": workers, "max_failures": 0})
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        run.open(config)
        started = time.time()
        fit(loop, {"config": config, "run": run.address}, place, name=f"benchmark-{workers}", progress=reports.append)
        whole = time.time() - started
    steady = [b["time"] - a["time"] for a, b in zip(reports, reports[1:], strict=False)]
    cpu = [b["cpu"] - a["cpu"] for a, b in zip(reports, reports[1:], strict=False)]
    return {
        "epoch_s": statistics.median(steady),
        "epoch_cpu_s_of_one_process": statistics.median(cpu),
        "start_and_end_s": whole - len(reports) * statistics.median(steady),
        "loss": reports[-1]["loss"],
    }


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and every round."""
    middle = {key: round(statistics.median([one[key] for one in found]), 4) for key in found[0] if key != "loss"}
    return middle | {"loss": found[0]["loss"], "epoch_s_of_rounds": [round(one["epoch_s"], 3) for one in found]}


def main() -> None:
    """Runs all ways in turns."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--images", type=int, default=96)
    asked.add_argument("--epochs", type=int, default=6)
    asked.add_argument("--rounds", type=int, default=3)
    given = asked.parse_args()
    config = load(
        None, ["base.checkpoint=train", f"data.train_images={given.images}", "data.val_images=4", f"base.epochs={given.epochs}"]
    )
    about = machine()
    connect(config.placement)
    found: dict[int, list[dict[str, Any]]] = {0: [], 1: [], 2: []}
    for _ in range(given.rounds):
        for workers, results in found.items():
            results.append(measure(config, workers))
            print(workers, results[-1])
    names = {0: "plain torch", 1: "Ray Train, 1 worker", 2: "Ray Train, 2 gloo workers"}
    result = {
        **about,
        "images": given.images,
        "batch": config.base.batch,
        "epochs": given.epochs,
        "rounds": given.rounds,
        "ways": {names[w]: summary(results) for w, results in found.items()},
    }
    plain, one = (result["ways"][names[w]] for w in (0, 1))
    result["one_worker_against_plain"] = {key: round(one[key] / plain[key], 3) for key in ("epoch_s", "epoch_cpu_s_of_one_process")}
    write("training", result)


if __name__ == "__main__":
    main()
