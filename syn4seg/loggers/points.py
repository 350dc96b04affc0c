"""The numbers of a run in the form that loggers take: points on curves, from lines of metrics.jsonl, and a flat config."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from syn4seg.config.tree import Config, flatten

NAMED_BY = ("stage", "draw", "class_name", "row")
"""Keys of a line whose values name the curve."""
STEPS = ("epoch", "step", "done")
"""Keys of a line that can be its step; the first one that it has counts."""
NO_CURVE = {*NAMED_BY, *STEPS, "time", "started", "epochs", "steps", "total"}


class CurvePoint(NamedTuple):
    """The numbers of one line of metrics.jsonl, by curve, with their step, time (Unix seconds) and line number (from 0)."""

    step: int
    time: float
    line: int
    values: dict[str, float]


def parse_point(text: str | bytes, line: int) -> CurvePoint | None:
    """Return the numbers of a line of metrics.jsonl, or None if it has none or is damaged.

    Nested values are named by their path: `stream/draw0/labeling/queued`. Texts are ignored; true and false are 1 and 0.
    """
    try:
        record = json.loads(text)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    prefix = [f"draw{record[key]}" if key == "draw" else str(record[key]) for key in NAMED_BY if record.get(key) is not None]
    values = dict(_numbers({k: v for k, v in record.items() if k not in NO_CURVE}, prefix))
    step = next((int(record[key]) for key in STEPS if _finite(record.get(key))), line)
    seconds = record.get("time")
    return CurvePoint(step, seconds if _finite(seconds) else time.time(), line, values) if values else None


def _finite(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is a number that a float can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _numbers(tree: dict[str, Any], prefix: list[str]) -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        path = [*prefix, key or "none"]
        if isinstance(value, dict):
            yield from _numbers(value, path)
        elif _finite(value):
            yield re.sub(r"[^A-Za-z0-9_./ -]", "_", "/".join(path)), float(value)


def flat_parameters(config: Config) -> dict[str, str | int | float | bool]:
    """Return the scientific part of a config as dotted key -> value; a path on this machine is cut to its last part."""
    return {
        key: value if isinstance(value, int | float) else _without_folder(value) if isinstance(value, str) else json.dumps(value)
        for key, value in flatten(config.science()).items()
    }


def _without_folder(text: str) -> str:
    path = Path(text)
    return path.name if text.startswith(("~", ".")) or path.is_absolute() or path.exists() else text
