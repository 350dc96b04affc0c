"""Columns of a batch: lists of arrays in and out of Ray, and the rule that a bad row costs one row."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from actors import deadline
from syn4seg.errors import StoreError
from syn4seg.schema import FAULT as FAULT

Batch = dict[str, np.ndarray]


def array_column(arrays: list[np.ndarray]) -> np.ndarray:
    """Return one column of images or labels: (N, ...) if all shapes agree, else an object array of N arrays."""
    if len({a.shape for a in arrays}) == 1:
        return np.stack(arrays)
    column = np.empty(len(arrays), object)
    column[:] = arrays
    return column


def string_column(values: list[str]) -> np.ndarray:
    """Return one column of strings."""
    return np.array(values, dtype=object)


def summarize_error(error: BaseException) -> tuple[str, str]:
    """Return one line about an exception, with the function and line that raised it; and the end of its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].name}:{frames[-1].lineno})" if frames else ""
    line = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}{place}"
    return line, "".join(traceback.format_exception(error))[-8000:]


def map_rows(batch: Batch, step: str, work: Callable[[int], tuple[Any, ...]], blank: Callable[[int], tuple[Any, ...]]):
    """Run `work(i)` on every row that has no `reason` yet; a row that raises is quarantined and its batch-mates go on.

    Args:
        batch: columns with at least `reason` and `traceback`.
        step: name of the step, part of the recorded reason.
        work: returns the new values of row i, its reason ("" if fine) last.
        blank: returns the values of a row that is skipped or failed, without the reason.

    Returns:
        One list per new column, then the reasons, then the tracebacks.

    Raises:
        StoreError: from `work`; a full disk is no fault of the row.
    """
    rows = []
    for i, (reason, trace) in enumerate(zip(batch["reason"], batch["traceback"], strict=True)):
        if reason:
            rows.append((*blank(i), str(reason), str(trace)))
            continue
        deadline.tick()
        try:
            rows.append((*work(i), ""))
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a row does, it must not cost its batch-mates
            line, trace = summarize_error(error)
            rows.append((*blank(i), f"{FAULT}{step}: {line}", trace))
    return [list(values) for values in zip(*rows, strict=True)]
