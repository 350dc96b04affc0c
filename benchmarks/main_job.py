"""The main job as a newcomer runs it: wall time, CPU time, and peak memory of all its processes (Ray's included).

    python benchmarks/main_job.py [key=value ...] [--burners 0 1 2] [--niceness 0 15]

`--burners` are other people's processes that keep a core busy each meanwhile, `--niceness` is that of Ray's workers (15: its own).
The fair share of a job beside B burners is cores / (cores + B) of what it would get alone.

Memory is the sum of the proportional set sizes (PSS) of the whole process tree, sampled twice a second, so that pages
shared between processes count once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from record import machine, write


def tree_memory(root: psutil.Process) -> float:
    """GiB held by a process and everything it started."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total / 2**30


def run_once(overrides: list[str], burners: int, niceness: int) -> dict[str, float]:
    """Run `syn4seg run` in a fresh directory beside busy processes; return what it cost."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as others:
        for _ in range(burners):
            burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            others.callback(burner.wait)
            others.callback(burner.kill)
        command = [sys.executable, "-m", "syn4seg.cli", "run", "embedded", *overrides, "--out", str(Path(folder) / "run")]
        started = time.time()
        job = subprocess.Popen(command, env=os.environ | {"RAY_worker_niceness": str(niceness)})
        peak, processes, spent = 0.0, 0, {}
        watched = psutil.Process(job.pid)
        while job.poll() is None:
            peak = max(peak, tree_memory(watched))
            processes = max(processes, 1 + len(watched.children(recursive=True)) if job.poll() is None else 0)
            for process in [watched, *watched.children(recursive=True)] if job.poll() is None else []:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    spent[process.pid, process.create_time()] = times.user + times.system
            time.sleep(0.5)
        seconds = time.time() - started
        if job.returncode:
            sys.exit(f"the main job failed with exit code {job.returncode}")
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 2**20
    return {
        "burners": burners,
        "niceness": niceness,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(spent.values()), 1),
        "peak_gib": round(peak, 2),
        "processes": processes,
        "run_directory_mib": round(size, 1),
    }


def main() -> None:
    """Run every combination and write what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--burners", type=int, nargs="+", default=[0])
    parser.add_argument("--niceness", type=int, nargs="+", default=[0])
    args = parser.parse_intermixed_args()
    about, runs = machine(), []
    for burners in args.burners:
        for niceness in args.niceness:
            runs.append(run_once(args.overrides, burners, niceness))
            print(runs[-1], flush=True)
    write("main-job", about | {"command": "syn4seg run embedded " + " ".join(args.overrides), "runs": runs})


if __name__ == "__main__":
    main()
