"""The folder (or object store) that an export is written to: nothing of anybody else's is ever overwritten or deleted.

`unfinished.json` is written first, into an empty folder, and says what is being exported; `export.json` is written last. So the
same command starts a stopped export over (what lies beside its own `unfinished.json` came from it), leaves a finished one
alone, and refuses everything else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syn4seg.errors import UserError
from syn4seg.store.files import as_path, atomic_file, check_reachable, exists, remove, write_atomically, write_json
from syn4seg.store.listing import list_files
from syn4seg.store.partials import remove_abandoned
from syn4seg.store.readback import Facts, read_checked

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

DONE, BEGUN = "export.json", "unfinished.json"


class Target:
    """Where an export goes.

    Args:
        path: folder or URL.
        run: directory of the run, which an export must not be written into.

    Raises:
        UserError: it is a file, lies in the run, or its store cannot be reached.
    """

    def __init__(self, path: str, run: AnyPath):
        self.root = as_path(path)
        check_reachable(self.root)
        if exists(self.root):
            raise UserError(f"--to {path}: is a file; give a folder that is empty or not there yet")
        if lies_in(self.root, run):
            raise UserError(f"--to {path}: lies in the run {run}; give a folder outside of it")

    def begin(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Prepare the folder, or return the export.json of the very same export, if that is finished.

        Args:
            identity: what makes the export what it is, as plain JSON values.

        Raises:
            UserError: something else is there.
            StoreError: it cannot be written to.
        """
        files = list_files(self.root)
        if DONE in files:
            old = read_checked(self.root / DONE, Facts)
            self._check_same(old.get("export"), identity)
            if BEGUN in files:  # a crash came between the two
                remove(self.root / BEGUN)
            return old
        if BEGUN in files:
            self._check_same(read_checked(self.root / BEGUN, Facts), identity)
            for name in sorted(set(files) - {BEGUN}):
                remove(self.root / name)
            if isinstance(self.root, Path):
                for path in self.root.rglob(".*.partial"):
                    remove(path)
        elif files:
            raise UserError(f"--to {self.root}: holds {len(files)} files and is no export ({min(files)}); choose another folder")
        remove_abandoned(self.root, BEGUN)
        write_json(self.root / BEGUN, identity)
        return None

    def _check_same(self, old: Any, new: dict[str, Any]) -> None:
        old = old if isinstance(old, dict) else {}
        keys = [key for key in new if old.get(key) != new[key]]
        if keys:
            differences = ", ".join(f"{key} {old.get(key)!r} instead of {new[key]!r}" for key in keys if key != "samples")
            raise UserError(
                f"--to {self.root}: holds another export ({differences or 'other samples, or another state of the run'}); "
                "choose another folder"
            )

    def write(self, name: str, data: bytes) -> None:
        """Write one file, in one step.

        Raises:
            StoreError: it cannot be written.
        """
        write_atomically(self.root / name, data)

    @contextlib.contextmanager
    def published(self, name: str) -> Iterator[Path]:
        """Yield a local file to write to, which becomes `name` when the block ends.

        Raises:
            StoreError: it cannot be written.
        """
        with atomic_file(self.root / name) as partial:
            yield partial

    def end(self, facts: dict[str, Any]) -> None:
        """Write export.json: now it is finished."""
        write_json(self.root / DONE, facts)
        remove(self.root / BEGUN)


def lies_in(path: AnyPath, run: AnyPath) -> bool:
    """Return whether a path is a folder or lies below it."""
    if isinstance(path, Path) and isinstance(run, Path):
        return path.resolve().is_relative_to(run.resolve())
    return f"{path}/".startswith(f"{run}".rstrip("/") + "/")
