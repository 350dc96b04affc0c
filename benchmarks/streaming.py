"""The stream against a plain loop over the same stages in one process, and how busy a slow generator is kept.

    python benchmarks/streaming.py [--images 256] [--sleep 0.25]

1. The same work, renderer as the generator, one thread per process: `inline` chains the stages in this process, `pools` streams
   them through a pool of actors for each stage, `fused` through actors that hold all of them. Each runs a quarter of the images and
   all of them; the difference is the steady state, the rest is start-up (Ray, imports and models in every actor). CPU time is that
   of the machine, which must be quiet. The digests must be equal.
2. A simulated GPU: the generator sleeps for `--sleep` seconds per image. Busy share = time inside generate() over the time
   between its first call and its last return.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import ray
import torch
from record import machine, write

from actors.cluster import connect
from actors.encoder import prompt_agent, text_encoder
from actors.graph import operators, unfinished_rows
from actors.streaming import run_inline, run_stream
from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.models.embeddings import Encoded
from syn4seg.models.generators import load_generator
from syn4seg.stages.base import make_base
from syn4seg.stages.checks import check
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.plan import make_plan
from syn4seg.stages.results import verify_run, write_manifest
from syn4seg.store.rundir import RunDir


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


def machine_cpu() -> float:
    """Busy CPU seconds of the whole machine: actors that have already ended count, so run this on a quiet machine."""
    spent = psutil.cpu_times()
    return spent.user + spent.system + spent.nice


def prepared(config: Config, root: Path) -> tuple[RunDir, tuple[str, ...]]:
    """A run with prompts, base checkpoint and one registered support draw."""
    dataset, fold = check(config)
    run = RunDir(root)
    run.open(config)
    with text_encoder(config) as encoder:
        make_plan(config, run, fold, lambda _: None, prompt_agent(config, encoder), encoder)
    make_base(config, run, dataset, fold, lambda *_: None)
    NovelStage(config, run, dataset, fold).register(0)
    return run, fold.index_names


def measure(config: Config, run: RunDir, steps: list, fused: int = 0) -> dict[str, Any]:
    """Wall and CPU seconds of labelling every planned image, start-up included, and the digest."""
    rows = unfinished_rows(pq.read_table(run.plan), set())
    size = steps[0].pool.batch
    started, cpu, done = time.time(), machine_cpu(), 0
    if config.placement.runner == "ray":
        connect(config.placement)
        batches = run_stream(rows, steps, size, fused=fused)
    else:
        batches = run_inline(rows, steps, size)
    for batch in batches:
        done += len(batch["reason"])
    seconds, spent = time.time() - started, machine_cpu() - cpu
    write_manifest(run, 0)
    return {"images": done, "seconds": round(seconds, 2), "cpu_seconds": round(spent, 2), "digest": verify_run(run)[0]}


def steady(few: dict[str, Any], all_: dict[str, Any]) -> dict[str, float]:
    """Images per second and CPU milliseconds per image of the images that only the larger run made."""
    more = all_["images"] - few["images"]
    return {
        "images_per_second": round(more / (all_["seconds"] - few["seconds"]), 2),
        "cpu_ms_per_image": round(1000 * (all_["cpu_seconds"] - few["cpu_seconds"]) / more, 2),
    }


def main() -> None:
    """Both measurements, one after the other in one process tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--actors", type=int, default=1, help="that hold all stages, of `fused`")
    parser.add_argument("--sleep", type=float, default=0.25)
    args = parser.parse_args()
    about = machine()
    result: dict[str, Any] = about | {"images": args.images, "threads_per_process": 1}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for way in ("inline", "pools", "fused"):
            runs = []
            for images in (args.images // 4, args.images):
                count = images // 8
                config = load(
                    None,
                    [
                        f"synthesis.images_per_class={count}",
                        f"prompts.bank_size={count}",
                        "data.train_images=500",
                        f"placement.runner={'inline' if way == 'inline' else 'ray'}",
                    ],
                )
                run, names = prepared(config, root / f"{way}{images}")
                runs.append(measure(config, run, operators(config, run, names, 0), fused=args.actors if way == "fused" else 0))
                if way != "inline":
                    ray.shutdown()
            result[way] = {"few": runs[0], "all": runs[1], "steady": steady(*runs)}
        assert len({result[way]["all"]["digest"] for way in ("inline", "pools", "fused")}) == 1
        few = load(None, ["synthesis.images_per_class=16", "prompts.bank_size=16", "data.train_images=500"])
        slow, names = prepared(few, root / "sleeping")
        notes = root / "notes.txt"
        steps = operators(few, slow, names, 0)
        load_sleeping = functools.partial(Sleeping, args.sleep, str(notes))
        steps[0] = replace(steps[0], kwargs=steps[0].kwargs | {"load": load_sleeping})
        measure(few, slow, steps)
        calls = np.array([[float(x) for x in line.split()] for line in notes.read_text().splitlines()])
        busy = (calls[:, 1] - calls[:, 0]).sum() / (calls[:, 1].max() - calls[:, 0].min())
        result["simulated_gpu"] = {"sleep_per_image": args.sleep, "calls": len(calls), "busy_share": round(float(busy), 4)}
    plain = result["inline"]
    result["against_inline"] = {
        way: {
            "images_per_second_start_up_included": round(plain["all"]["seconds"] / result[way]["all"]["seconds"], 3),
            "images_per_second_steady": round(result[way]["steady"]["images_per_second"] / plain["steady"]["images_per_second"], 3),
            "cpu_per_image_steady": round(result[way]["steady"]["cpu_ms_per_image"] / plain["steady"]["cpu_ms_per_image"], 3),
        }
        for way in ("pools", "fused")
    }
    print(result)
    write("streaming", result)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # for the actors
    torch.set_num_threads(1)
    main()
