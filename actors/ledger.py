"""What running stages tell the driver: the calls under way, so that one that kills its process is known; and how busy they are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable


def living_nodes() -> set[str]:
    """Ids of the nodes of the connected cluster that are alive."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class Ledger:
    """A small actor beside a stream. Nothing depends on it for longer than the stream: the truth is in the run directory."""

    def __init__(self, living: Callable[[], set[str]] | None = None) -> None:
        """`living`: the ids of the nodes that are alive; by default those of the connected cluster."""
        self.living = living or living_nodes
        self.begun: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.stages: dict[str, Counter] = {}
        self.seen: dict[str, dict[str, float]] = {}
        self.warm: set[tuple[str, str]] = set()

    def begin(self, stage: str, key: str, notes: str, actor: str, node: str) -> list[str]:
        """A call begins.

        Args:
            key: names its rows; the same after a restart.
            notes: the file where this process leaves its traceback if it dies.
            actor: its id, the same after a restart.
            node: id of the node where it runs.

        Returns:
            The notes of every earlier attempt at the same call that never ended, oldest first; without those whose node was
            lost, since no row is to blame for that.
        """
        earlier = self.begun.get((stage, key), [])
        if earlier:
            living = self.living()
            earlier = [attempt for attempt in earlier if attempt[1] in living]
        self.begun[stage, key] = [*earlier, (notes, node)]
        self.seen.setdefault(stage, {})[actor] = time.monotonic()
        return [attempt[0] for attempt in earlier]

    def end(self, stage: str, key: str, actor: str, counts: dict[str, float]) -> None:
        """A call has ended; `counts` are rows, seconds, rejected, quarantined, deaths, and gpu_bytes (a maximum, not a sum).

        An actor's first call is not like the others (kernels load, models compile): `warm_` rows and seconds leave it out.
        """
        self.begun.pop((stage, key), None)
        total = self.stages.setdefault(stage, Counter())
        largest = max(total["gpu_bytes"], counts.pop("gpu_bytes", 0))
        total.update(counts)
        if "rows" in counts:
            if (stage, actor) in self.warm:
                total.update({f"warm_{name}": counts[name] for name in ("rows", "seconds")})
            self.warm.add((stage, actor))
        total["gpu_bytes"] = largest  # type: ignore[assignment]
        self.seen.setdefault(stage, {})[actor] = time.monotonic()

    def totals(self) -> dict[str, dict[str, float]]:
        """By stage: rows, busy seconds (both also `warm_`), rejected and quarantined rows, calls that died, largest GPU memory of
        an actor (bytes), and actors that were heard of in the last ten minutes."""
        now = time.monotonic()
        for stage, seen in self.seen.items():
            self.seen[stage] = {actor: at for actor, at in seen.items() if now - at < 600}
        return {s: {**self.stages.get(s, Counter()), "actors": len(seen)} for s, seen in self.seen.items()}
