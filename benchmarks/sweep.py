"""A hundred trials for the price of one synthesis: what a trial of a sweep costs beside a cold run.

    python benchmarks/sweep.py [--trials 100] [--draws 1] [--without 3] [key=value ...]

One cold `syn4seg run embedded`, then the study `labels` on its images. The marginal cost of a trial is the slope of the times
at which records were written, start-up and the first trials (which fill the cache) left out. Beside it: the same trials with an
empty cache each (prompts and images made anew too), and what Ray Tune adds to a trial.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import machine, write

WARM = 10
"""Trials at the start that are left out of the slope."""


def timed(*words: str) -> float:
    """Seconds of a command of ours."""
    started = time.time()
    subprocess.run([sys.executable, "-m", "syn4seg.cli", *words], check=True)
    return time.time() - started


def without_cache(run: Path, sweep: Path, count: int) -> list[float]:
    """Seconds of some of the sweep's trials when each has to make everything, prompts and images included."""
    from syn4seg.store.rundir import RunDir
    from syn4seg.trials.cache import StageCache
    from syn4seg.trials.trial import Trials
    from tune.objective import make_run
    from tune.records import SweepDir
    from tune.space import Study, apply_overrides
    from tune.validation import validation_images

    config = RunDir(run).stored()
    assert config is not None
    study = Study.model_validate(json.loads(SweepDir(sweep).study.read_text()))
    images, nothing, seconds = validation_images(study, config), RunDir(sweep / "nothing"), []
    for _, record in sorted(SweepDir(sweep).records().items())[: count + 1]:
        with tempfile.TemporaryDirectory() as folder:
            trials = Trials(
                StageCache(folder, memory=0), nothing, images, lambda made, path: make_run(made, path, nothing, "cpu"), "cpu"
            )
            started = time.time()
            list(trials.scores(apply_overrides(config, record["overrides"]), study.reports))
            seconds.append(time.time() - started)
    return seconds[1:]  # the first loads what this process keeps anyway


def main() -> None:
    """Cold run, sweep, trials without a cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--without", type=int, default=3, help="trials without a cache")
    parser.add_argument("--keep", type=Path, help="keep the sweep here")
    parser.add_argument("words", nargs="*", help="key=value of the configuration")
    args = parser.parse_args()
    result, keys = machine(), [f"data.draws={args.draws}", *args.words]
    with tempfile.TemporaryDirectory() as folder:
        run, sweep, cache = (Path(folder) / name for name in ("run", "sweep", "cache"))
        cold = timed("run", "embedded", *keys, "--out", str(run))
        count = args.trials + 1  # the first has the configuration's own values
        whole = timed("sweep", str(run), "--study", "labels", "--trials", str(count), "--out", str(sweep), "--cache", str(cache))
        from tune.records import SweepDir

        records = SweepDir(sweep).records()
        written = sorted(SweepDir(sweep).record(n).stat().st_mtime for n in records)
        warm = min(WARM, len(written) // 2)
        marginal = (written[-1] - written[warm]) / (len(written) - 1 - warm)
        inside = float(np.mean([records[n]["seconds"] for n in sorted(records)[warm:]]))
        empty = without_cache(run, sweep, args.without)
        size = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
        result |= {
            "command": " ".join(["syn4seg sweep RUN --study labels", *keys]),
            "trials": len(records),
            "pruning": json.loads(SweepDir(sweep).study.read_text())["pruning"],
            "pruned": sum(r["state"] == "pruned" for r in records.values()),
            "complete_trial_seconds": round(
                float(np.mean([r["seconds"] for n, r in records.items() if n >= warm and r["state"] == "complete"])), 3
            ),
            "failed": sum(r["state"] == "failed" for r in records.values()),
            "cold_seconds": round(cold, 1),
            "sweep_seconds": round(whole, 1),
            "start_up_seconds": round(written[0] - written[-1] + whole, 1),
            "marginal_seconds": round(marginal, 3),
            "marginal_over_cold": round(marginal / cold, 4),
            "whole_sweep_over_cold": round(whole / cold, 2),
            "trial_seconds_inside": round(inside, 3),
            "at_a_time": 2,
            "tune_overhead_seconds": round(2 * marginal - inside, 3),
            "without_cache_seconds": [round(s, 1) for s in empty],
            "without_cache_over_marginal": round(float(np.mean(empty)) / inside, 1) if empty else None,
            "cache_mib": round(size / 2**20, 1),
        }
        if args.keep:
            shutil.copytree(sweep, args.keep)
    print(json.dumps(result, indent=1))
    write("sweep", result)


if __name__ == "__main__":
    main()
