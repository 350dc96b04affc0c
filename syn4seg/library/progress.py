"""Progress of a function of the library: none, a bar, or a function of the caller."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Progress = bool | Callable[[int, int | None], None]
"""True shows a bar on standard error; a callable is called with how many are done, of how many (None: not known)."""


@contextlib.contextmanager
def reporting(progress: Progress, title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function to call with (done, total); without progress it does nothing."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda done, total: None
    else:
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(file=sys.stderr)) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
