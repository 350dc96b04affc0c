"""Keep every idle trial process of Ray Tune: the one place that replaces a private part of Ray, and why.

With `reuse_actors` Ray Tune hands an idle process to the next trial, so that networks are loaded and modules imported once per
process. Where two trials end in the same moment it ends one of the two processes all the same, and no option prevents that; it
costs some seconds per lost process: a sweep of short trials, two at a time on two cores, ran 364 to 458 trials per minute
with this, and 87 to 98 without. `tests/tune/test_idle_processes.py` fails with a sentence if the installed Ray differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.tune.execution import tune_controller


class KeepAllProcesses(tune_controller._ObjectCache):
    """The store of idle trial processes of Ray Tune, without a limit until the sweep ends."""

    def cache_object(self, key: Any, obj: Any) -> bool:
        """Keep a process."""
        self._cached_objects[key].append(obj)
        self._num_cached_objects += 1
        return True

    def flush_cached_objects(self, force_all: bool = False) -> Any:
        """Release the processes at the end of the sweep, and none before."""
        if force_all:
            yield from super().flush_cached_objects(force_all=True)


@contextlib.contextmanager
def idle_processes_kept() -> Iterator[None]:
    """Let sweeps that start inside the block keep their idle processes."""
    original = tune_controller._ObjectCache  # pyright: ignore[reportPrivateUsage]
    tune_controller._ObjectCache = KeepAllProcesses  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        tune_controller._ObjectCache = original  # pyright: ignore[reportPrivateUsage]
