"""Throughput of the stream on a simulated cluster against the analytic optimum, and where it bends.

    python benchmarks/scale.py [--gpus 1 4 16 64] [--repeat 3] [--tuning]

Nodes of 8 fake GPUs and 16 logical CPUs (`ray.cluster_utils`), all processes on this machine. Stages sleep for the times of the
real models (`SECONDS`, assumed for one data-centre GPU at 1024 pixels, not measured here) divided by `--faster`, and hand on
columns of the real shapes and types. Everything else is the program's own path: `run_stream`, `Guard`, `Ledger`, and `choose_sizes`
for the sizes of the pools. Each configuration runs in a process of its own.

Reported per configuration: seconds to the first block; rows/s of the steady state (whole waves, without the first three
and the last, so that bursts cancel out) against the optimum of `choose_sizes`; CPU milliseconds per block of the driver and
of all Ray processes; blocks/s; and how many real GPUs that many blocks/s would serve.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from record import ROOT, machine, write

SECONDS = {"synthesis": 4.0, "labeling": 0.1, "refinement": 0.4, "writing": 0.05}
"""Per image and actor: SD 3.5 Large (28 steps), features + APF + APR, SAM ViT-H, PNGs. Assumed."""
SHARES = {"synthesis": 0.6, "labeling": 0.2, "refinement": 0.2, "writing": 0.0}
"""GPUs per actor: colocated, so that one GPU holds one of each."""

WARM = 3
"""Waves (one block per GPU) before the steady state counts: what piled up while later stages started is gone by then."""


class Sleeping:
    """A stage whose models are elsewhere: it waits, and adds columns of the given shapes."""

    reads = ("sample_id",)
    adds: tuple[str, ...] = ()

    def __init__(self, seconds: float, columns: dict[str, tuple[int, ...]], keep: tuple[str, ...] = ()):
        self.seconds, self.columns, self.keep = seconds, columns, keep

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = len(rows["sample_id"])
        time.sleep(self.seconds * count)
        made = {name: np.zeros((count, *shape), np.uint8) for name, shape in self.columns.items()}
        return {name: rows[name] for name in self.keep} if self.keep else rows | made


def stages(pools: dict, size: int, faster: float) -> list:
    """The four stages of the real stream; the last hands on ids only, as `Writer` does."""
    from actors.placement import Operator

    columns = {
        "synthesis": {"image": (size, size, 3)},
        "refinement": {"label": (size, size)},
        "labeling": {name: (size, size) for name in ("draft", "kept", "relabeled")},
        "writing": {},
    }
    kept = {"writing": ("sample_id", "reason", "traceback")}
    return [
        Operator(
            type(name.capitalize(), (Sleeping,), {"adds": tuple(columns[name])}),
            {"seconds": SECONDS[name] / faster, "columns": columns[name], "keep": kept.get(name, ())},
            pool,
            name,
        )
        for name, pool in pools.items()
    ]


def sized(nodes: list[dict[str, float]], batch: int, faster: float) -> tuple[dict, float]:
    """Pools as `choose_sizes` gives them, and the rate in rows/s that they allow."""
    from actors.balance import choose_sizes
    from syn4seg.config.placement import PoolConfig

    pools = {name: PoolConfig(batch=batch, cpus=0.25, gpus=share) for name, share in SHARES.items()}
    found = choose_sizes({name: each / faster for name, each in SECONDS.items()}, pools, nodes)
    return {name: pools[name].model_copy(update={"size": size}) for name, size in found.sizes.items()}, found.rate


def cluster_of(gpus: int) -> list[dict[str, float]]:
    """Resources of the nodes: 8 GPUs and 16 CPUs each."""
    return [{"CPU": 16.0, "GPU": float(min(8, gpus - start))} for start in range(0, gpus, 8)]


def spent(processes: list[psutil.Process]) -> dict[int, float]:
    """CPU seconds of each living process so far, by process id."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def resident(process: psutil.Process) -> int:
    """Proportional set size in bytes; 0 of a process that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.memory_full_info().pss
    return 0


def grown(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds in between, of the processes that lived all the time."""
    return sum(after[pid] - before[pid] for pid in before.keys() & after.keys())


