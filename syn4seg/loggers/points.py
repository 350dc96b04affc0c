"""The numbers of a run as loggers want them: points on curves, from lines of metrics.jsonl, and a flat config."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from syn4seg.config.tree import Config

NAMED_BY = ("stage", "draw", "class_name", "row")
"""Values of a line that say which curve it belongs to."""
STEPS = ("epoch", "step", "done")
"""Values that are the step of a line, the first one that it has."""
NO_CURVE = {*NAMED_BY, *STEPS, "time", "started", "epochs", "steps", "total"}


class Point(NamedTuple):
    """The numbers of one line of metrics.jsonl: where on the axis, when (Unix seconds), and which line (from 0)."""

    step: int
    time: float
    line: int
    values: dict[str, float]


def point(text: str | bytes, line: int) -> Point | None:
    """The numbers of a line of metrics.jsonl, or None if it has none or is damaged.

    Nested values are named by their path: `stream/draw0/labeling/queued`. Texts are no numbers; true and false are 1 and 0.
    """
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    prefix = [f"draw{found[key]}" if key == "draw" else str(found[key]) for key in NAMED_BY if found.get(key) is not None]
    values = dict(_numbers({k: v for k, v in found.items() if k not in NO_CURVE}, prefix))
    step = next((int(found[key]) for key in STEPS if _finite(found.get(key))), line)
    told = found.get("time")
    return Point(step, told if _finite(told) else time.time(), line, values) if values else None


def _finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number that a float can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _numbers(tree: dict[str, Any], prefix: list[str]) -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        path = [*prefix, key or "none"]
        if isinstance(value, dict):
            yield from _numbers(value, path)
        elif _finite(value):
            yield re.sub(r"[^A-Za-z0-9_./ -]", "_", "/".join(path)), float(value)


def parameters(config: Config) -> dict[str, str | int | float | bool]:
    """The science of a config, flat: dotted key -> plain value. Of a path on this machine its last part is left."""

    def flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, str | int | float | bool]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            elif isinstance(value, bool | int | float):
                yield prefix + key, value
            else:
                yield prefix + key, _without_folder(value) if isinstance(value, str) else json.dumps(value)

    return dict(flat(config.science(), ""))


def _without_folder(text: str) -> str:
    path = Path(text)
    return path.name if text.startswith(("~", ".")) or path.is_absolute() or path.exists() else text
