"""The stream against a plain loop over the same stages in one process, and how busy a slow generator is kept.

    python benchmarks/streaming.py [--images 256] [--sleep 0.25]

1. Same work twice from the same prompts and base checkpoint, renderer as the generator: `inline` chains the stages in this
   process, `ray` streams them. Start-up (Ray, imports and models in every actor) is given apart from the steady state, which
   runs from the first finished block to the last. CPU time is that of the whole process tree. The digests must be equal.
2. A simulated GPU: the generator sleeps for `--sleep` seconds per image. Busy share = time inside generate() over the time
   between its first call and its last return.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from record import machine, write

from actors.graph import stages, todo
from actors.placement import connect, run_inline, run_stream
from syn4seg.config import Config, load
from syn4seg.models.generators import Encoded, load_generator
from syn4seg.rundir import RunDir, reuse
from syn4seg.stages.base import make_base
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.plan import make_plan
from syn4seg.stages.results import verify, write_manifest
from syn4seg.stages.setup import check


class Sleeping:
    """Stands in for a GPU: sleeps, notes when, then draws."""

    def __init__(self, seconds: float, notes: str):
        self.seconds, self.notes = seconds, Path(notes)
        self.inner = load_generator("renderer", steps=1, guidance=1.0, size=64)

    def generate(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> tuple[np.ndarray, list[str]]:
        started = time.time()
        time.sleep(self.seconds * len(prompts))
        made = self.inner.generate(prompts, encoded, noise_seeds)
        with self.notes.open("a") as f:
            f.write(f"{started} {time.time()}\n")
        return made


def tree_cpu() -> float:
    """CPU seconds of this process and all its living descendants."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            spent = process.cpu_times()
            total += spent.user + spent.system
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def prepared(config: Config, root: Path) -> tuple[RunDir, tuple[str, ...]]:
    """A run with prompts, base checkpoint and one registered support draw."""
    dataset, fold = check(config)
    run = RunDir(root)
    run.open(config)
    make_plan(config, run, fold, lambda _: None)
    make_base(config, run, dataset, fold, lambda *_: None)
    NovelStage(config, run, dataset, fold).register(0)
    return run, fold.index_names


def measure(config: Config, run: RunDir, names: tuple[str, ...], steps: list) -> dict[str, Any]:
    """Wall and CPU seconds, in all and from the first finished block to the last."""
    rows = todo(pq.read_table(run.plan), set())
    size = steps[0].pool.batch
    started, cpu = time.time(), tree_cpu()
    marks = []
    if config.placement.runner == "ray":
        connect(config.placement)
        batches = run_stream(rows, steps, size)
    else:
        batches = run_inline(rows, steps, size)
    done = 0
    for batch in batches:
        done += len(batch["reason"])
        marks.append((time.time(), tree_cpu(), done))
    write_manifest(run, 0)
    first, last = marks[0], marks[-1]
    steady = (last[2] - first[2]) / (last[0] - first[0])
    return {"images": done, "seconds": round(last[0] - started, 2), "cpu_seconds": round(last[1] - cpu, 2),
            "images_per_second": round(done / (last[0] - started), 2), "steady_images_per_second": round(steady, 2),
            "steady_cpu_ms_per_image": round(1000 * (last[1] - first[1]) / (last[2] - first[2]), 2),
            "digest": verify(run)[0]}  # fmt: skip


def main() -> None:
    """Both measurements, one after the other in one process tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--sleep", type=float, default=0.25)
    args = parser.parse_args()
    about = machine()
    sizes = [f"synthesis.images_per_class={args.images // 8}", f"prompts.bank_size={args.images // 8}"]
    result: dict[str, Any] = about | {"images": args.images}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inline = load(None, [*sizes, "placement.runner=inline"])
        run, names = prepared(inline, root / "inline")
        result["inline"] = measure(inline, run, names, stages(inline, run, names, 0))
        ray = load(None, sizes)
        other = RunDir(root / "ray")
        other.open(ray)
        reuse(run, other, ray)
        for path in (root / "ray" / "images").glob("*/*.png"):
            path.unlink()  # a hard link of this benchmark's own; the images are made again
        prepared(ray, root / "ray")
        result["ray"] = measure(ray, other, names, stages(ray, other, names, 0))
        assert result["ray"]["digest"] == result["inline"]["digest"]
        few = load(None, ["synthesis.images_per_class=16", "prompts.bank_size=16"])
        slow = prepared(few, root / "sleeping")[0]
        notes = root / "notes.txt"
        steps = stages(few, slow, names, 0)
        load_sleeping = functools.partial(Sleeping, args.sleep, str(notes))
        steps[0] = replace(steps[0], kwargs=steps[0].kwargs | {"load": load_sleeping})
        measure(few, slow, names, steps)
        calls = np.array([[float(x) for x in line.split()] for line in notes.read_text().splitlines()])
        busy = (calls[:, 1] - calls[:, 0]).sum() / (calls[:, 1].max() - calls[:, 0].min())
        result["simulated_gpu"] = {
            "sleep_per_image": args.sleep,
            "calls": len(calls),
            "busy_share": round(float(busy), 4),
        }
    a, b = result["inline"], result["ray"]
    result["ratio"] = {
        "images_per_second_start_up_included": round(b["images_per_second"] / a["images_per_second"], 3),
        "images_per_second_steady": round(b["steady_images_per_second"] / a["steady_images_per_second"], 3),
        "cpu_per_image_steady": round(b["steady_cpu_ms_per_image"] / a["steady_cpu_ms_per_image"], 3),
    }  # fmt: skip
    print(result)
    write("streaming", result)


if __name__ == "__main__":
    main()
