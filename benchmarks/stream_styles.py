"""The same four stages in five styles, in one run: our stream, one object per row, Ray Data's defaults twice, a plain loop.

    python benchmarks/stream_styles.py [--images 512] [--repeat 3]

- `ours`: `run_stream` with columns of arrays, 16 rows per block, guarded stages.
- `objects`: as NeMo Curator's Ray Data backend has it: one Python object per row, one row per block (`from_items` with as many
  blocks as objects), object columns, stages that take and return lists of objects, 16 per call.
- `items`: `ray.data.from_items(rows)` and `map_batches(Stage)` with what Ray Data 2.60 chooses: up to 200 blocks of few rows.
- `parquet`: the same from a Parquet file, as prompts are kept: one block, so that no two stages ever work at the same time.
- `loop`: the same calls one after the other in this process, 16 rows each.

Stages do a few milliseconds of NumPy work per image of 256 x 256; the last hands on a digest, and all styles have to agree on
them. Each Ray style has one actor per stage on one cluster, started once. Start-up is the time to the first stage's first
call; images/s and CPU count from there to the last row. Repetitions are interleaved, medians are reported.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from record import ROOT, machine, write

SIZE, BATCH = 256, 16
Rows = dict[str, np.ndarray]


def drawn(seed: int) -> np.ndarray:
    """An image from its seed: colour gradients and a little noise."""
    noise = np.random.default_rng(seed).integers(0, 32, (SIZE, SIZE, 3), np.uint8)
    ramp = (np.arange(SIZE, dtype=np.uint8)[:, None, None] // 2) + (np.arange(SIZE, dtype=np.uint8)[None, :, None] // 4)
    return noise + ramp


def drafted(image: np.ndarray) -> np.ndarray:
    """A label by thresholds of the brightness."""
    return (image.astype(np.uint16).sum(axis=2) // 100).astype(np.uint8)


def smoothed(label: np.ndarray) -> np.ndarray:
    """The median of each pixel and its neighbours in its row and column."""
    moved = [np.roll(label, shift, axis) for axis in (0, 1) for shift in (-1, 1)]
    return np.sort(np.stack([label, *moved]), axis=0)[2]


def digest(*arrays: np.ndarray) -> str:
    """What the last stage hands on in place of the pixels."""
    return hashlib.blake2b(b"".join(a.tobytes() for a in arrays), digest_size=8).hexdigest()


class Make:
    """Images; notes when it was first called."""

    reads, adds = ("sample_id", "seed"), ("image", "begun")

    def __call__(self, rows: Rows) -> Rows:
        begun = np.full(len(rows["seed"]), time.time())
        return dict(rows) | {"image": np.stack([drawn(int(s)) for s in rows["seed"]]), "begun": begun}


class Label:
    """Three label columns, as the Labeler adds."""

    reads, adds = ("image",), ("draft", "kept", "relabeled")

    def __call__(self, rows: Rows) -> Rows:
        draft = np.stack([drafted(image) for image in rows["image"]])
        return dict(rows) | {"draft": draft, "kept": draft // 2, "relabeled": draft + 1}


class Refine:
    """The final label."""

    reads, adds = ("relabeled",), ("label",)

    def __call__(self, rows: Rows) -> Rows:
        return dict(rows) | {"label": np.stack([smoothed(label) for label in rows["relabeled"]])}


class Sink:
    """Digests instead of pixels."""

    reads, adds = ("image", "draft", "kept", "label"), ()

    def __call__(self, rows: Rows) -> Rows:
        pixels = zip(rows["image"], rows["draft"], rows["kept"], rows["label"], strict=True)
        marks = np.array([digest(*each) for each in pixels], dtype=object)
        empty = np.array([""] * len(marks), dtype=object)
        return {"sample_id": rows["sample_id"], "digest": marks, "begun": rows["begun"], "reason": empty, "traceback": empty}


STAGES = (Make, Label, Refine, Sink)


@dataclass
class Task:
    """One row as an object, with what earlier stages put into it."""

    sample_id: str
    seed: int
    data: dict[str, Any] = field(default_factory=dict)


class OfTasks:
    """A stage over lists of objects, one object at a time."""

    def __init__(self, work: Callable[[Task], None]):
        self.work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        tasks = list(batch["item"])
        for task in tasks:
            self.work(task)
        items = np.empty(len(tasks), dtype=object)
        items[:] = tasks
        return {"item": items}


def make(task: Task) -> None:
    """`Make` for an object; the others follow."""
    task.data |= {"begun": time.time(), "image": drawn(task.seed)}


def label(task: Task) -> None:
    draft = drafted(task.data["image"])
    task.data |= {"draft": draft, "kept": draft // 2, "relabeled": draft + 1}


def refine(task: Task) -> None:
    task.data["label"] = smoothed(task.data["relabeled"])


def sink(task: Task) -> None:
    mark = digest(*(task.data[name] for name in ("image", "draft", "kept", "label")))
    task.data = {"digest": mark, "begun": task.data["begun"]}


def table(images: int) -> Rows:
    """The rows to make."""
    empty = np.array([""] * images, dtype=object)
    names = np.array([f"s{i}" for i in range(images)], dtype=object)
    return {"sample_id": names, "seed": np.arange(images), "reason": empty, "traceback": empty}


def ours(images: int) -> Iterator[Rows]:
    """Our stream; one actor per stage."""
    import pyarrow as pa

    from actors.placement import Operator
    from actors.streaming import run_stream
    from syn4seg.config.placement import PoolConfig

    stages = [Operator(stage, {}, PoolConfig(batch=BATCH), stage.__name__.lower()) for stage in STAGES]
    yield from run_stream(pa.table(table(images)), stages, BATCH)


def objects(images: int) -> Iterator[Rows]:
    """One object per row, in blocks of one."""
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    DataContext.get_current().enable_fallback_to_arrow_object_ext_type = True
    stream = ray.data.from_items([Task(f"s{i}", i) for i in range(images)], override_num_blocks=images)
    for work in (make, label, refine, sink):
        stream = stream.map_batches(
            OfTasks, fn_constructor_kwargs={"work": work}, batch_size=BATCH, num_cpus=0.25, compute=ActorPoolStrategy(size=1)
        )
    for batch in stream.iter_batches(batch_size=None, batch_format="numpy"):
        items = batch["item"]  # type: ignore[index]
        yield {
            "sample_id": np.array([t.sample_id for t in items]),
            "digest": np.array([t.data["digest"] for t in items]),
            "begun": np.array([t.data["begun"] for t in items]),
        }


def items(images: int) -> Iterator[Rows]:
    """Ray Data as it comes, from a list: nothing said about blocks, batches or CPUs."""
    import ray.data

    rows = table(images)
    yield from as_it_comes(ray.data.from_items([{name: values[i] for name, values in rows.items()} for i in range(images)]))


def parquet(images: int) -> Iterator[Rows]:
    """Ray Data as it comes, from a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray.data

    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table(table(images)), f"{folder}/rows.parquet")
        yield from as_it_comes(ray.data.read_parquet(f"{folder}/rows.parquet"))


