"""What running stages tell the driver: the calls under way, so that one that kills its process is known; and how busy they are."""

from __future__ import annotations

import time
from collections import Counter


class Ledger:
    """A small actor beside a stream. Nothing depends on it for longer than the stream: the truth is in the run directory."""

    def __init__(self) -> None:
        self.begun: dict[tuple[str, str], list[str]] = {}
        self.stages: dict[str, Counter] = {}
        self.seen: dict[str, dict[str, float]] = {}
        self.warm: set[tuple[str, str]] = set()

    def begin(self, stage: str, key: str, notes: str, actor: str) -> list[str]:
        """A call begins.

        Args:
            key: names its rows; the same after a restart.
            notes: the file where this process leaves its traceback if it dies.
            actor: its id, the same after a restart.

        Returns:
            The notes of every earlier attempt at the same call that never ended, oldest first.
        """
        earlier = self.begun.setdefault((stage, key), [])
        self.seen.setdefault(stage, {})[actor] = time.monotonic()
        earlier.append(notes)
        return earlier[:-1]

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
