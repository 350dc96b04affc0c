"""What fits on the nodes of a cluster, by Ray's rules: an actor lives on one node, a fraction of a GPU on one GPU. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from syn4seg.config.placement import PoolConfig, TrainingConfig

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
    """Return what `count` actors of a pool ask for; Ray asks for 0.001 of an accelerator's node resource."""
    needs = {"CPU": pool.cpus, "GPU": pool.gpus, **pool.resources}
    if pool.accelerator:
        needs[ACCELERATOR + pool.accelerator] = 0.001
    return ResourceRequest(name, count, {key: round(amount * UNIT) for key, amount in needs.items() if round(amount * UNIT)})


class _FreeNode:
    """What is still free on one node: each GPU by itself, everything else as a sum."""

    def __init__(self, gpus: Iterable[int], rest: dict[str, int]):
        self.gpus, self.rest = sorted(gpus), rest

    def capacity(self, needs: Mapping[str, int], limit: int) -> int:
        """Return how many more actors fit on this node, at most `limit`."""
        for key, amount in needs.items():
            if key == "GPU":
                if amount < UNIT:
                    share = sum(free // amount for free in self.gpus)
                else:
                    share = sum(free == UNIT for free in self.gpus) * UNIT // amount
                limit = min(limit, share)
            else:
                limit = min(limit, self.rest.get(key, 0) // amount)
        return limit

    def place(self, needs: Mapping[str, int], count: int) -> None:
        """Take away what `count` actors need, which fit: fractions from the fullest GPU first."""
        for key, amount in needs.items():
            if key != "GPU":
                self.rest[key] -= amount * count
            elif amount >= UNIT:
                self.gpus = self.gpus[: len(self.gpus) - count * amount // UNIT] + [0] * (count * amount // UNIT)
            else:
                for i, free in enumerate(self.gpus):
                    number = min(count, free // amount)
                    self.gpus[i] -= number * amount
                    count -= number
        self.gpus.sort()

    def placements(self, needs: Mapping[str, int]) -> list[_FreeNode]:
        """Return this node after one more actor, in every way that makes a difference: a fraction may go to any GPU with room."""
        if not self.capacity(needs, 1):
            return []
        rest = {key: free - needs.get(key, 0) for key, free in self.rest.items()}
        share = needs.get("GPU", 0)
        if not 0 < share < UNIT:
            return [_FreeNode(self.gpus[: len(self.gpus) - share // UNIT] + [0] * (share // UNIT), rest)]
        return [
            _FreeNode([*self.gpus[:i], free - share, *self.gpus[i + 1 :]], rest)
            for i, free in enumerate(self.gpus)
            if free >= share and free not in self.gpus[:i]
        ]

    def state(self) -> tuple:
        return tuple(self.gpus), tuple(sorted(self.rest.items()))


def _free_nodes(nodes: Sequence[Node], keys: set[str]) -> list[_FreeNode]:
    return [_FreeNode([UNIT] * int(n.get("GPU", 0)), {k: round(n.get(k, 0) * UNIT) for k in keys - {"GPU"}}) for n in nodes]


def count_fitting(request: ResourceRequest, nodes: Sequence[Node]) -> int:
    """Return how many actors of one kind the empty nodes hold, at most the number requested."""
    return min(request.count, sum(n.capacity(request.needs, request.count) for n in _free_nodes(nodes, set(request.needs))))


def fits(requests: Sequence[ResourceRequest], nodes: Sequence[Node], spare_cpus: float = 0.0) -> bool:
    """Return whether all actors can be placed at the same time, and `spare_cpus` logical CPUs remain in all.

    First-fit by decreasing size answers nearly always; where it fails, small clusters are searched completely, so that nothing
    is refused that could be placed. On large ones the search gives up, and first-fit's answer stands.
    """
    requests = [request for request in requests if request.count and request.needs]
    keys = {key for request in requests for key in request.needs}
    for key in keys | {"CPU"}:
        need = sum(r.count * r.needs.get(key, 0) for r in requests) + (spare_cpus * UNIT if key == "CPU" else 0)
        if need > sum(round(n.get(key, 0.0) * UNIT) for n in nodes):
            return False
    empty = _free_nodes(nodes, keys)
    if any(sum(node.capacity(r.needs, r.count) for node in empty) < r.count for r in requests):
        return False
    choices = {r.name: sum(node.capacity(r.needs, 1) for node in empty) for r in requests}

    def size(request: ResourceRequest) -> tuple:
        return choices[request.name], -request.needs.get("GPU", 0), -request.needs.get("CPU", 0)

    for order in (sorted(requests, key=size), sorted(requests, key=lambda r: size(r)[1:]), requests):
        free = _free_nodes(nodes, keys)
        if all(_place_first_fit(request, free) for request in order):
            return True
    return _search(sorted(requests, key=size), empty)


def _place_first_fit(request: ResourceRequest, nodes: list[_FreeNode]) -> bool:
    """Place a request's actors on the first nodes with room; return whether all had room."""
    remaining = request.count
    for node in nodes:
        number = node.capacity(request.needs, remaining)
        if number:
            node.place(request.needs, number)
            remaining -= number
        if not remaining:
            return True
    return False


def _search(requests: list[ResourceRequest], nodes: list[_FreeNode], work: int = 300_000) -> bool:
    """Return whether any placement exists: each distinct way for each actor is tried, and no state twice, within `work` steps."""
    remaining = [request.count for request in requests]
    if sum(remaining) > 200:
        return False
    visited: set[tuple] = set()
    budget = work // len(nodes)

    def place_rest() -> bool:
        nonlocal budget
        current = next((i for i, count in enumerate(remaining) if count), None)
        if current is None:
            return True
        state = (current, remaining[current], tuple(sorted(node.state() for node in nodes)))
        if state in visited or budget <= 0:
            return False
        visited.add(state)
        budget -= 1
        if any(sum(n.capacity(r.needs, k) for n in nodes) < k for r, k in zip(requests, remaining, strict=True)):
            return False
        tried = set()
        remaining[current] -= 1
        for i, node in enumerate(nodes):
            if node.state() in tried:
                continue
            tried.add(node.state())
            for after in node.placements(requests[current].needs):
                nodes[i] = after
                if place_rest():
                    return True
            nodes[i] = node
        remaining[current] += 1
        return False

    return place_rest()
