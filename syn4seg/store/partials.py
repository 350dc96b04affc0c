"""Names of the files that are not yet whole, and who may delete what a killed process has left of them.

    .NAME.OWNERPIDRANDOM.partial

OWNER stands for a machine since its start and a process table on it (containers have their own). So a process on the same machine
knows at once whether the writer still lives; what others have left is deleted when nobody has written to it for a day.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import secrets
import time
from pathlib import Path

IDLE = 86_400.0
"""Seconds without a write after which a file of an unknown process counts as abandoned."""
_TOKEN = re.compile(r"\.([0-9a-f]{6})([0-9a-f]{6})[0-9a-f]{8}\.partial$")


def _owner() -> str:
    """Return six hex digits; zeros where the system does not say which machine and process table this is."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return "000000"
    return hashlib.blake2b(text.encode(), digest_size=3).hexdigest()


_OWNER = _owner()


def partial_path(path: Path) -> Path:
    """Return a new path beside `path`, to write to until the file is whole."""
    return path.with_name(f".{path.name}.{_OWNER}{os.getpid() & 0xFFFFFF:06x}{secrets.token_hex(4)}.partial")


def remove_abandoned(folder: object, name: str | None = None) -> None:
    """Delete unfinished files whose writers are gone.

    Args:
        folder: path of a folder; one in an object store has no such files.
        name: of the file whose unfinished ones are deleted; None: of every file in the folder.
    """
    if not isinstance(folder, Path):
        return
    for path in folder.glob(f".{'*' if name is None else glob.escape(name)}.{'?' * 20}.partial"):
        with contextlib.suppress(OSError):  # deleted meanwhile, or somebody else's
            if _is_abandoned(path):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    token = _TOKEN.search(path.name)
    if token and token[1] == _OWNER != "000000":
        return not Path(f"/proc/{int(token[2], 16)}").exists()
    return token is not None and time.time() - path.stat().st_mtime > IDLE
