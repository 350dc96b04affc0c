"""A sharded run of a million samples: listing, resuming, its manifest, and verifying it; seconds and peak memory of each.

Synthetic: the shards are written by this script and not by the stream. Ids, prompts, records and digests are what a run would
have; images and labels are 8 x 8 pixels, of 64 kinds (PNGs of 80 to 250 bytes), so the full check measures the cost per sample,
not per pixel. Every measurement is made in a process of its own; its memory is the peak of that process, imports (about
0.2 GiB) included. Where the machine is busy (`load`), seconds are upper bounds; `cpu_seconds` are those of all threads.

    python benchmarks/manifest.py [--rows 1000000]
"""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from record import machine, write

from actors.graph import unfinished_rows
from syn4seg.config.loading import load
from syn4seg.config.tree import annotated
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.stages.results import verify_run, write_manifest
from syn4seg.store.files import write_atomically
from syn4seg.store.images import encode_image, pixel_digest
from syn4seg.store.layout_sharded import IMAGES, LABELS
from syn4seg.store.parquet_parts import PartStore
from syn4seg.store.rundir import RunDir
from syn4seg.store.tables import write_parquet

KINDS, SHARD_ROWS, GROUP_ROWS, BATCH = 64, 100_000, 5_000, 4
AUDIT = json.dumps(
    {
        "lambda_keep": 0.61,
        "regions": [{"area": 812, "class": 14, "similarity": 0.71234, "why": "kept"}],
        "pixels": {"free": 0.1, "relabeled": 0.05, "target": 0.3, "unlabeled": 0.02},
        "similarity_best": 0.71234,
        "sam": {"accepted": 1, "agreement": [0.9123], "changed": 0.01, "refused": 0},
    }
)


def make(root: Path, rows: int) -> None:
    """A finished sharded run in root/whole, and one in root/half of which half the labels are there."""
    plan = _plan(rows)
    for name, done in (("whole", rows), ("half", rows // 2)):
        run = root / name
        write_atomically(run / "config.yaml", annotated(load(None, ["layout=sharded"])).encode())
        write_parquet(run / "plan.parquet", plan)
        if name == "whole":
            _shards(run / "images", IMAGES, plan, rows)
        else:
            shutil.copytree(root / "whole" / "images", run / "images", copy_function=os.link)
        _shards(run / "draws" / "0" / "labels", LABELS, plan, done)


def _plan(rows: int) -> pa.Table:
    number = np.arange(rows)
    ids = [f"hdig-dining_table-{i:07d}" for i in range(rows)]
    return pa.table(
        {
            "sample_id": ids,
            "class_id": pa.array(np.full(rows, 16), pa.int32()),
            "bank": pa.array(["hdig"] * rows),
            "prompt": pa.array([f"a photo of a dining table number {i % 5000} in a room with large windows" for i in range(rows)]),
            "prompt_row": pa.array(number % 5000, pa.int32()),
            "noise_seed": pa.array(number, pa.int64()),
            "batch": pa.array(number // BATCH, pa.int32()),
            "padding": pa.array(np.zeros(rows, bool)),
        }
    )


def _shards(folder: Path, schema: pa.Schema, plan: pa.Table, rows: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    kinds = {"image": [rng.integers(0, 256, (8, 8, 3)).astype(np.uint8) for _ in range(KINDS)]}
    kinds |= {stage: [rng.integers(0, 4, (8, 8)).astype(np.uint8) for _ in range(KINDS)] for stage in LABEL_COLUMNS}
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        part = plan.slice(start, min(SHARD_ROWS, rows - start))
        kind = pa.array(np.arange(start, start + len(part)) % KINDS)
        columns = {
            "sample_id": part["sample_id"],
            "batch": part["batch"],
            "class_id": part["class_id"],
            "prompt": part["prompt"],
            "noise_seed": part["noise_seed"],
            "class": pa.array(["dining table"] * len(part)),
            "audit": pa.array([AUDIT] * len(part)),
            "reason": pa.array([""] * len(part)),
        }
        for key, made in kinds.items():
            columns[key] = pa.array([pixel_digest(pixels) for pixels in made]).take(kind)
            columns[f"{key}_png"] = pa.array([encode_image(pixels) for pixels in made], pa.binary()).take(kind)
        table = pa.table({name: columns[name] for name in schema.names}).cast(schema)
        path = folder / f"shard-{number:032x}.parquet"
        with pq.ParquetWriter(path, schema, **PartStore(folder, schema).options()) as writer:
            writer.write_table(table, row_group_size=GROUP_ROWS)


def resume(run: RunDir) -> int:
    """What a pass does before it starts: which rows are open, and where the images of the others lie."""
    run.samples.compact(0)
    plan, images = run.read_plan(), run.samples.images()
    return pc.sum(unfinished_rows(plan, run.draw(0).complete()["sample_id"], images)["todo"]).as_py()


def poll(run: RunDir) -> float:
    """Seconds of the second of two calls of `finished`, nothing new in between."""
    ids = run.read_plan()["sample_id"].to_pylist()
    run.draw(0).finished(ids)
    started = time.perf_counter()
    run.draw(0).finished(ids)
    return time.perf_counter() - started


STEPS = {
    "listing": ("whole", lambda run: len(run.samples.images()) + len(run.draw(0).table())),
    "todo_when_half_finished": ("half", resume),
    "manifest": ("whole", lambda run: sum(Counter(write_manifest(run, 0)).values())),
    "quick_verify": ("whole", lambda run: verify_run(run, quick=True)),
    "full_verify": ("whole", verify_run),
    "poll_finished": ("whole", poll),
}


def measure(step: str, root: Path) -> None:
    """Runs one step here and prints its figures as JSON."""
    name, work = STEPS[step]
    run, before = RunDir(root / name), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    started = time.perf_counter()
    said = work(run)
    seconds, used = time.perf_counter() - started, sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - before
    if isinstance(said, tuple):
        assert said[1] == [], said[1][:3]
        said = said[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": round(seconds, 2), "cpu_seconds": round(used, 2), "peak_gib": round(peak, 3), "answer": said}))


def main() -> None:
    """Makes the run, measures every step, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--root", type=Path)
    given = parser.parse_args()
    if given.step:
        measure(given.step, given.root)
        return
    result = machine() | {"rows": given.rows, "synthetic": " ".join((__doc__ or "").split("\n\n")[1].split())}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        make(Path(folder), given.rows)
        files = [p for p in Path(folder, "whole").rglob("*") if p.is_file()]
        result["made"] = {
            "seconds": round(time.perf_counter() - started, 1),
            "files": len(files),
            "gib": round(sum(p.stat().st_size for p in files) / 2**30, 3),
        }
        for step in STEPS:
            done = subprocess.run(
                [sys.executable, __file__, "--step", step, "--root", folder], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{step}: {done.stderr}")
            result[step] = json.loads(done.stdout.splitlines()[-1]) | {"load": round(os.getloadavg()[0], 1)}
            print(step, result[step], flush=True)
    assert result["quick_verify"]["answer"] == result["full_verify"]["answer"]
    write("manifest", result)


if __name__ == "__main__":
    main()
