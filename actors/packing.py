"""What fits on the nodes of a cluster, by Ray's rules: an actor lives on one node, a fraction of a GPU on one GPU. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from syn4seg.config.sections import PoolConfig, TrainingConfig

Node = Mapping[str, float]
"""Resources of one node as Ray names them: `{"CPU": 8, "GPU": 2, "accelerator_type:A100": 1, "synth": 1}`."""

UNIT = 10_000
"""Ray counts resources in ten thousandths: 0.3333 GPUs fit three times on a GPU, 0.3334 twice."""

ACCELERATOR = "accelerator_type:"


@dataclass(frozen=True)
class ResourceRequest:
    """`count` actors that each need `needs` (in ten thousandths) of one node."""

    name: str
    count: int
    needs: Mapping[str, int]


def resource_request(name: str, pool: PoolConfig | TrainingConfig, count: int) -> ResourceRequest:
    """What `count` actors of a pool ask for; Ray asks for 0.001 of an accelerator's node resource."""
    each = {"CPU": pool.cpus, "GPU": pool.gpus, **pool.resources}
    if pool.accelerator:
        each[ACCELERATOR + pool.accelerator] = 0.001
    return ResourceRequest(name, count, {key: round(amount * UNIT) for key, amount in each.items() if round(amount * UNIT)})


class _Room:
    """What is still free on one node: each GPU by itself, everything else as a sum."""

    def __init__(self, gpus: Iterable[int], rest: dict[str, int]):
        self.gpus, self.rest = sorted(gpus), rest

    def holds(self, needs: Mapping[str, int], limit: int) -> int:
        """How many more actors fit here, at most `limit`."""
        for key, amount in needs.items():
            if key == "GPU":
                share = (
                    sum(free // amount for free in self.gpus)
                    if amount < UNIT
                    else (sum(free == UNIT for free in self.gpus) * UNIT // amount)
                )
                limit = min(limit, share)
            else:
                limit = min(limit, self.rest.get(key, 0) // amount)
        return limit

    def take(self, needs: Mapping[str, int], count: int) -> None:
        """Places `count` actors that fit: fractions on the fullest GPU first."""
        for key, amount in needs.items():
            if key != "GPU":
                self.rest[key] -= amount * count
            elif amount >= UNIT:
                self.gpus = self.gpus[: len(self.gpus) - count * amount // UNIT] + [0] * (count * amount // UNIT)
            else:
                left = count
                for i, free in enumerate(self.gpus):
                    here = min(left, free // amount)
                    self.gpus[i] -= here * amount
                    left -= here
        self.gpus.sort()

    def ways(self, needs: Mapping[str, int]) -> list[_Room]:
        """This node after one more actor, in every way that makes a difference: a fraction may go to any GPU with room."""
        if not self.holds(needs, 1):
            return []
        rest = {key: free - needs.get(key, 0) for key, free in self.rest.items()}
        share = needs.get("GPU", 0)
        if not 0 < share < UNIT:
            return [_Room(self.gpus[: len(self.gpus) - share // UNIT] + [0] * (share // UNIT), rest)]
        return [
            _Room([*self.gpus[:i], free - share, *self.gpus[i + 1 :]], rest)
            for i, free in enumerate(self.gpus)
            if free >= share and free not in self.gpus[:i]
        ]

    def state(self) -> tuple:
        return tuple(self.gpus), tuple(sorted(self.rest.items()))


def _rooms(nodes: Sequence[Node], keys: set[str]) -> list[_Room]:
    return [_Room([UNIT] * int(n.get("GPU", 0)), {k: round(n.get(k, 0) * UNIT) for k in keys - {"GPU"}}) for n in nodes]


def count_fitting(one: ResourceRequest, nodes: Sequence[Node]) -> int:
    """How many actors of one kind the nodes hold when nothing else is there, at most the number asked for."""
    return min(one.count, sum(room.holds(one.needs, one.count) for room in _rooms(nodes, set(one.needs))))


def fits(asks: Sequence[ResourceRequest], nodes: Sequence[Node], spare_cpus: float = 0.0) -> bool:
    """Whether all actors can be placed at the same time, and `spare_cpus` logical CPUs are left in all.

    First-fit by decreasing size answers nearly always; where it fails, small clusters are searched completely, so that nothing
    is refused that could be placed. On large ones the search gives up, and first-fit's answer stands.
    """
    asks = [one for one in asks if one.count and one.needs]
    for key in {key for one in asks for key in one.needs} | {"CPU"}:
        wanted = sum(one.count * one.needs.get(key, 0) for one in asks) + (spare_cpus * UNIT if key == "CPU" else 0)
        if wanted > sum(round(n.get(key, 0.0) * UNIT) for n in nodes):
            return False
    keys = {key for one in asks for key in one.needs}
    start = _rooms(nodes, keys)
    if any(sum(room.holds(one.needs, one.count) for room in start) < one.count for one in asks):
        return False
    choice = {one.name: sum(room.holds(one.needs, 1) for room in start) for one in asks}

    def size(one: ResourceRequest) -> tuple:
        return choice[one.name], -one.needs.get("GPU", 0), -one.needs.get("CPU", 0)

    for order in (sorted(asks, key=size), sorted(asks, key=lambda one: size(one)[1:]), asks):
        rooms = _rooms(nodes, keys)
        if all(_first_fit(one, rooms) for one in order):
            return True
    return _search(sorted(asks, key=size), start)


def _first_fit(one: ResourceRequest, rooms: list[_Room]) -> bool:
    left = one.count
    for room in rooms:
        here = room.holds(one.needs, left)
        if here:
            room.take(one.needs, here)
            left -= here
        if not left:
            return True
    return False


def _search(asks: list[ResourceRequest], rooms: list[_Room], work: int = 300_000) -> bool:
    """Whether any placement exists: each distinct way to place each actor is tried, and no state twice, within `work` steps."""
    left = [one.count for one in asks]
    if sum(left) > 200:
        return False
    seen: set[tuple] = set()
    budget = work // len(rooms)

    def place() -> bool:
        nonlocal budget
        at = next((i for i, count in enumerate(left) if count), None)
        if at is None:
            return True
        state = (at, left[at], tuple(sorted(room.state() for room in rooms)))
        if state in seen or budget <= 0:
            return False
        seen.add(state)
        budget -= 1
        if any(sum(room.holds(one.needs, count) for room in rooms) < count for one, count in zip(asks, left, strict=True)):
            return False
        tried = set()
        left[at] -= 1
        for i, room in enumerate(rooms):
            if room.state() in tried:
                continue
            tried.add(room.state())
            for after in room.ways(asks[at].needs):
                rooms[i] = after
                if place():
                    return True
            rooms[i] = room
        left[at] += 1
        return False

    return place()
