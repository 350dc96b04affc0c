"""What every benchmark writes beside its figures: date, machine, commit; and where the dated result goes."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from syn4seg.store.rundir import RunDir

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """What figures depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": done.stdout.strip() or "none",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def one_thread() -> None:
    """Starts the script again with one thread for its linear algebra, unless it has one: NumPy reads that when it is imported."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | one)


def write(name: str, result: dict[str, Any]) -> Path:
    """Writes benchmarks/results/DATE-NAME.json and says so."""
    path = ROOT / "benchmarks" / "results" / f"{result['date']}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return path


def joint_seconds(run: RunDir) -> float:
    """Wall seconds that a run's joint stage took for one network, from the lines of its progress; 0 without one."""
    lines = [line for line in map(json.loads, run.metrics.read_text().splitlines()) if "network" in line]
    steps = max((line["total"] for line in lines), default=0)
    networks = len({(line["draw"], line["network"]) for line in lines})
    return (
        round((lines[-1]["time"] - lines[0]["time"]) / max(1, lines[-1]["done"] - lines[0]["done"]) * steps / networks, 1)
        if networks
        else 0.0
    )
