"""Pools grow while rows stream: a node that joins a running cluster gets actors, and nothing is lost or made twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest


class OnAGpu:
    """Waits as a generator does, and says on which node."""

    reads = ("sample_id",)
    adds = ("node",)

    def __call__(self, rows):
        import ray

        time.sleep(0.4)
        node = ray.get_runtime_context().get_node_id()
        return dict(rows) | {"node": np.array([node] * len(rows["sample_id"]), dtype=object)}


def grow(blocks: int) -> dict[str, list[str]]:
    """Streams on a cluster of one GPU, adds a node of two when three blocks are done; which node made which sample."""
    import pyarrow as pa
    import ray
    from ray.cluster_utils import Cluster

    from actors.placement import Operator
    from actors.streaming import run_stream
    from syn4seg.config.placement import PoolConfig

    cluster = Cluster()
    store = {"object_store_memory": 200 * 2**20, "include_dashboard": False}
    cluster.add_node(num_cpus=4, num_gpus=1, **store)
    ray.init(address=cluster.address, log_to_driver=False)
    names = [f"s{i}" for i in range(2 * blocks)]
    rows = pa.table({"sample_id": names, "reason": [""] * len(names), "traceback": [""] * len(names)})
    made: dict[str, list[str]] = {}
    stages = [Operator(OnAGpu, {}, PoolConfig(batch=2, gpus=1, max_size=3), "synthesis")]
    for done, batch in enumerate(run_stream(rows, stages, 2), start=1):
        for sample, node in zip(batch["sample_id"], batch["node"], strict=True):
            made.setdefault(str(sample), []).append(str(node))
        if done == 3:
            cluster.add_node(num_cpus=4, num_gpus=2, **store)
    ray.shutdown()
    cluster.shutdown()
    return made


@pytest.mark.slow
def test_a_node_that_joins_while_rows_stream_gets_actors():
    root = str(Path(__file__).parents[2])
    settings = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_prestart_worker_first_driver": "0", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, __file__], env=settings, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert sorted(made) == sorted(f"s{i}" for i in range(120))
    assert all(len(nodes) == 1 for nodes in made.values())
    assert len({nodes[0] for nodes in made.values()}) == 2


if __name__ == "__main__":
    print(json.dumps(grow(60)))
