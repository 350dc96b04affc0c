"""What grows with what: CPU and peak memory of an image, by its side, by classes, by batch, and of a run by its images.

    python benchmarks/growth.py [--images 250 1000 4000] [--sides 256 512 1024 2048]

Every case has a process of its own, one thread. CPU is that of the call alone (the best of three; of a run: of the whole
command), memory is what the process held at its peak above what it held before the call. `power` is p where the cost from one
case to the next grew as its size to the power of p: 1 is linear, 0 is constant.

- labels: APF, APR and SABR on one image without their networks (`label_arithmetic.py`), by side.
- prediction: one query's features to classes in its own pixels, by side (20 classes) and by classes (512 pixels).
- network: ResNet-50 at 473 pixels, an image of batches of 1 and 8.
- run: `syn4seg refine` on the embedded world without Ray, by images; the smallest run is taken off, as start-up.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from record import machine, one_thread, write

REPEATS = 3
CLASSES, SIDES, BATCHES = (4, 20, 80), (256, 512, 1024, 2048), (1, 8)


def peak_mib() -> float:
    """MiB that this process held at its peak so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def cost_of(call: Callable[[], Any], per: int = 1) -> dict[str, float]:
    """CPU milliseconds of a call (the best of some) over `per`, and MiB of its peak above what was held before."""
    call_floor, times = peak_mib(), []
    for _ in range(REPEATS):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return {"cpu_ms": round(1000 * min(times) / per, 2), "peak_mib": round(peak_mib() - call_floor, 1)}


def labels(side: int) -> dict[str, float]:
    """APF, APR and SABR on one made-up image."""
    from label_arithmetic import FILTER, REFINE, RELABEL, make_sam_masks, make_scene

    from syn4seg.labeling.components import find_components
    from syn4seg.labeling.filtering import filter_regions
    from syn4seg.labeling.refinement import refine_boundary
    from syn4seg.labeling.relabeling import relabel

    scene = make_scene(side)

    def relabeled() -> Any:
        found = filter_regions(scene.draft, scene.features, scene.prototypes, confidence=scene.confidence, **FILTER)
        return relabel(found.kept, scene.features, prototypes=scene.prototypes, **RELABEL).label

    label = relabeled()
    masks, ious = make_sam_masks(find_components(label))
    return cost_of(lambda: refine_boundary(relabeled(), find_components(label), masks, ious, **REFINE))


def prediction(side: int, classes: int) -> dict[str, float]:
    """One query's features (512, side / 8, side / 8) to one class a pixel."""
    import numpy as np
    import torch

    from syn4seg.data.canvas import Canvas
    from syn4seg.segmenter.evaluation import Query, predictor_of
    from syn4seg.segmenter.network import Classifier

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    classifier = Classifier(torch.randn(classes, 512, generator=generator) / 20, torch.zeros(classes))
    features = torch.randn(512, side // 8, side // 8, generator=generator).relu().half()
    query = Query("", features, np.zeros((side, side), np.uint8), Canvas(side), (side, side))
    predict = predictor_of(classifier)
    return cost_of(lambda: predict(query))


def network(batch: int) -> dict[str, float]:
    """The features of a batch by a ResNet-50 with random weights; the cost of one image."""
    import torch

    from syn4seg.segmenter.backbones import load_backbone

    torch.set_num_threads(1)
    backbone, images = load_backbone("resnet50").module.eval(), torch.zeros(batch, 3, 473, 473)

    def forward() -> None:
        with torch.no_grad():
            backbone(images)

    return cost_of(forward, batch)


def run(images: int) -> dict[str, float]:
    """The whole command up to the labels; four novel classes share the images."""
    with tempfile.TemporaryDirectory() as folder:
        count = images // 4
        keys = [f"synthesis.images_per_class={count}", f"prompts.bank_size={count}", "synthesis.class_name_bank=false"]
        words = ["refine", "embedded", "placement.runner=inline", "layout=sharded", *keys, "--out", str(Path(folder) / "run")]
        subprocess.run([sys.executable, "-m", "syn4seg.cli", *words], check=True, stdout=subprocess.DEVNULL)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu_ms": round(1000 * (spent.ru_utime + spent.ru_stime)), "peak_mib": round(spent.ru_maxrss / 2**10, 1)}


def alone(function: Callable[..., dict[str, float]], *sizes: int) -> dict[str, float]:
    """The figures of a case in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *sizes).result()


def grown(what: str, unit: str, cases: Iterable[tuple[int, dict[str, float]]]) -> list[dict[str, Any]]:
    """The rows of one table, with the power from each case to the next."""
    rows: list[dict[str, Any]] = []
    for size, cost in cases:
        row = {"what": what, unit: size, **cost}
        if rows and rows[-1]["cpu_ms"]:
            row["power"] = round(math.log(cost["cpu_ms"] / rows[-1]["cpu_ms"]) / math.log(size / rows[-1][unit]), 2)
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def runs(counts: list[int]) -> Iterable[tuple[int, dict[str, float]]]:
    """Runs beyond the smallest one: its images and CPU are taken off."""
    least, *others = sorted(counts)
    start_up = alone(run, least)
    print(f"a run of {least} images, start-up included: {start_up}", flush=True)
    for count in others:
        whole = alone(run, count)
        yield count - least, {"cpu_ms": whole["cpu_ms"] - start_up["cpu_ms"], "peak_mib": whole["peak_mib"]}


def main() -> None:
    """Measure every table, print it and write the dated result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[250, 1000, 4000])
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    args = parser.parse_args()
    one_thread()
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    about = machine()
    tables = [
        grown("labels", "pixels", ((side**2, alone(labels, side)) for side in args.sides)),
        grown("prediction", "pixels", ((side**2, alone(prediction, side, 20)) for side in args.sides)),
        grown("prediction", "classes", ((count, alone(prediction, 512, count)) for count in CLASSES)),
        grown("network, an image", "batch", ((batch, alone(network, batch)) for batch in BATCHES)),
        grown("run", "images", runs(args.images)),
    ]
    write("growth", about | {"threads": 1, "rows": [row for table in tables for row in table]})


if __name__ == "__main__":
    main()
