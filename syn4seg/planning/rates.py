"""Seconds per unit of work: measured ones from a file, else stated ones from FLOPs and a named device. Every rate says which.

A rates file is JSON: {"version": 1, "device", "memory", "date", "about", "rates": [{"stage", "kind", "what", "seconds",
"flops", "memory", "file_bytes"}, ...]}. `what` is what a figure depends on (model, size, steps, batch...): a rate that fits
exactly is used as it is; one of the same stage and kind of device that differs is scaled by FLOPs, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from syn4seg.errors import UserError

VERSION = 1
GIB = 2**30
Kind = Literal["gpu", "cpu"]


class Card(NamedTuple):
    """A GPU: dense bfloat16 FLOP/s and bytes of memory, as its maker states them."""

    flops: float
    memory: int


GPUS = {
    "H200": Card(989e12, 141 * 10**9),
    "H100": Card(989e12, 80 * GIB),
    "A100": Card(312e12, 80 * GIB),
    "L40S": Card(362e12, 48 * GIB),
    "L4": Card(121e12, 24 * GIB),
    "4090": Card(165e12, 24 * GIB),
}
TF32 = 0.5
"""Speed of float32 networks on a GPU beside bfloat16; torch lets convolutions round to TF32."""
GPU_BYTES, CPU_BYTES = 2e12, 1e10
"""Stated bytes per second that a GPU, or a process on a CPU, moves in its memory."""
CORE_FLOPS = 50e9
"""Stated float32 FLOP/s of one CPU core."""
UTILISATION = 0.4
"""Stated share of a device's FLOP/s that a network reaches."""


@dataclass(frozen=True)
class StageWork:
    """What one stage of a run has to do.

    Attributes:
        stage: its name, a line of the plan.
        unit: what is counted, in the singular.
        count: how many of them.
        flops: of one unit; 0 where the work is no matrix arithmetic.
        kind: of the device.
        actors: that share the work.
        cores: CPU cores of each.
        extra: stated seconds of one unit on a CPU core that no FLOPs account for.
        readers: processes that spend `extra` ahead of the work; 0: it is spent between two units.
        what: everything that the time of a unit depends on; JSON values.
        tensor_share: stated share of a GPU's bfloat16 FLOP/s that counts: 1, or `TF32` for networks in float32.
        moved: bytes that one unit reads and writes outside of matrix products.
    """

    stage: str
    unit: str
    count: int
    flops: float
    kind: Kind
    what: dict[str, Any]
    actors: int = 1
    cores: float = 1.0
    extra: float = 0.0
    readers: int = 0
    tensor_share: float = 1.0
    moved: float = 0.0


@dataclass(frozen=True)
class Rate:
    """One measured figure.

    Attributes:
        stage: as in `Work`, like `kind` and `what`.
        seconds: of one unit.
        flops: of one unit.
        memory: largest number of bytes on the device meanwhile, weights included; 0 if it was not measured.
        file_bytes: mean size on disk of what one unit leaves there; 0 if it was not measured.
    """

    stage: str
    kind: Kind
    what: dict[str, Any]
    seconds: float
    flops: float = 0.0
    memory: int = 0
    file_bytes: float = 0.0


@dataclass(frozen=True)
class Rates:
    """What the plan reckons with.

    Attributes:
        device: where `measured` was measured, or the name of the stated GPU.
        card: its bfloat16 FLOP/s (for what was not measured) and memory.
        measured: figures; without any, everything is stated.
        utilisation: share of the stated FLOP/s that counts.
        date: of the measurement.
        about: how it was measured, for a person.
    """

    device: str
    card: Card
    measured: tuple[Rate, ...] = ()
    utilisation: float = UTILISATION
    date: str = ""
    about: str = ""

    def of(self, work: StageWork) -> tuple[float, str, Rate | None]:
        """Return the seconds of one unit, where that comes from, and the rate that fits exactly, if one does."""
        same = [rate for rate in self.measured if (rate.stage, rate.kind) == (work.stage, work.kind)]
        for rate in same:
            if rate.what == work.what:
                return rate.seconds, f"measured on {self.device}", rate
        scalable = [rate for rate in same if rate.flops > 0 and work.flops > 0]
        if scalable:
            near = max(scalable, key=lambda rate: sum(rate.what.get(key) == value for key, value in work.what.items()))
            odd = ", ".join(f"{k}={near.what.get(k)}" for k, v in work.what.items() if near.what.get(k) != v)
            return (near.seconds * work.flops / near.flops, f"measured on {self.device} with {odd}, scaled by FLOPs", None)
        if work.kind == "gpu":
            peak, width = self.card.flops * work.tensor_share, GPU_BYTES
            where = f"{self.device}, {peak / 1e12:.0f} TFLOP/s x {self.utilisation:g}"
        else:
            peak, width = CORE_FLOPS * work.cores, CPU_BYTES
            where = f"{work.cores:g} x {CORE_FLOPS / 1e9:.0f} GFLOP/s x {self.utilisation:g}"
        seconds = work.flops / (peak * self.utilisation) + work.moved / width
        seconds = max(seconds, work.extra / work.readers) if work.readers else seconds + work.extra
        return seconds, f"stated: {where}", None


