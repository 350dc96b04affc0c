"""How busy a card is kept that learns from images: views made between two steps, and ahead by readers.

    python benchmarks/readers.py [--photos ../shared/reference/facade] [--crop 473] [--batch 16] [--card 7.7] [--steps 40]

The card is simulated: a step sleeps `--card` milliseconds an image (7.7: forwards and backwards of a ResNet-50 with 473 pixels
on an H100), so the CPU is free for readers as it would be. Busy share = slept over the time from a batch's arrival, the first
steps left out, to the end of the last step; ending the readers, once in a training, is `end_ms`. Views are those of the base
stage: a photo is read, decoded and warped with its mask; without `--photos` the embedded world draws them.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from record import machine, one_thread, write

from syn4seg.config.loading import load
from syn4seg.segmenter.base import BaseViews
from syn4seg.segmenter.views import Augmentation, ViewStream
from syn4seg.stages.readers import read_ahead
from syn4seg.stages.setup import load_dataset

WARM = 8
"""Steps that are left out: processes start, imports and first files."""


def busy_share(stream: ViewStream, steps: int, seconds: float) -> dict[str, float]:
    """Take every batch of a stream and sleep for its images; figures after the first steps."""
    slept = began = ended = cpu = 0.0
    for step, batch in enumerate(stream(range(steps + WARM))):
        if step == WARM:
            slept, began, cpu = 0.0, time.perf_counter(), time.process_time()
        time.sleep(seconds * len(batch.images))
        slept += seconds * len(batch.images)
        ended = time.perf_counter()
    wall, end = ended - began, time.perf_counter() - ended
    return {"busy_share": round(slept / wall, 4), "step_ms": round(1000 * wall / steps, 1), "end_ms": round(1000 * end)} | {
        "cpu_ms_a_step_of_the_trainer": round(1000 * (time.process_time() - cpu) / steps, 1)
    }


def main() -> None:
    """Run every way in turn, and readers under Ray Data last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--crop", type=int, default=473)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--card", type=float, default=7.7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--readers", type=int, nargs="+", default=[0, 1, 2, 4])
    args = parser.parse_args()
    one_thread()
    about = machine()
    chosen = ["data.source=folder", f"data.root={args.photos.resolve()}", "base.checkpoint=train"] if args.photos else []
    dataset, fold = load_dataset(load(None, chosen))
    views = BaseViews(dataset, fold, dataset.train, args.batch, Augmentation(args.crop, blur=0.5), 0)
    started = time.process_time()
    for step in range(WARM):
        views[step]
    reading = 1000 * (time.process_time() - started) / (WARM * args.batch)
    found: dict[str, Any] = {}
    for readers in args.readers:
        found[f"{readers} readers"] = busy_share(read_ahead(views, readers), args.steps, args.card / 1000)
        print(readers, found[f"{readers} readers"], flush=True)
    from actors.cluster import connect
    from actors.readers import read_with_ray

    connect(load(None).placement)
    for readers in [n for n in args.readers if 0 < n < (os.cpu_count() or 1)]:
        name = f"{readers} readers under Ray Data"
        found[name] = busy_share(read_with_ray(views, readers), args.steps, args.card / 1000)
        print(name, found[name], flush=True)
    how = {key: getattr(args, key) for key in ("crop", "batch", "steps")}
    data = args.photos.name if args.photos else "embedded"
    write(
        "readers", about | how | {"data": data, "card_ms_an_image": args.card, "cpu_ms_an_image": round(reading, 2), "ways": found}
    )


if __name__ == "__main__":
    main()
