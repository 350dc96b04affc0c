"""Kills what can be killed while a run goes on, at seeded moments, and checks that nothing is lost, doubled or changed.

    python tests/chaos.py --kills 50 --seed 1 --images 24      (the nightly run; the suite does 6)
    python tests/chaos.py --matrix --full                      (every size, layout and cluster; the suite does two of them)

A kill is SIGKILL: of an actor, of a node with everything on it, of a node's raylet alone (what it ran has to end by itself), of the
driver, of the head's GCS alone, of the whole cluster with the driver. Moments are counted in images made, not in seconds, so that
they fall into the work on any machine. Actors, nodes and raylets must not cost the driver. Without its GCS the driver has to end by
itself, with 0 only if everything was made already; after a lost driver, GCS or cluster the same command is given again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import psutil

KINDS = ("actor", "node", "raylet", "driver", "gcs", "cluster")
RECONNECT = 10
"""Seconds for which Ray's processes look for a lost GCS; Ray's own default is 60."""
KEYS = (
    "prompts.bank_size=3",
    "synthesis.batch=3",
    "data.val_images=6",
    "data.train_images=120",
    "novel.steps=4",
    "novel.replay_images=8",
    "data.min_support_area=0.03",
    "placement.synthesis.size=2",
    "placement.synthesis.batch=3",
    "placement.labeling.batch=3",
    "placement.refinement.batch=3",
    "placement.synthesis.cpus=0.25",
)
"""Small generator batches, so that a kill always meets some in progress."""


class Slow:
    """The renderer, slowly; it writes down when it has generated an image, and with which seed."""

    def __init__(self, notes: str, seconds: float, *args: Any, **kwargs: Any):
        from syn4seg.models.generators import load_generator

        self.notes, self.seconds, self.inner = notes, seconds, load_generator(*args, **kwargs)

    def generate(self, prompts, encoded, noise_seeds):
        time.sleep(self.seconds * len(prompts))
        batch = self.inner.generate(prompts, encoded, noise_seeds)
        with open(self.notes, "a") as f:
            f.write("".join(f"{time.time()} {seed}\n" for seed in noise_seeds))
        return batch


def drive(notes: str, seconds: float, words: list[str]) -> None:
    """`syn4seg WORDS` with the slow generator, in this process."""
    from actors import graph
    from syn4seg import cli

    graph.load_generator = functools.partial(Slow, notes, seconds)  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv = ["syn4seg", *words]
    cli.main()


class Site:
    """A Ray cluster on this machine: a head that runs no stage, and worker nodes."""

    def __init__(self, nodes: int = 2, cpus: int = 3):
        self.count, self.cpus, self.cluster = nodes, cpus, None
        self.orphans: list[psutil.Process] = []
        self.start()

    def start(self) -> None:
        """A new cluster; the one before must be dead."""
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": 1,
            "include_dashboard": False,
            "gcs_server_port": free_port(),
            "object_store_memory": 2**28,
            "node_ip_address": "127.0.0.1",
        }
        self.cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        for _ in range(self.count):
            self.add()

    def add(self) -> None:
        """One more worker node."""
        assert self.cluster is not None
        self.cluster.add_node(num_cpus=self.cpus, object_store_memory=2**28, node_ip_address="127.0.0.1")

    @property
    def address(self) -> str:
        """HOST:PORT of the cluster."""
        assert self.cluster is not None
        return str(self.cluster.address)

    def processes(self, node: Any) -> list[psutil.Process]:
        """Everything that runs on a node, its raylet first."""
        processes = []
        for group in node.all_processes.values():
            for info in group:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(info.process.pid)
                    processes += [process, *process.children(recursive=True)]
        return processes

    def kill_actor(self, rng: random.Random, name: str = "") -> bool:
        """Kill one process that works (with `name` in its title); False if there is none at the moment."""
        assert self.cluster is not None
        workers = []
        for node in sorted(self.cluster.worker_nodes, key=lambda n: n.node_id):
            for process in self.processes(node):
                with contextlib.suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    if re.match(r"ray::(?!IDLE|\w+Agent)", title) and name in title:
                        workers.append(process)
        if workers:
            with contextlib.suppress(psutil.Error):
                rng.choice(workers).kill()
        return bool(workers)

    def kill_node(self, rng: random.Random) -> None:
        """Kill one worker node, then put another in its place."""
        assert self.cluster is not None
        node = rng.choice(sorted(self.cluster.worker_nodes, key=lambda n: n.node_id))
        leftover = self.processes(node)
        self.cluster.remove_node(node, allow_graceful=False)
        kill(leftover)
        self.add()

    def kill_raylet(self, rng: random.Random) -> None:
        """Kill the raylet of one worker node and nothing else there, then add another node."""
        assert self.cluster is not None
        node = rng.choice(sorted(self.cluster.worker_nodes, key=lambda n: n.node_id))
        raylet, *others = self.processes(node)
        kill([raylet])
        self.orphans += others
        self.cluster.worker_nodes.remove(node)
        self.add()

    def kill_gcs(self) -> None:
        """Kill the GCS and nothing else; the cluster is lost."""
        assert self.cluster is not None and self.cluster.head_node is not None
        (gcs,) = self.cluster.head_node.all_processes["gcs_server"]
        kill([psutil.Process(gcs.process.pid)])

    def kill_all(self) -> None:
        """Kill every process of the cluster, and what lost raylets have left."""
        assert self.cluster is not None
        nodes = [*self.cluster.worker_nodes, *([self.cluster.head_node] if self.cluster.head_node else [])]
        kill([*self.orphans, *(process for node in nodes for process in self.processes(node))])
        self.orphans = []
        for node in nodes:
            with contextlib.suppress(Exception):
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        self.cluster = None


def kill(processes: list[psutil.Process]) -> None:
    """Send SIGKILL to processes, and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Run:
    """A run that is disturbed, and what it is to come to."""

    def __init__(self, root: Path, site: Site, seconds: float, verb: str, keys: list[str]):
        self.out, self.notes = root / "run", root / "generated"
        self.site, self.seconds, self.verb, self.keys = site, seconds, verb, keys
        self.notes.touch()
        self.driver: subprocess.Popen | None = None
        self.log = root / "driver.log"

    def start(self) -> None:
        """Start the driver (again)."""
        words = [self.verb, *self.keys, f"placement.address={self.site.address}", "--out", str(self.out)]
        with self.log.open("a") as f:
            self.driver = subprocess.Popen(
                [sys.executable, __file__, "--drive", str(self.notes), str(self.seconds), *words],
                stdout=f,
                stderr=f,
                cwd=Path(__file__).parent.parent,
            )

    def generated(self) -> int:
        """Images generated so far, repeated ones included."""
        return self.notes.read_text().count("\n")

    def ended(self) -> int:
        """Images made, and records or files of records that are there: grows until the last label is written."""
        records = ("draws/*/records/*/*.json", "draws/*/labels/*.parquet")
        return self.generated() + sum(1 for pattern in records for _ in self.out.glob(pattern))

    def wait_for(self, ended: int, limit: float = 300.0) -> bool:
        """Wait until so much has `ended`; return False if the driver ended before."""
        assert self.driver is not None
        until = time.monotonic() + limit
        while self.ended() < ended:
            if self.driver.poll() is not None:
                return False
            assert time.monotonic() < until, f"no progress in {limit} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)
        return True

    def kill_driver(self) -> None:
        """Send SIGKILL to the driver."""
        assert self.driver is not None
        self.driver.send_signal(signal.SIGKILL)
        self.driver.wait()

    def finish(self, limit: float = 600.0) -> int:
        """Wait for the driver; return its exit code."""
        assert self.driver is not None
        return self.driver.wait(timeout=limit)


