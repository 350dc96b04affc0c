"""The README's ablation: four folds x five support draws of the embedded world, every row and control, with its spread.

    python benchmarks/ablation.py [--work DIR] [--draws 5] [key=value ...]
    python benchmarks/ablation.py --name baselines 'evaluation.baselines=[imprinting, finetuning, diam, bcm]'
    python benchmarks/ablation.py --work DIR --name joint-all novel.trains=all 'novel.rows=[syn4seg, oracle]'

A fold is one run (finished folds are kept, so it resumes). Figures are averaged over folds within a draw first; the
spread is the standard deviation over draws of that fold mean, as the field reports it. Also written: the gains, paired by fold and
draw, and the quality of the labels after each stage against the exact masks, where the renderer made the images.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from record import joint_seconds, machine, write

from syn4seg.config.loading import load
from syn4seg.report.numbers import measure_label_quality
from syn4seg.report.reading import read_records
from syn4seg.segmenter.evaluation import metrics
from syn4seg.stages.gains import paired_gains
from syn4seg.stages.results import METRICS, spread
from syn4seg.stages.rows import BASELINE, RESULT_NAMES, scored_rows
from syn4seg.stages.setup import load_dataset
from syn4seg.stages.truth import truth_source
from syn4seg.store.rundir import RunDir


def accepted(run: RunDir, draw: int) -> pa.Table:
    """Records of the accepted samples of the diverse bank."""
    records = read_records(run, draw)
    return records.filter(pc.and_(pc.equal(records["reason"], ""), pc.starts_with(records["sample_id"], "hdig")))


def main() -> None:
    """Runs what is missing, adds up, prints the table and writes the dated result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--name", default="ablation")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    about, per_draw, folds, quality, seconds = machine(), {}, {}, {}, {}
    by_cell: dict[str, list[Any]] = {}
    for fold_number in range(4):
        out = args.work / f"fold{fold_number}"
        overrides = [f"data.fold={fold_number}", f"data.draws={args.draws}", "evaluation.controls=true", *args.overrides]
        config, results, started = load(None, overrides), out / "results.json", time.time()
        scored = set(json.loads(results.read_text()).get("baselines", {})) if results.is_file() else None
        if scored != set(config.evaluation.baselines):
            verb = "run" if scored is None else "evaluate"
            subprocess.run([sys.executable, "-m", "syn4seg.cli", verb, *overrides, "--out", str(out)], check=True)
            seconds[fold_number] = round(time.time() - started)
        _, fold = load_dataset(config)
        run = RunDir(out)
        folds[fold_number] = json.loads(run.results.read_text())
        for draw in range(args.draws):
            matrices = json.loads((run.draw(draw).root / "confusion.json").read_text())
            for row in (*scored_rows(config), *(BASELINE + name for name in config.evaluation.baselines)):
                found = metrics(np.array(matrices[row]), len(fold.base), len(fold.novel))
                by_cell.setdefault(RESULT_NAMES.get(row, row), []).append(found)
                for metric in METRICS:
                    per_draw.setdefault((RESULT_NAMES.get(row, row), metric), np.zeros((4, args.draws)))[fold_number, draw] = found[
                        metric
                    ]
            if (truth := truth_source(config)) is not None:
                for stage, values in measure_label_quality(run, draw, accepted(run, draw), truth).items():
                    for key, value in values.items():
                        quality.setdefault(stage, {}).setdefault(key, []).append(value)
    result = (
        about
        | {"rows": summary(per_draw, args.draws), "gains": paired_gains(by_cell)}
        | {
            "protocol": folds[0]["protocol"] | {"fold": "0..3", "spread": "standard deviation over draws of the mean over folds"},
            "config_digest": {str(f): r["config_digest"] for f, r in folds.items()},
            "overrides": args.overrides,
            "per_fold": {str(f): r["rows"] for f, r in folds.items()},
            "seconds": seconds,
            "joint_seconds": {str(f): joint_seconds(RunDir(args.work / f"fold{f}")) for f in folds},
            "funnel": {str(f): r["funnel"] for f, r in folds.items()},
            "label_quality": {stage: {k: spread(v) for k, v in values.items()} for stage, values in quality.items()},
        }
    )
    show(result)
    write(args.name, result)


def summary(per_draw: dict[tuple[str, str], np.ndarray], draws: int) -> dict[str, Any]:
    """ROW.METRIC over draws of the fold mean."""
    rows: dict[str, Any] = {}
    for (row, metric), values in per_draw.items():
        assert values.shape == (4, draws)
        rows.setdefault(row, {})[metric] = spread(values.mean(0))
    return rows


def show(result: dict[str, Any]) -> None:
    """The table in Markdown, in percent."""
    print("| row | base | novel | mean | harmonic |\n| --- | --- | --- | --- | --- |")
    for row, values in result["rows"].items():
        cells = (f"{100 * values[m]['mean']:.1f} ± {100 * values[m]['std']:.1f}" for m in ("base", "novel", "mean", "harmonic"))
        print(f"| {row} | {' | '.join(cells)} |")
    for row, gains in result["gains"].items():
        for reference, gain in gains.items():
            if reference != "share_of_oracle":
                text = ", ".join(
                    f"{m} {100 * gain[m]['mean']:+.1f} ± {100 * gain[m]['std']:.1f}" for m in ("base", "novel", "harmonic")
                )
                print(f"{row} {reference}: {text}; novel won {gain['novel']['won']} of {gain['novel']['n']}")
        if share := gains.get("share_of_oracle", {}).get("novel"):
            print(f"{row}: {100 * share:.0f} % of the oracle's gain in novel mIoU")
    for stage, values in result["label_quality"].items():
        print(stage, ", ".join(f"{key} {100 * value['mean']:.1f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
