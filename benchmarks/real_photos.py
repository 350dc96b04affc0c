"""Real photos: the `folder` data set with Clothing Co-Parsing, a real ImageNet backbone, and imported unlabeled images.

    python benchmarks/real_photos.py --reference ../shared/reference [--work DIR] [--folds 0 1 2 3] [--draws 3]

Photos of the novel classes are imported as if they were synthetic: without their masks. The masks are used only here, to
measure what APF and APR make of the drafts (per-class IoU of labels), beside the trained segmenters' mIoU on the val list.
Base training and support come from the first photos of the train list, imported images from the rest, so no imported image
was ever trained on or annotated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from record import ROOT, machine, write

from syn4seg.config.loading import load
from syn4seg.data.datasets import Fold, fold_of
from syn4seg.data.folder import FolderDataset
from syn4seg.schema import LABEL_COLUMNS, UNLABELED
from syn4seg.segmenter.evaluation import class_iou, confusion
from syn4seg.stages.results import spread
from syn4seg.store.images import read_image
from syn4seg.store.rundir import RunDir

TRAINED = 400  # photos for base training and support; the other 300 of the train list are imported


def import_folder(dataset: FolderDataset, fold: Fold, root: Path, per_class: int) -> None:
    """ROOT/CLASS/ID.jpg for photos that show at least 2 % of a novel class, largest share first, as links."""
    for k in fold.novel:
        shown = sorted((-dataset.areas(s).get(k, 0.0), s) for s in dataset.train[TRAINED:])
        folder = root / fold.names[k - 1]
        folder.mkdir(parents=True, exist_ok=True)
        for area, sample in shown[:per_class]:
            if area <= -0.02 and not (folder / f"{sample}.jpg").exists():
                os.symlink((dataset.root / "images" / f"{sample}.jpg").resolve(), folder / f"{sample}.jpg")


def label_quality(run: RunDir, draw: int, dataset: FolderDataset, fold: Fold) -> dict[str, dict[str, float]]:
    """Each stage against the true masks, on accepted images: the target's IoU, precision, recall; all pixels' accuracy."""
    matrices = {stage: np.zeros((256, 256), np.int64) for stage in LABEL_COLUMNS}
    target = {stage: np.zeros(3) for stage in LABEL_COLUMNS}  # hits, predicted, true
    for row in pq.read_table(run.draw(draw).manifest).to_pylist():
        if row["reason"]:
            continue
        truth = fold.to_index[dataset.mask(Path(row["prompt"]).stem)]
        for stage in LABEL_COLUMNS:
            label = read_image(run.draw(draw).label(stage, row["class"], row["sample_id"]))
            use, k = truth != UNLABELED, row["class_id"]
            target[stage] += [((label == k) & (truth == k)).sum(), ((label == k) & use).sum(), (truth == k).sum()]
            matrices[stage] += confusion(label, truth, 256)
    quality = {}
    for stage, (hits, predicted, true) in target.items():
        counts = matrices[stage]
        quality[stage] = {
            "target_iou": hits / max(1, predicted + true - hits),
            "target_precision": hits / max(1, predicted),
            "target_recall": hits / max(1, true),
            "accuracy_of_labelled": np.trace(counts) / max(1, counts.sum()),
            "mean_iou": float(np.nanmean(class_iou(counts)[: 1 + len(fold.names)])),
        }
    return quality


def main() -> None:
    """Runs what is missing and writes the dated result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=ROOT.parent / "shared" / "reference")
    parser.add_argument("--work", type=Path, default=Path("runs/real-photos"))
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    photos, weights = args.reference / "ccp", args.reference / "weights" / "mobilenet_v2_imagenet_fp16.safetensors"
    if not photos.is_dir() or not weights.is_file():
        sys.exit(f"--reference {args.reference}: needs ccp/ and weights/; nothing was run")
    dataset, about = FolderDataset(photos), machine()
    rows: dict[str, dict[str, list[float]]] = {}
    quality: dict[str, dict[str, list[float]]] = {}
    per_fold: dict[str, Any] = {}
    for number in args.folds:
        fold = fold_of(dataset, number)
        imported, out = args.work / f"import{number}", args.work / f"fold{number}"
        import_folder(dataset, fold, imported, args.per_class)
        overrides = [
            f"data.root={photos}",
            f"data.fold={number}",
            f"data.draws={args.draws}",
            f"synthesis.root={imported}",
            f"synthesis.images_per_class={args.per_class}",
            f"segmenter.weights={weights}",
            *args.overrides,
        ]
        if not (out / "results.json").is_file():
            command = [sys.executable, "-m", "syn4seg.cli", "run", str(ROOT / "examples" / "real_photos.yaml"), *overrides]
            subprocess.run([*command, "--out", str(out)], check=True, cwd=ROOT)
        load(ROOT / "examples" / "real_photos.yaml", overrides)
        run = RunDir(out)
        found = json.loads(run.results.read_text())
        per_fold[str(number)] = {"rows": found["rows"], "funnel": found["funnel"]}
        for row, values in found["rows"].items():
            for metric, value in values.items():
                rows.setdefault(row, {}).setdefault(metric, []).append(value["mean"])
        for draw in range(args.draws):
            for stage, values in label_quality(run, draw, dataset, fold).items():
                for key, value in values.items():
                    quality.setdefault(stage, {}).setdefault(key, []).append(value)
    result = about | {
        "data": "Clothing Co-Parsing, 24 classes, 4 folds of 6 novel; ImageNet MobileNetV2, frozen",
        "shots": found["protocol"]["shots"],
        "folds": args.folds,
        "draws": args.draws,
        "imported_per_class": args.per_class,
        "overrides": args.overrides,
        "rows": {row: {m: spread(v) for m, v in values.items()} for row, values in rows.items()},
        "rows_spread": "standard deviation over folds of the mean over draws",
        "per_fold": per_fold,
        "label_quality": {stage: {k: spread(v) for k, v in values.items()} for stage, values in quality.items()},
        "label_quality_spread": "standard deviation over folds and draws",
    }
    for row, values in result["rows"].items():
        print(row, ", ".join(f"{m} {100 * values[m]['mean']:.1f}" for m in ("base", "novel", "mean", "harmonic")))
    for stage, values in result["label_quality"].items():
        print(stage, ", ".join(f"{k} {100 * v['mean']:.1f}" for k, v in values.items()))
    write("real-photos", result)


if __name__ == "__main__":
    main()
