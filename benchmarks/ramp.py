"""Does admitting synthetic samples along a ramp cost accuracy? The same labels, trained with several values of novel.ramp.

    python benchmarks/ramp.py [--work DIR] [--folds 0] [--draws 3] [--ramps 0 0.5 0.9] [key=value ...]

A fold is labelled once (and kept); then only the novel stage and the scores are made anew for each ramp. Written are base,
novel and harmonic mIoU with their spread over support draws, and the paired difference from the first ramp.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import machine, write

from syn4seg.config.loading import load
from syn4seg.segmenter.evaluation import metrics
from syn4seg.stages.checks import check
from syn4seg.stages.draw_training import train_draw
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.results import spread
from syn4seg.stages.rows import rows_of
from syn4seg.stages.setup import draws_of
from syn4seg.store.rundir import RunDir

SHOWN = ("base", "novel", "harmonic")


def scores(run: RunDir, overrides: list[str], stage: NovelStage | None) -> tuple[NovelStage, dict[str, dict[str, list[float]]]]:
    """Trains every row of every draw anew; row -> metric -> value of each draw."""
    config = load(None, overrides)
    if stage is None:
        stage = NovelStage(config, run, *check(config))
    stage.config = config
    for draw in draws_of(config):
        for row in rows_of(config):
            run.draw(draw).checkpoint(row).unlink(missing_ok=True)
        train_draw(stage, draw, lambda *_: None)
    found: dict[str, dict[str, list[float]]] = {}
    for matrices in stage.score_queries(lambda *_: None).values():
        for row, matrix in matrices.items():
            values = metrics(np.array(matrix), len(stage.fold.base), len(stage.fold.novel))
            for metric in SHOWN:
                found.setdefault(row, {}).setdefault(metric, []).append(float(values[metric]))
    return stage, found


def main() -> None:
    """Labels what is missing, trains and scores every ramp, prints a table and writes the dated result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/ramp"))
    parser.add_argument("--folds", type=int, nargs="*", default=[0])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--ramps", type=float, nargs="*", default=[0.0, 0.5, 0.9])
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    result: dict[str, Any] = machine() | {"folds": args.folds, "draws": args.draws, "overrides": args.overrides, "ramps": {}}
    values: dict[float, dict[str, dict[str, list[float]]]] = {}
    for fold in args.folds:
        run, stage = RunDir(args.work / f"fold{fold}"), None
        words = [f"data.fold={fold}", f"data.draws={args.draws}", *args.overrides]
        if len(list(run.root.glob("draws/*/manifest.parquet"))) < args.draws:
            command = [sys.executable, "-m", "syn4seg.cli", "refine", *words, "--out", str(run.root)]
            subprocess.run(command, check=True)
        for ramp in args.ramps:
            started = time.time()
            stage, found = scores(run, [*words, f"novel.ramp={ramp}"], stage)
            for row, of_row in found.items():
                for metric, of_draws in of_row.items():
                    values.setdefault(ramp, {}).setdefault(row, {}).setdefault(metric, []).extend(of_draws)
            print(f"fold {fold}, ramp {ramp}: {time.time() - started:.0f} s", flush=True)
    first = values[args.ramps[0]]
    for ramp, rows in values.items():
        result["ramps"][str(ramp)] = {
            row: {m: spread(np.array(v)) | {"minus_first": spread(np.array(v) - np.array(first[row][m]))} for m, v in of.items()}
            for row, of in rows.items()
        }
        for row, of in rows.items():
            print(f"ramp {ramp:<4} {row:15}", *(f"{m} {100 * np.mean(v):.1f} ± {100 * np.std(v):.1f}" for m, v in of.items()))
    write("ramp", result)


if __name__ == "__main__":
    main()
