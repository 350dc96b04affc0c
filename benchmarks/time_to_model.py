"""Seconds until there is a trained model: synthesis, then training; and the two at the same time.

    python benchmarks/time_to_model.py [--images 128] [--sleep 0.5] [--steps 300] [--ramp 0.9]

The generator stands in for a GPU: it sleeps for `--sleep` seconds per image. Measured on the same plan, registered before:
(a) labelling alone, (b) the novel stage alone on the finished labels, (c) both at once, from the same start. Ray is started
before the clock; the start of its actors, of the network and of the features of the base images is in the figures, and shown.
Scores are not part of it. The classifiers of (b) and (c) must have the same bytes.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from record import machine, write
from streaming import Sleeping, prepared

from actors import graph
from actors.cluster import connect
from actors.trainer import LabelingThread, always_labeled, train_and_evaluate
from syn4seg.config.loading import load
from syn4seg.stages.checks import check
from syn4seg.stages.results import write_manifest
from syn4seg.stages.rows import rows_of
from syn4seg.store.rundir import RunDir


class Clock:
    """A progress bar that only notes when it was first and last moved."""

    def __init__(self) -> None:
        self.began, self.times, self.done = time.time(), [], 0

    def __call__(self, done: int, total: int, *_: object) -> None:
        if done > self.done:
            self.times.append(time.time() - self.began)
        self.done = done

    @property
    def span(self) -> list[float]:
        """Seconds from the start to the first and to the last that was done."""
        return [round(self.times[0], 1), round(self.times[-1], 1)]


def main() -> None:
    """The three measurements, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--sleep", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--ramp", type=float, default=0.9)
    args = parser.parse_args()
    count = args.images // 8
    config = load(
        None,
        [
            f"synthesis.images_per_class={count}",
            f"prompts.bank_size={count}",
            "synthesis.batch=4",
            "placement.synthesis.batch=4",
            "placement.labeling.batch=4",
            "placement.refinement.batch=4",
            "data.train_images=500",
            f"novel.steps={args.steps}",
            f"novel.ramp={args.ramp}",
        ],
    )
    result: dict[str, Any] = machine() | vars(args)
    dataset, fold = check(config)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        first, names = prepared(config, root / "apart")
        shutil.copytree(str(first.root), root / "together")
        together = RunDir(root / "together")
        connect(config.placement)
        sleeping = functools.partial(Sleeping, args.sleep, str(root / "notes.txt"))
        graph.load_generator = lambda *_, **__: sleeping()  # type: ignore[assignment]

        def label(run: RunDir, clock: Clock, draw: int, go_on: Any) -> None:
            def progress(done: int, total: int, reasons: Any) -> None:
                go_on()
                clock(done, total)

            graph.stream(config, run, names, draw, progress)
            write_manifest(run, draw)

        def train(run: RunDir, clock: Clock, is_labeled: Any) -> None:
            train_and_evaluate(config, run, dataset, fold, [clock, clock], evaluate=False, is_labeled=is_labeled)

        clocks = [Clock()]
        label(first, clocks[0], 0, lambda: None)
        synthesis = time.time() - clocks[0].began
        clocks.append(Clock())
        train(first, clocks[1], always_labeled)
        training = time.time() - clocks[1].began
        clocks += [Clock(), Clock()]
        with LabelingThread(functools.partial(label, together, clocks[2]), [0]) as labeling:
            train(together, clocks[3], labeling.is_labeled)
        both = time.time() - clocks[2].began
        for row in rows_of(config):
            a, b = (run.draw(0).checkpoint(row).read_bytes() for run in (first, together))
            assert a == b, row
        ray.shutdown()
    result |= {
        "synthesis_seconds": round(synthesis, 1),
        "training_seconds": round(training, 1),
        "together_seconds": round(both, 1),
        "time_to_model_over_max": round(both / max(synthesis, training), 3),
        "time_to_model_over_sum": round(both / (synthesis + training), 3),
        "first_and_last": {
            "synthesis": clocks[0].span,
            "training": clocks[1].span,
            "synthesis together": clocks[2].span,
            "training together": clocks[3].span,
        },
        "same_bytes": True,
    }
    print(result)
    write("time-to-model", result)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # for the actors
    import torch

    torch.set_num_threads(1)
    main()