def disturb(run: Run, kinds: list[str], rng: random.Random, gap: int) -> Counter:
    """Start a run, kill what `kinds` name one after the other, and let it finish; kills that were done are taken off `kinds`."""
    done: Counter = Counter()
    run.start()
    log = functools.partial(print, file=run.log.open("a"), flush=True)
    while kinds and run.wait_for(run.ended() + rng.randint(1, gap)):
        kind = kinds[0]
        time.sleep(rng.random() * run.seconds * 3)
        if kind == "actor":
            if not run.site.kill_actor(rng):
                continue
        elif kind == "node":
            run.site.kill_node(rng)
        elif kind == "raylet":
            run.site.kill_raylet(rng)
        elif kind == "driver":
            run.kill_driver()
            run.start()
        else:
            if kind == "gcs":
                run.site.kill_gcs()
                made_all = run.finish(limit=RECONNECT + 120) == 0
            else:
                run.kill_driver()
                made_all = False
            run.site.kill_all()
            run.site.start()
            if made_all:  # too late for this run, which `check` looks at
                break
            run.start()
        log(f"--- killed: {kind}, after {run.generated()} images")
        done[kinds.pop(0)] += 1
    code = run.finish()
    assert code == 0, f"the driver ended with {code}:\n{run.log.read_text()[-4000:]}"
    return done


def check(run: Run, reference: str, kills: int, in_flight: int) -> dict[str, int]:
    """The run is whole: the digest of an undisturbed one, every planned sample once, and little work done twice."""
    import pyarrow.parquet as pq

    from syn4seg.stages.plan import read_planned_samples
    from syn4seg.stages.results import verify_run
    from syn4seg.store.rundir import RunDir

    store = RunDir(run.out)
    problems = verify_run(store)[1]
    assert problems == [], problems
    digest = every_label(store)
    assert digest == reference, f"digest {digest} instead of {reference}"
    listed = Counter(pq.read_table(store.draw(0).manifest, columns=["sample_id"])["sample_id"].to_pylist())
    planned = read_planned_samples(store)["sample_id"].to_pylist()
    assert listed == Counter(planned), "a sample is missing, or twice in the manifest"
    assert not store.quarantine(), "an innocent row was quarantined"
    repeated = run.generated() - store.read_plan().num_rows  # the padding of the last batch is made too
    assert 0 <= repeated <= kills * in_flight, (
        f"{repeated} images were made again after {kills} kills, {in_flight} can be in flight"
    )
    return {"images": len(planned), "made_again": repeated}