def as_it_comes(stream: Any) -> Iterator[Rows]:
    """All stages, one actor each."""
    from ray.data import ActorPoolStrategy

    for stage in STAGES:
        stream = stream.map_batches(stage, compute=ActorPoolStrategy(size=1))
    yield from stream.iter_batches(batch_size=None, batch_format="numpy")


def loop(images: int) -> Iterator[Rows]:
    """No Ray: one batch through all stages, then the next."""
    rows, stages = table(images), [stage() for stage in STAGES]
    for start in range(0, images, BATCH):
        batch = {name: values[start : start + BATCH] for name, values in rows.items()}
        for stage in stages:
            batch = stage(batch)
        yield batch


class Meter:
    """CPU seconds of this process and all below it, ended ones included, sampled ten times a second."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}
        self.samples: list[tuple[float, float]] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self.over.wait(0.1):
            for process in [me, *me.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                self.seen[process.pid] = times.user + times.system
            self.samples.append((time.time(), sum(self.seen.values())))

    def between(self, begin: float, end: float) -> float:
        """CPU seconds in an interval."""
        at, used = np.array(self.samples).T
        return float(np.interp(end, at, used) - np.interp(begin, at, used))


def measured(style: Callable[[int], Iterator[Rows]], images: int) -> tuple[dict[str, float], dict[str, str]]:
    """One run of one style: its figures, and the digests by sample."""
    meter, began, found, begun, blocks = Meter(), time.time(), {}, [], 0
    for rows in style(images):
        found |= dict(zip(rows["sample_id"].tolist(), rows["digest"].tolist(), strict=True))
        begun.append(float(rows["begun"].min()))
        blocks += 1
    end = time.time()
    time.sleep(0.3)
    meter.over.set()
    meter.thread.join()
    assert len(found) == images
    first = min(begun)
    return {
        "start_up_s": first - began,
        "seconds": end - first,
        "images_per_s": images / (end - first),
        "cpu_ms_per_image": 1000 * meter.between(first, end) / images,
        "blocks": blocks,
    }, found


def main() -> None:
    """All styles on one cluster, interleaved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    import ray
    import ray.data

    about = machine()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=2**30,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().wait_for_min_actors_s = 600  # actors are up before the first call, in every style
    measured(ours, BATCH)  # the first stream on a new cluster pays for Ray's own services
    runs: dict[str, list[dict[str, float]]] = {}
    answers: dict[str, str] = {}
    for _ in range(args.repeat):
        for style in (loop, ours, objects, items, parquet):
            figures, found = measured(style, args.images)
            assert found == (answers := answers or found), f"{style.__name__} made other pixels"
            runs.setdefault(style.__name__, []).append(figures | {"load": os.getloadavg()[0]})
            print(style.__name__, {name: round(value, 2) for name, value in runs[style.__name__][-1].items()}, flush=True)
    ray.shutdown()
    styles = {name: {key: round(statistics.median(run[key] for run in each), 2) for key in each[0]} for name, each in runs.items()}
    write(
        "stream-styles",
        about
        | {
            "images": args.images,
            "pixels": SIZE,
            "rows_per_call": BATCH,
            "repetitions": args.repeat,
            "styles": styles,
            "ours_against": {
                name: {key: round(styles["ours"][key] / styles[name][key], 2) for key in ("images_per_s", "cpu_ms_per_image")}
                for name in ("objects", "items", "parquet", "loop")
            },
        },
    )


if __name__ == "__main__":
    main()
