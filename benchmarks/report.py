"""The report of a run of 10,000 images: size of the page, time and memory to write it, time to open and filter it in Chromium.

    python benchmarks/report.py [--images 10000] [--photos FOLDER] [--work DIR]

The run is made up: images are crops of 128 pixels of the photos (JPEG) in FOLDER, or drawn ones; labels are blobs at each stage,
audits have the usual fields. It is kept in shards, which hold 10,000 samples in a few files; the page does not depend on that.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image as Picture
from record import machine, write

from syn4seg.config.loading import load
from syn4seg.report.page import write_report
from syn4seg.schema import LABEL_COLUMNS, UNLABELED
from syn4seg.stages.setup import load_dataset
from syn4seg.store.images import pixel_digest
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredImage, StoredSample
from syn4seg.store.tables import write_parquet

SIDE, PART = 128, 500


def crops(folder: Path | None, rng: np.random.Generator) -> Any:
    """A function that gives an image uint8 (SIDE, SIDE, 3)."""
    if folder is None:
        from syn4seg.data import embedded

        return lambda i: embedded.draw(embedded.sample_scene(embedded.seeded("report", i)), SIDE)[0]
    photos = [np.array(Picture.open(path).convert("RGB")) for path in sorted(folder.rglob("*.jpg"))[:200]]
    photos = [photo for photo in photos if min(photo.shape[:2]) > SIDE]

    def crop(i: int) -> np.ndarray:
        photo = photos[i % len(photos)]
        y, x = (rng.integers(n - SIDE) for n in photo.shape[:2])
        return np.ascontiguousarray(photo[y : y + SIDE, x : x + SIDE])

    return crop


def labels_of(target: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Labels of every stage that differ in the usual places."""
    y, x = np.mgrid[:SIDE, :SIDE]
    middle, axes = rng.uniform(0.3, 0.7, 2) * SIDE, rng.uniform(0.1, 0.35, 2) * SIDE
    radius = np.hypot((y - middle[0]) / axes[0], (x - middle[1]) / axes[1])
    wobble = cv2.resize(rng.normal(0, 0.2, (9, 9)).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    draft = np.where(radius + wobble < 1, np.where(x < middle[1], target, 3), 0).astype(np.uint8)
    kept = np.where(draft == 3, UNLABELED, draft).astype(np.uint8)
    relabeled = np.where((kept == UNLABELED) & (y > middle[0] - 9), target, kept).astype(np.uint8)
    label = np.where((radius < 1) & (relabeled != UNLABELED), target, np.where(radius > 1.15, 0, relabeled)).astype(np.uint8)
    return dict(zip(LABEL_COLUMNS, (draft, kept, relabeled, label), strict=True))


def make_run(root: Path, count: int, folder: Path | None) -> RunDir:
    """A run of `count` samples with one draw, without results."""
    config, rng = load(None, ["layout=sharded"]), np.random.default_rng(0)
    run, fold = RunDir(root), load_dataset(load(None))[1]
    run.open(config)
    draw_one, ids = crops(folder, rng), [f"hdig-made-{i:05d}" for i in range(count)]
    targets = [fold.novel_indices[i % len(fold.novel_indices)] for i in range(count)]
    zeros = pa.array(np.zeros(count, np.int32))
    write_parquet(
        run.plan,
        pa.table(
            {
                "sample_id": ids,
                "class_id": pa.array(targets, pa.int32()),
                "bank": ["hdig"] * count,
                "prompt": [""] * count,
                "prompt_row": zeros,
                "noise_seed": pa.array(range(count), pa.int64()),
                "batch": zeros,
                "padding": [False] * count,
            }
        ),
    )
    for start in range(0, count, PART):
        images, samples = [], []
        for i in range(start, min(count, start + PART)):
            name, pixels, labels = fold.index_names[targets[i]], draw_one(i), labels_of(targets[i], rng)
            audit = {
                "lambda_keep": 0.5,
                "similarity_best": 0.8,
                "sam": {"agreement": [0.8], "changed": 0.03, "accepted": 1, "refused": 0},
                "pixels": {"free": 0.1, "relabeled": round(float(rng.random()), 4), "unlabeled": 0.02, "target": 0.2},
                "regions": [
                    {"class": targets[i], "area": 900, "similarity": round(float(rng.uniform(0.3, 1)), 5), "why": ""},
                    {"class": 3, "area": 700, "similarity": None, "why": "other_novel"},
                ],
            }
            record = {
                "sample_id": ids[i],
                "class": name,
                "class_id": targets[i],
                "noise_seed": i,
                "batch": 0,
                "reason": "",
                "audit": audit,
                "prompt": f"a photo of a {name} number {i} in front of a wall that was painted long ago",
                "image": pixel_digest(pixels),
                **{stage: pixel_digest(label) for stage, label in labels.items()},
            }
            images.append(StoredImage(ids[i], name, 0, pixels, {}))
            samples.append(StoredSample(record, labels))
        run.samples.write_images(images)
        run.draw(0).write(samples)
    return run


def in_browser(page: Path, shown: int) -> dict[str, float]:
    """Seconds until the first card is there, and until a filter has answered."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = chromium.new_page()
        started = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_selector("#cards .card")
        opened = time.perf_counter()
        tab.fill("#search", "number 77")
        tab.wait_for_selector(f"#count:not(:has-text('{shown} of'))")
        filtered = time.perf_counter()
        chromium.close()
    return {"open_s": round(opened - started, 2), "filter_s": round(filtered - opened, 2)}


def main() -> None:
    """Makes the run, writes its page, opens it, and writes the dated result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="syn4seg-report-") as folder:
        work = args.work or Path(folder)
        run = make_run(work / "run", args.images, args.photos)
        run = RunDir(run.root)
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        target, damage = write_report(run, 0, str(work / "report.html"), lambda *_: None)
        assert not damage, damage[0]
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        html = Path(str(target)).read_text()
        shown = len(json.loads(html.split('id="gallery-data">')[1].split("</script>")[0])["items"])
        result = about | {
            "images": args.images,
            "of": "photos" if args.photos else "drawn",
            "shown": shown,
            "page_mib": round(len(html) / 2**20, 2),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(after.ru_utime - before.ru_utime, 1),
            "peak_gib": round(after.ru_maxrss / 2**20, 2),
            "chromium": in_browser(Path(str(target)), shown),
        }
    print(json.dumps(result, indent=1), file=sys.stderr)
    write("report", result)


if __name__ == "__main__":
    main()
