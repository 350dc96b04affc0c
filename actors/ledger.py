"""What the actors of a stream tell the driver: the calls in progress, so that one that kills its process is known, how busy each
operator is, and the failure that ends the stream."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from actors.failures import Failure


def living_nodes() -> set[str]:
    """Return the ids of the connected cluster's living nodes."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class Ledger:
    """A small actor beside a stream. Nothing depends on it for longer than the stream: the truth is in the run directory."""

    def __init__(self, living: Callable[[], set[str]] = living_nodes) -> None:
        """Start with no calls; `living` returns the ids of the living nodes."""
        self.living = living
        self.begun: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.counts: dict[str, Counter] = {}
        self.seen: dict[str, dict[str, float]] = {}
        self.warm: set[tuple[str, str]] = set()
        self.failure: Failure | None = None

    def begin(self, operator: str, key: str, notes: str, actor: str, node: str) -> list[str]:
        """Note that a call begins.

        Args:
            key: names its rows; the same after a restart.
            notes: the file where this process leaves its traceback if it dies.
            actor: its id, the same after a restart.
            node: id of the node where it runs.

        Returns:
            The notes of every earlier attempt at the same call that never ended, oldest first; without those whose node was
            lost, since no row is to blame for that.
        """
        earlier = self.begun.get((operator, key), [])
        if earlier:
            living = self.living()
            earlier = [attempt for attempt in earlier if attempt[1] in living]
        self.begun[operator, key] = [*earlier, (notes, node)]
        self.seen.setdefault(operator, {})[actor] = time.monotonic()
        return [attempt[0] for attempt in earlier]

    def end(self, operator: str, key: str, actor: str, counts: dict[str, float]) -> None:
        """Note that a call has ended; `counts` are rows, seconds, rejected, quarantined, deaths, and gpu_bytes (a maximum, no sum).

        An actor's first call is not like the others (kernels load, models compile): `warm_` rows and seconds leave it out.
        """
        self.begun.pop((operator, key), None)
        total = self.counts.setdefault(operator, Counter())
        largest = max(total["gpu_bytes"], counts.pop("gpu_bytes", 0))
        total.update(counts)
        if "rows" in counts:
            if (operator, actor) in self.warm:
                total.update({f"warm_{name}": counts[name] for name in ("rows", "seconds")})
            self.warm.add((operator, actor))
        total["gpu_bytes"] = largest  # type: ignore[assignment]
        self.seen.setdefault(operator, {})[actor] = time.monotonic()

    def fail(self, failure: Failure) -> None:
        """Note an exception that leaves an actor and so ends the stream."""
        self.failure = failure

    def last_failure(self) -> Failure | None:
        """Return the latest such exception."""
        return self.failure

    def totals(self) -> dict[str, dict[str, float]]:
        """Return the counts of every operator: rows, busy seconds (both also `warm_`), rejected and quarantined rows, calls
        that died, largest GPU
        memory of an actor (bytes), and actors that were heard of in the last ten minutes."""
        now = time.monotonic()
        for operator, seen in self.seen.items():
            self.seen[operator] = {actor: moment for actor, moment in seen.items() if now - moment < 600}
        return {name: {**self.counts.get(name, Counter()), "actors": len(seen)} for name, seen in self.seen.items()}
