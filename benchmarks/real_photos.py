"""Real photos: a folder data set, a real ImageNet backbone, imported photos without their masks; all rows, controls, baselines.

    python benchmarks/real_photos.py facade --photos ../shared/reference/facade [key=value] [--folds 0 1] [--draws 5] [--shots 1]
    python benchmarks/real_photos.py ccp --photos ../shared/reference/ccp

`facade` is LabelMeFacade (github.com/cvjena/labelmefacade, for research), `ccp` Clothing Co-Parsing; a folder holds images/,
masks/, classes.json, train.txt, val.txt as `data.source=folder` reads them, and may hold extra.txt. Photos of a novel class are
imported as if they had been generated for it: those of extra.txt, or the train list's after the first 400. Their masks are read for
the control row `oracle` and the label figures alone. Folds 0 and 1 of `facade` are those on which settings were chosen.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from record import ROOT, joint_seconds, machine, write

from syn4seg.config.loading import load
from syn4seg.data.datasets import fold_of
from syn4seg.data.folder import FolderDataset
from syn4seg.report.numbers import measure_label_quality
from syn4seg.report.reading import read_records
from syn4seg.seeds import seeded
from syn4seg.stages.gains import paired_gains
from syn4seg.stages.results import spread
from syn4seg.stages.rows import BASELINE, RESULT_NAMES
from syn4seg.stages.setup import load_dataset
from syn4seg.stages.truth import truth_source
from syn4seg.store.rundir import RunDir

TRAINED = 400
"""Photos of the train list for base training and support where there is no extra.txt; the rest is imported."""
LEAST = 0.02
"""Share of a photo that a class covers, for the photo to be imported for it."""


def import_folder(photos: Path, number: int, root: Path, per_class: int) -> None:
    """Link ROOT/CLASS/ID.jpg to the first `per_class` photos, in a seeded order, that show a novel class of a fold."""
    dataset = FolderDataset(photos)
    fold, extra = fold_of(dataset, number), photos / "extra.txt"
    pool = extra.read_text().split() if extra.is_file() else dataset.train[TRAINED:]
    for k in fold.novel:
        folder = root / fold.names[k - 1]
        folder.mkdir(parents=True, exist_ok=True)
        shown = (pool[i] for i in seeded("imported photos", k).permutation(len(pool)))
        for sample in [s for s in shown if dataset.areas(s).get(k, 0.0) >= LEAST][:per_class]:
            if not (folder / f"{sample}.jpg").exists():
                os.symlink((photos / "images" / f"{sample}.jpg").resolve(), folder / f"{sample}.jpg")


def run_fold(args: argparse.Namespace, number: int) -> tuple[dict[str, Any], RunDir, list[str]]:
    """Run a fold unless it is done; return its results.json, the run, and its overrides."""
    imported, out = args.work / f"import{number}", args.work / f"fold{number}-{args.shots}shot"
    import_folder(args.photos, number, imported, args.per_class)
    overrides = [
        f"data.root={args.photos}",
        f"data.fold={number}",
        f"data.draws={args.draws}",
        f"data.shots={args.shots}",
        f"data.train_images={TRAINED}",
        f"synthesis.root={imported}",
        f"evaluation.masks={args.photos / 'masks'}",
        f"synthesis.images_per_class={args.per_class}",
        "evaluation.controls=true",
        "evaluation.baselines=[imprinting, finetuning, diam, bcm]",
        "placement.runner=inline",
        *args.overrides,
    ]
    if not (out / "results.json").is_file():
        command = [sys.executable, "-m", "syn4seg.cli", "run", str(ROOT / "examples" / "photos.yaml"), *overrides]
        reused = ["--reuse", str(args.reuse / out.name)] if args.reuse else []
        subprocess.run([*command, "--out", str(out), *reused], check=True, cwd=ROOT)
    return json.loads((out / "results.json").read_text()), RunDir(out), overrides


def figures_by_draw(run: RunDir, draws: int, base: int, novel: int) -> dict[str, list[Any]]:
    """Return the figures of every row and baseline by draw, from the confusion matrices."""
    from syn4seg.segmenter.evaluation import metrics

    rows: dict[str, list[Any]] = {}
    for draw in range(draws):
        for row, matrix in json.loads((run.draw(draw).root / "confusion.json").read_text()).items():
            name = RESULT_NAMES.get(row) or row.removeprefix(BASELINE)
            rows.setdefault(name, []).append(metrics(np.array(matrix), base, novel))
    return rows


def main() -> None:
    """Run what is missing and write the dated result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("facade", "ccp"))
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--reuse", type=Path, help="--work of an earlier call, whose images and base networks are taken over")
    parser.add_argument("--per-class", type=int, default=30)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    args.photos, args.work = args.photos.resolve(), (args.work or Path(f"runs/photos-{args.data}")).resolve()
    if not args.photos.is_dir():
        sys.exit(f"--photos {args.photos}: no such folder; nothing was run")
    about, per_fold, everywhere = machine(), {}, {}
    quality: dict[str, dict[str, list[float]]] = {}
    for number in args.folds:
        started = time.process_time() + sum(os.times()[2:4])
        new = not (args.work / f"fold{number}-{args.shots}shot" / "results.json").is_file()
        found, run, overrides = run_fold(args, number)
        config = load(ROOT / "examples" / "photos.yaml", overrides)
        fold, truth = load_dataset(config)[1], truth_source(config)
        rows = figures_by_draw(run, args.draws, len(fold.base), len(fold.novel))
        for row, draws in rows.items():
            everywhere.setdefault(row, []).extend(draws)
        for draw in range(args.draws):
            records = read_records(run, draw)
            assert truth is not None
            labels = measure_label_quality(run, draw, records.filter(pc.equal(records["reason"], "")), truth)
            for stage, values in labels.items():
                for key, value in values.items():
                    quality.setdefault(stage, {}).setdefault(key, []).append(value)
        per_fold[str(number)] = {key: found[key] for key in ("rows", "baselines", "gains", "funnel", "config_digest")}
        per_fold[str(number)]["joint_seconds"] = joint_seconds(run)
        per_fold[str(number)]["novel"] = found["protocol"]["novel"]
        if new:
            per_fold[str(number)]["cpu_seconds"] = round(time.process_time() + sum(os.times()[2:4]) - started)
    metrics = ("base", "novel", "mean", "harmonic")
    result = about | {
        "data": args.data,
        "shots": args.shots,
        "draws": args.draws,
        "imported_per_class": args.per_class,
        "overrides": args.overrides,
        "rows": {row: {m: spread([d[m] for d in draws]) for m in metrics} for row, draws in everywhere.items()},
        "gains": paired_gains(everywhere),
        "spread": "standard deviation over folds and draws",
        "per_fold": per_fold,
        "label_quality": {stage: {k: spread(v) for k, v in values.items()} for stage, values in quality.items()},
    }
    for row, values in result["rows"].items():
        gain = result["gains"].get(row, {}).get("over_support_only", {}).get("novel")
        text = f"; novel gain {100 * gain['mean']:+.1f} ± {100 * gain['std']:.1f}, {gain['won']} of {gain['n']}" if gain else ""
        print(row, ", ".join(f"{m} {100 * values[m]['mean']:.1f}" for m in metrics) + text)
    for stage, values in result["label_quality"].items():
        print(stage, ", ".join(f"{k} {100 * v['mean']:.1f}" for k, v in values.items()))
    write(f"real-photos-{args.data}-{args.shots}shot", result)


if __name__ == "__main__":
    main()
