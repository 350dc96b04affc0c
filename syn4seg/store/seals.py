"""Seals: the digest of a file of a run, kept beside it, so that no changed file is taken for what this program wrote.

    RUN/.seals/NAME.json  RUN/checkpoints/.seals/NAME.json  RUN/draws/K/.seals/NAME.json ...

Samples have no seal: the manifest holds the digests of their pixels, and the manifest has one. A seal is written before its file
and names the digest of the new content and of the one before, so a crash between the two leaves a file that fits. `verify` checks
all seals; whoever reads a checkpoint, a plan or a result checks that one.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syn4seg.errors import DamagedError
from syn4seg.store.files import (
    MAX_TABLE,
    atomic_file,
    exists,
    explain_errors,
    open_regular,
    read_bytes,
    read_json,
    to_json_bytes,
    write_atomically,
    write_json,
)
from syn4seg.store.listing import list_names

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

FOLDER = ".seals"
_CHUNK = 2**22


def write_sealed(path: AnyPath, data: bytes) -> None:
    """Write a file and its seal, each atomically.

    Raises:
        StoreError: they cannot be written.
    """
    _write_seal(path, hashlib.blake2b(data, digest_size=16).hexdigest())
    write_atomically(path, data)


def rewrite_sealed(path: AnyPath, data: bytes) -> None:
    """Write a file and its seal as `write_sealed` does, unless that very file is there already."""
    with contextlib.suppress(DamagedError):  # too large to be ours
        if exists(path) and read_bytes(path, MAX_TABLE) == data:
            return
    write_sealed(path, data)


def write_sealed_json(path: AnyPath, value: Any) -> None:
    """Write plain JSON as `write_json` does, with its seal."""
    write_sealed(path, to_json_bytes(value))


@contextlib.contextmanager
def sealed_file(path: AnyPath) -> Iterator[Path]:
    """Yield a local file to write to, as `atomic_file` does; it gets its seal just before it becomes `path`."""
    with atomic_file(path) as partial:
        yield partial
        _write_seal(path, _digest(partial))


def copy_seal(source: AnyPath, target: AnyPath) -> None:
    """Give a copy of a file the seal of its source, if that has one."""
    with contextlib.suppress(FileNotFoundError):
        write_json(_seal_of(target), read_json(_seal_of(source)))


def check_seal(path: AnyPath) -> None:
    """Check that a file is what was written; a missing one passes, and one without a seal (of an earlier version).

    Raises:
        DamagedError: it has been changed since.
    """
    try:
        digests = read_json(_seal_of(path))
    except FileNotFoundError:
        return
    if not isinstance(digests, list) or not digests or not all(isinstance(d, str) for d in digests):
        raise DamagedError(f"{_seal_of(path)}: damaged; `syn4seg verify` checks the whole run")
    try:
        digest = _digest(path)
    except FileNotFoundError:  # whoever reads it says so
        return
    if digest not in digests:
        raise DamagedError(
            f"{path}: its content is not what was written (damaged or changed since); put the old file back, or delete it and run "
            "the same command again"
        )


def broken_seals(root: AnyPath, missing: bool = True) -> list[str]:
    """Return a line for every sealed file of a run that was changed, or (`missing`) is no longer there."""
    lines = []
    for folder in _folders(root):
        for name in list_names(folder / FOLDER):
            if name.endswith(".json") and not name.startswith("."):
                path = folder / name.removesuffix(".json")
                try:
                    check_seal(path)
                    if missing and not exists(path):
                        lines.append(f"{path}: missing; put it back, or run the same command again to make it anew")
                except DamagedError as error:
                    lines.append(str(error))
    return lines


def _folders(root: AnyPath) -> list[AnyPath]:
    """Return the folders of a run that hold sealed files."""
    draws = [root / "draws" / name for name in list_names(root / "draws") if name.isascii() and name.isdecimal()]
    return [
        root,
        *(root / name for name in ("checkpoints", "generators", "model")),
        *(f for draw in draws for f in (draw, draw / "checkpoints")),
    ]


def _seal_of(path: AnyPath) -> AnyPath:
    return path.parent / FOLDER / f"{path.name}.json"


def _write_seal(path: AnyPath, digest: str) -> None:
    seal, last = _seal_of(path), []
    if exists(path):  # what lies there stays right until it is replaced, however often a crash comes in between
        try:
            before = read_json(seal) if exists(seal) else None
        except DamagedError:
            before = None
        current = _digest(path)
        last = [current] if current != digest and (not isinstance(before, list) or current in before) else []
    write_json(seal, [digest, *last])


def _digest(path: AnyPath) -> str:
    total = hashlib.blake2b(digest_size=16)
    with explain_errors(path, "read"), open_regular(path) as file:
        while data := file.read(_CHUNK):
            total.update(data)
    return total.hexdigest()