def one(gpus: int, size: int, batch: int, faster: float, waves: int, in_flight: int | None, grow: bool) -> dict[str, Any]:
    """One configuration in this process; starts and stops its own cluster."""
    import pyarrow as pa
    import ray
    import ray.data
    from ray.cluster_utils import Cluster

    from actors.streaming import run_stream

    began, nodes = time.time(), cluster_of(gpus)
    pools, optimum = sized(nodes, batch, faster)
    if grow:
        pools = {name: pool.model_copy(update={"size": 1, "max_size": pool.size}) for name, pool in pools.items()}
    cluster = Cluster()
    for node in nodes:
        cluster.add_node(
            num_cpus=int(node["CPU"]),
            num_gpus=int(node["GPU"]),
            include_dashboard=False,
            object_store_memory=max(200, 1500 // len(nodes)) * 2**20,
        )
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    if in_flight:
        ray.data.DataContext.get_current().max_tasks_in_flight_per_actor = in_flight  # type: ignore[attr-defined]
    up, blocks = time.time(), waves * gpus
    rows = pa.table(
        {"sample_id": [f"s{i}" for i in range(blocks * batch)], "reason": [""] * blocks * batch, "traceback": [""] * blocks * batch}
    )
    totals: dict[str, Any] = {}
    arrivals, looks, me = [], [], psutil.Process()
    for done in run_stream(rows, stages(pools, size, faster), batch, report=totals.update):
        assert len(done["sample_id"]) == batch
        arrivals.append(time.time())
        if len(arrivals) in (WARM * gpus, blocks - gpus):
            looks.append((spent([me]), spent(me.children(recursive=True))))
    memory = sum(resident(p) for p in [me, *me.children(recursive=True)]) / 2**30
    ray.shutdown()
    cluster.shutdown()
    assert len(arrivals) == blocks, f"{len(arrivals)} of {blocks} blocks arrived"
    steady_blocks = blocks - (WARM + 1) * gpus
    seconds = arrivals[blocks - gpus - 1] - arrivals[WARM * gpus - 1]
    rate = steady_blocks * batch / seconds
    driver, others = (grown(looks[0][i], looks[1][i]) for i in (0, 1))
    return {
        "gpus": gpus,
        "pixels": size,
        "rows_per_block": batch,
        "faster": faster,
        "in_flight": in_flight,
        "grow": grow,
        "actors": {name: pool.size for name, pool in pools.items()},
        "images": blocks * batch,
        "cluster_up_s": round(up - began, 1),
        "first_block_s": round(arrivals[0] - up, 1),
        "first_wave_s": round(arrivals[gpus - 1] - up, 1),
        "steady_s": round(seconds, 1),
        "optimum_rows_per_s": round(optimum, 3),
        "steady_rows_per_s": round(rate, 3),
        "efficiency": round(rate / optimum, 4),
        "whole_run_rows_per_s": round(blocks * batch / (arrivals[-1] - up), 3),
        "blocks_per_s": round(steady_blocks / seconds, 3),
        "driver_cpu_ms_per_block": round(1000 * driver / steady_blocks, 1),
        "ray_cpu_ms_per_block": round(1000 * others / steady_blocks, 1),
        "cores_busy_with_it": round((driver + others) / seconds, 2),
        "same_blocks_per_s_on_real_gpus": round(steady_blocks / seconds * batch * SECONDS["synthesis"], 1),
        "synthesis_overhead": round(totals["synthesis"]["seconds"] / (blocks * batch * SECONDS["synthesis"] / faster) - 1, 4),
        "pss_gib": round(memory, 2),
        "load": round(os.getloadavg()[0], 2),
    }


def apart(settings: dict[str, Any], patience: float = 60.0) -> dict[str, Any]:
    """One configuration in a process of its own, when the machine is quiet or patience is at an end."""
    until = time.time() + patience
    while os.getloadavg()[0] > 2 and time.time() < until:
        time.sleep(5)
    environment = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",  # else one Python per logical CPU
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, __file__, "--one", json.dumps(settings)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    except subprocess.TimeoutExpired:
        return settings | {"failed": "not done after 20 minutes"}
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if not line.startswith("[")]  # those are Ray's
        return settings | {"failed": said[-1:] or done.returncode}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median efficiency (the lower of two), with the efficiencies and loads of all."""
    good = sorted((run for run in runs if "failed" not in run), key=lambda run: run["efficiency"])
    if not good:
        return runs[0]
    every = {"efficiencies": [run["efficiency"] for run in good], "loads": [run["load"] for run in good]}
    return good[(len(good) - 1) // 2] | every | {"failed_runs": len(runs) - len(good)}


def main() -> None:
    """Every configuration, interleaved, and what the driver's share of the work says about real clusters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--faster", type=float, default=4.0, help="time scale: real seconds are divided by this")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path(tempfile.gettempdir()) / "scale-runs.jsonl",
        help="runs are appended here; medians are over all of it",
    )
    parser.add_argument("--tuning", action="store_true", help="also other blocks, tasks in flight, and growing pools")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(**json.loads(args.one))))
        return
    about = machine()
    usual = {"size": 64, "batch": 8, "faster": args.faster, "waves": 10, "in_flight": None, "grow": False}
    asked = [usual | {"gpus": gpus} for gpus in args.gpus] + [usual | {"gpus": 16, "size": 512}]
    if args.tuning:
        asked += [
            usual | {"gpus": 16, "faster": 4 * args.faster} | other
            for other in ({}, {"batch": 4}, {"batch": 16}, {"in_flight": 1}, {"in_flight": 8}, {"grow": True})
        ]
    for turn in range(args.repeat):
        for settings in asked:
            if settings["gpus"] < 64 or turn == 0:
                found = {"asked": settings, "found": apart(settings)}
                with args.runs.open("a") as file:
                    file.write(json.dumps(found) + "\n")
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in args.runs.read_text().splitlines():
        run = json.loads(line)
        runs.setdefault(json.dumps(run["asked"]), []).append(run["found"])
    points = [median_of(found) for found in runs.values()]
    write("scale", about | {"assumed_seconds_per_image": SECONDS, "points": points, "driver": limit_of(points)})


def limit_of(points: list[dict[str, Any]]) -> dict[str, float]:
    """The driver's cores as a + b x blocks/s, fitted to the points at 8 rows per block, and what one core can serve."""
    usable = [p for p in points if "failed" not in p and p["rows_per_block"] == 8 and not p["in_flight"]]
    if len(usable) < 2:
        return {}
    rates = np.array([p["blocks_per_s"] for p in usable])
    each, idle = np.polyfit(rates, [p["driver_cpu_ms_per_block"] / 1000 * p["blocks_per_s"] for p in usable], 1)
    most = (1 - idle) / each
    return {
        "idle_cores": round(idle, 3),
        "cpu_ms_per_block": round(1000 * each, 1),
        "blocks_per_s_at_one_core": round(most, 1),
        "real_gpus_at_that_rate": round(most * 8 * SECONDS["synthesis"]),
    }


if __name__ == "__main__":
    main()
