"""From a kill to full rate: seconds, and work done twice.

    python benchmarks/recovery.py [--images 40] [--seconds 0.4] [--repeat 2]

A cluster of two worker nodes on this machine, two generator actors whose generator sleeps `--seconds` per image (batches of 3), all
other stages real. One run per kind of kill: SIGKILL to a generator's actor, to a node with everything on it, to the driver, to the
whole cluster with the driver; then the same command again where that is needed. The rate before is that of the 12 images before
the kill; full rate is back with the first image from which on 9 images come at 80 % of it or faster. Starting processes is most of
it, so the figures are those of a machine with two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from record import machine, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from syn4seg.store.rundir import RunDir
from tests import chaos

KINDS = ("actor", "node", "driver", "cluster")
BEFORE, AFTER = 12, 9


def times(run: chaos.Run) -> list[tuple[float, str]]:
    """(moment, seed) of every image made, in order."""
    lines = (line.split() for line in run.notes.read_text().splitlines())
    return sorted((float(at), seed) for at, seed in lines)


def kill(run: chaos.Run, kind: str) -> float:
    """Kills, restarts what has to be, and returns the moment of the kill."""
    import random

    at, rng = time.time(), random.Random(0)
    if kind == "actor":
        run.site.kill_actor(rng, "Synthesis")
    elif kind == "node":
        run.site.kill_node(rng)
    else:
        run.kill_driver()
        if kind == "cluster":
            run.site.kill_all()
            run.site.start()
        run.start()
    return at


def measure(root: Path, site: chaos.Site, kind: str, keys: list[str], seconds: float, images: int) -> dict[str, Any]:
    """One run with one kill in the middle."""
    root.mkdir()
    run = chaos.Run(root, site, seconds, "synthesize", keys)
    run.start()
    assert run.wait_for(4 * images), run.log.read_text()
    at = kill(run, kind)
    code = run.finish()
    assert code == 0, run.log.read_text()
    made = times(run)
    before = [t for t, _ in made if t < at][-BEFORE:]
    rate = (len(before) - 1) / (before[-1] - before[0])
    after = [t for t, _ in made if t >= at]
    back = next((t for t, later in zip(after, after[AFTER:], strict=False) if AFTER / (later - t) >= 0.8 * rate), None)
    again = len(made) - RunDir(run.out).read_plan().num_rows  # the padding of the last batch is made too
    return {
        "images_per_second_before": round(rate, 2),
        "seconds_to_the_next_image": round(after[0] - at, 1),
        "seconds_to_full_rate": None if back is None else round(back - at, 1),
        "images_made_again": again,
        "images": len({seed for _, seed in made}),
    }


def main() -> None:
    """Every kind of kill, `--repeat` times, interleaved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="per class; a run makes 8 times as many")
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()
    result: dict[str, Any] = machine() | {"seconds_per_image": args.seconds, "generator_actors": 2, "batch": 3, "kills": {}}
    keys = [*chaos.KEYS, f"synthesis.images_per_class={args.images}"]
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        site = chaos.Site()
        try:
            for number in range(args.repeat):
                for kind in KINDS:
                    found[kind].append(measure(Path(folder) / f"{kind}{number}", site, kind, keys, args.seconds, args.images))
                    print(kind, found[kind][-1], flush=True)
        finally:
            site.kill_all()
    for kind, runs in found.items():
        back = [r["seconds_to_full_rate"] for r in runs if r["seconds_to_full_rate"] is not None]
        result["kills"][kind] = {
            "runs": runs,
            "median_seconds_to_full_rate": statistics.median(back) if back else None,
            "images_made_again": sum(r["images_made_again"] for r in runs),
        }
    print(Counter({kind: len(runs) for kind, runs in found.items()}))
    write("recovery", result)


if __name__ == "__main__":
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    main()