def stated_rates(gpu: str = "H100", utilisation: float = UTILISATION) -> Rates:
    """Return rates that are stated, not measured.

    Args:
        gpu: a name of `GPUS`, in any case.
        utilisation: share of its FLOP/s.

    Raises:
        UserError: the name is unknown, or the share is not in (0, 1].
    """
    name = gpu.upper().removeprefix("RTX").strip()
    if name not in GPUS:
        raise UserError(f"GPU {gpu!r} is not known; expected one of {', '.join(GPUS)}, or a rates file of a measurement")
    if not 0 < utilisation <= 1:
        raise UserError(f"utilisation {utilisation:g}: expected a share above 0, at most 1")
    return Rates(name, GPUS[name], utilisation=utilisation)


def write_rates(path: Path, rates: Rates) -> None:
    """Write measured rates, complete or not at all."""
    from syn4seg.store.files import write_json
    from syn4seg.store.partials import remove_abandoned

    remove_abandoned(path.parent, path.name)
    write_json(
        path,
        {
            "version": VERSION,
            "device": rates.device,
            "memory": rates.card.memory,
            "flops": rates.card.flops,
            "utilisation": rates.utilisation,
            "date": rates.date,
            "about": rates.about,
            "rates": [asdict(rate) for rate in rates.measured],
        },
    )


def read_rates(path: Path) -> Rates:
    """Return the rates of a file that `write_rates` (the GPU benchmark, or a measurement of the plan) wrote.

    Raises:
        UserError: it is missing, no JSON, of another version, or a figure is no positive number.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"rates {path} cannot be read ({error}); expected a file of benchmarks/gpu.py or of `syn4seg plan --measure`"
        ) from None
    if not isinstance(tree, dict) or tree.get("version") != VERSION:
        version = tree.get("version") if isinstance(tree, dict) else type(tree).__name__
        raise UserError(f"rates {path}: version {version!r}; expected {VERSION}: measure again with this release")
    try:
        measured = tuple(_rate(entry) for entry in tree["rates"])
        card = Card(float(tree["flops"]), int(tree["memory"]))
        return Rates(str(tree["device"]), card, measured, float(tree["utilisation"]), str(tree["date"]), str(tree["about"]))
    except (KeyError, TypeError, ValueError, UserError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"rates {path}: {reason}; measure again, or mend the file") from None


def _rate(entry: dict[str, Any]) -> Rate:
    rate = Rate(**entry)
    if rate.kind not in ("gpu", "cpu") or not isinstance(rate.what, dict):
        raise UserError(f"stage {rate.stage!r}: kind {rate.kind!r}, what {rate.what!r}; expected gpu or cpu, and a table")
    numbers = rate.seconds, rate.flops, rate.memory, rate.file_bytes
    if not all(isinstance(n, (int, float)) and 0 <= n < float("inf") for n in numbers) or not rate.seconds:
        raise UserError(f"stage {rate.stage!r}: seconds {rate.seconds!r} per unit; expected positive numbers")
    return rate


def merge_rates(rates: Rates, more: Iterable[Rate]) -> Rates:
    """Return `rates` with further figures; a newer figure for the same thing takes the place of the older one."""
    merged = {(r.stage, r.kind, json.dumps(r.what, sort_keys=True)): r for r in (*rates.measured, *more)}
    return Rates(rates.device, rates.card, tuple(merged.values()), rates.utilisation, rates.date, rates.about)
