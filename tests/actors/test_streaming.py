"""The stream around the stages: back-pressure in bytes, blocks, and what an actor's death or error looks like from outside."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from actors.graph import STORE_SHARE
from actors.metrics import store_bytes
from actors.placement import Operator
from actors.streaming import run_stream
from syn4seg.config.placement import PoolConfig

SIDE = 512


class Fast:
    """Makes an image of 768 KiB out of nothing, at once."""

    reads = ("sample_id", "reason", "traceback")
    adds = ("image",)

    def __call__(self, rows):
        return rows | {"image": np.zeros((len(rows["sample_id"]), SIDE, SIDE, 3), np.uint8)}


class SlowDisk:
    """Writes nothing, slowly."""

    reads = ("image",)
    adds = ()

    def __call__(self, rows):
        time.sleep(0.02 * len(rows["sample_id"]))
        return {"sample_id": rows["sample_id"], "reason": rows["reason"]}


def table(count: int) -> pa.Table:
    empty = [""] * count
    return pa.table({"sample_id": [f"s{i:04d}" for i in range(count)], "reason": empty, "traceback": empty})


@pytest.mark.slow
def test_a_slow_writer_holds_the_stream_back_before_the_store_is_full(ray_cluster):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    bound, images = 192 * 2**20, 640  # 480 MiB of pixels go through
    before, peak, over = store_bytes(), 0.0, threading.Event()

    def look():
        nonlocal peak
        while not over.wait(0.1):
            peak = max(peak, store_bytes() - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    steps = [
        Operator(Fast, {}, PoolConfig(batch=8, cpus=0.25), "making"),
        Operator(SlowDisk, {}, PoolConfig(batch=8, cpus=0.25), "writing"),
    ]
    found = [s for b in run_stream(table(images), steps, 8, store_bytes=STORE_SHARE * bound) for s in b["sample_id"]]
    over.set()
    watcher.join()
    assert len(set(found)) == len(found) == images
    assert 0 < peak <= bound, f"{peak / 2**20:.0f} MiB of {bound / 2**20:.0f}"
    print(f"peak {peak / 2**20:.0f} MiB")
