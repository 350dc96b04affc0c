"""The main job as a newcomer runs it: wall time, CPU time, and peak memory of all its processes (Ray's included).

    python benchmarks/main_job.py [key=value ...]

Memory is the sum of the proportional set sizes (PSS) of the whole process tree, sampled twice a second, so that pages
shared between processes count once.
"""

from __future__ import annotations

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


def main() -> None:
    """Runs `syn4seg run` in a fresh directory and writes what it cost."""
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "syn4seg.cli", "run", "embedded", *sys.argv[1:], "--out", str(Path(folder) / "run")]
        started, cpu = time.time(), psutil.cpu_times()
        job = subprocess.Popen(command)
        peak, processes = 0.0, 0
        watched = psutil.Process(job.pid)
        while job.poll() is None:
            peak = max(peak, tree_memory(watched))
            processes = max(processes, 1 + len(watched.children(recursive=True)) if job.poll() is None else 0)
            time.sleep(0.5)
        seconds = time.time() - started
        after = psutil.cpu_times()
        busy = (after.user + after.system) - (cpu.user + cpu.system)
        if job.returncode:
            sys.exit(f"the main job failed with exit code {job.returncode}")
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 2**20
    result = about | {
        "command": "syn4seg run embedded " + " ".join(sys.argv[1:]),
        "seconds": round(seconds, 1),
        "machine_cpu_seconds": round(busy, 1),
        "peak_gib": round(peak, 2),
        "processes": processes,
        "run_directory_mib": round(size, 1),
    }
    print(result)
    write("main-job", result)


if __name__ == "__main__":
    main()