def undisturbed(root: Path, keys: list[str]) -> str:
    """Digest (`every_label`) of the same run in one process, without Ray."""
    from syn4seg.store.rundir import RunDir

    done = subprocess.run(
        [sys.executable, "-m", "syn4seg.cli", "refine", *keys, "placement.runner=inline", "--out", str(root)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return every_label(RunDir(root))


def every_label(run: Any) -> str:
    """Digest of the manifest's digests of images and of all four labels; `verify` compares these with the pixels."""
    import pyarrow.parquet as pq

    from syn4seg.schema import LABEL_COLUMNS
    from syn4seg.store.rundir import run_digest

    table = pq.read_table(run.draw(0).manifest).sort_by("sample_id")
    columns = [table[name].to_pylist() for name in ("sample_id", "reason", "image", *LABEL_COLUMNS)]
    return run_digest((row[0], str(row[1:4]), str(row[4:])) for row in zip(*columns, strict=True))


def schedule(kills: int, rng: random.Random) -> list[str]:
    """That many kinds, each about as often, in random order."""
    kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
    rng.shuffle(kinds)
    return kinds


class Case(NamedTuple):
    """How a run is spread. None of it may change a byte."""

    nodes: int
    workers: int
    batch: int
    layout: str
    resumed: bool

    def keys(self) -> list[str]:
        """Its overrides."""
        pools = ("synthesis", "labeling", "refinement")
        return [
            f"layout={self.layout}",
            *(
                f"placement.{pool}.{key}={value}"
                for pool in pools
                for key, value in (("size", self.workers), ("batch", self.batch), ("cpus", 0.25))
            ),
        ]


REDUCED = (Case(2, 2, 3, "sharded", True),)
FULL = tuple(Case(*case) for case in itertools.product((1, 4), (1, 2, 5), (1, 3, 16), ("files", "sharded"), (False, True)))


def matrix(root: Path, cases: tuple[Case, ...], images: int, seconds: float) -> None:
    """The digest of every case, against that of one process without Ray."""
    keys = [*(key for key in KEYS if not key.startswith("placement.")), f"synthesis.images_per_class={images}"]
    reference = undisturbed(root / "reference", keys)
    for nodes, group in itertools.groupby(sorted(cases), lambda case: case.nodes):
        site = Site(nodes, cpus=8 // nodes + 1)
        try:
            for case in group:
                folder = root / "-".join(map(str, case))
                folder.mkdir()
                run = Run(folder, site, seconds, "refine", [*keys, *case.keys()])
                run.start()
                if case.resumed and run.wait_for(images):
                    run.kill_driver()
                    run.start()
                code = run.finish()
                assert code == 0, f"{case} ended with {code}:\n{run.log.read_text()[-4000:]}"
                check(run, reference, kills=int(case.resumed), in_flight=case.workers * max(3, case.batch + 3))
                print(f"{case}: {reference}", flush=True)
        finally:
            site.kill_all()


def main() -> None:
    """The matrix, or as many disturbed runs as the kills need, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=24, help="images per class and bank (8 times as many in a run)")
    parser.add_argument("--seconds", type=float, default=0.3, help="per image")
    parser.add_argument("--matrix", action="store_true", help="no kills: digests of differently spread runs")
    parser.add_argument("--full", action="store_true", help="every combination of the matrix")
    args = parser.parse_args()
    if args.matrix:
        with tempfile.TemporaryDirectory() as folder:
            matrix(Path(folder), FULL if args.full else REDUCED, args.images, args.seconds)
        return
    rng, total, repeated, images = random.Random(args.seed), Counter(), 0, 0
    kinds = schedule(args.kills, rng)
    keys = [*KEYS, f"synthesis.images_per_class={args.images}"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        reference, site, number = undisturbed(root / "reference", keys), Site(), 0
        try:
            while kinds:
                number += 1
                (root / str(number)).mkdir()
                layout = ("sharded", "files")[number % 2]
                run = Run(root / str(number), site, args.seconds, "refine", [*keys, f"layout={layout}"])
                done = disturb(run, kinds, rng, gap=max(2, args.images // 2))
                counts = check(run, reference, sum(done.values()), in_flight=2 * 3)
                total, repeated, images = total + done, repeated + counts["made_again"], images + counts["images"]
                print(
                    f"run {number} ({layout}): {dict(done)}, {counts['made_again']} of {counts['images']} images made again",
                    flush=True,
                )
                shutil.rmtree(root / str(number))
        finally:
            site.kill_all()
    print(
        f"{sum(total.values())} kills {dict(total)} in {number} runs: digest {reference} every time, every sample once, "
        f"{repeated} of {images} images made again"
    )


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)  # this tree, whichever is installed
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # before Ray is imported: every port on loopback only
    os.environ |= {"RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT)}
    if sys.argv[1:2] == ["--drive"]:
        drive(sys.argv[2], float(sys.argv[3]), sys.argv[4:])
    else:
        main()
