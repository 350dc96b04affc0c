"""What is in the folders of a run, on any file system."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syn4seg.store.files import explain_errors, retry_stale

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath


def list_files(folder: AnyPath) -> dict[str, int]:
    """Return the size in bytes of every file below `folder`, by path; what starts with a dot (`.partial` files) is left out.

    A link to a folder is followed, but not one that leads back to a folder in which it lies: it would never end.
    """
    if not isinstance(folder, Path):
        prefix = folder.path.strip("/") + "/"
        with explain_errors(folder, "read"):
            try:
                entries: Any = folder.fs.find(folder.path, detail=True)
            except FileNotFoundError:
                return {}
        below = {name.strip("/").removeprefix(prefix): facts["size"] for name, facts in entries.items()}
        return {name: size for name, size in below.items() if not any(part.startswith(".") for part in name.split("/"))}
    return retry_stale(folder, lambda: _local_listing(folder))


def _local_listing(folder: Path) -> dict[str, int]:
    sizes, open_folders = {}, [("", str(folder))]
    with explain_errors(folder, "read"):
        while open_folders:
            below, name = open_folders.pop()
            with contextlib.suppress(FileNotFoundError), os.scandir(name) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir() and _leads_back(entry, name):
                        continue
                    if entry.is_dir():
                        open_folders.append((f"{below}{entry.name}/", entry.path))
                    else:
                        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                            sizes[below + entry.name] = entry.stat().st_size
    return sizes


def _leads_back(entry: os.DirEntry[str], folder: str) -> bool:
    """Return whether an entry of a folder is a link to that folder or one above it."""
    return entry.is_symlink() and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(entry.path))


def list_names(folder: AnyPath) -> list[str]:
    """Return the sorted names in a folder; none if there is no such folder."""
    with explain_errors(folder, "read"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted({path.name for path in folder.iterdir()})
    return []


def count_partial_files(folder: AnyPath) -> int:
    """Return how many `.partial` files crashes have left below a folder."""
    return sum(1 for _ in folder.rglob(".*.partial")) if isinstance(folder, Path) else 0
