"""The stage cache: results of processing steps, stored once for all trials and studies.

An entry of some kind is a file `CACHE/KIND/HASH.bin`, named by a hash of everything its content depends on. It holds named arrays
(in the safetensors format; labels and masks compressed) behind a digest of themselves: a damaged entry is noticed and made again.
A process that finds no entry makes it under that entry's lock, so concurrent processes make it once. Nothing relies on an entry
being there: the least recently used ones are deleted when the cache grows over its bound.

The cache is a folder of this machine or a network mount with locks (NFS 4); it never holds the only copy of anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from syn4seg.errors import StoreError, UserError
from syn4seg.store.files import explain_errors

Arrays = dict[str, np.ndarray]

SUFFIX = ".bin"
RUNS = "runs"
"""The kind whose entries are whole run directories: prompts, images and base checkpoint of a configuration."""
DIGEST = 32
MAX_ENTRY = 2**33
"""Bytes of the largest entry that is read."""
LEVEL = 1
"""zlib's level. Labels and masks shrink twentyfold at it; features hardly would at any, so they are not compressed."""
SLACK = 0.9
"""A cache over its bound is pruned to this share of it."""
LOOK_SHARE = 0.05
"""The folder is measured again when this share of the bound was written since."""
FRESH_SECONDS = 3600.0
"""A run directory that was used this recently is not deleted to make room."""
LOCK_SECONDS = 86_400.0
"""A lock unused for this long is deleted."""


@dataclass(frozen=True)
class EntryUse:
    """Usage of one kind: number of entries, their bytes, and when one was last used (seconds since 1970)."""

    kind: str
    entries: int
    bytes: int
    used: float


def key_hash(key: Any) -> str:
    """Return the hash (32 hex digits) of plain JSON values."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


class StageCache:
    """Store entries by kind and key, with the recently used ones also in memory.

    Args:
        root: folder; made if it is not there.
        limit: bytes that the folder may hold.
        memory: bytes of decoded entries that this process keeps.

    Raises:
        UserError: a URL.
    """

    def __init__(self, root: Path | str, limit: int = 20 * 2**30, memory: int = 2**30):
        if "://" in str(root):
            raise UserError(f"--cache {root}: the cache needs locks, so it must be a folder of this machine or a network mount")
        self.root, self.limit, self.memory, self.used = Path(root), limit, memory, 0
        self.recent: OrderedDict[tuple[str, str], Arrays] = OrderedDict()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.written = limit  # so that the first write looks at the folder

    def path(self, kind: str, key: Any) -> Path:
        """Return the path of an entry."""
        return self.root / kind / (key_hash(key) + SUFFIX)

    def get(self, kind: str, key: Any, make: Callable[[], Arrays]) -> Arrays:
        """Return an entry; make and store it if it is missing. The arrays are shared and read-only.

        Args:
            kind: of the entry.
            key: plain JSON values that name everything the arrays depend on.
            make: computes the arrays; it may call `get` for the entries that they are made of.

        Raises:
            StoreError: the folder cannot be written.
        """
        value = self.find(kind, key)
        if value is None:
            path = self.path(kind, key)
            with self.lock(path):
                value = self.find(kind, key)  # another process may have made it
                if value is None:
                    self.counts[kind, "damaged"] += path.exists()
                    value = make()
                    self.put(kind, key, value)
        return value

    def find(self, kind: str, key: Any) -> Arrays | None:
        """Return an entry, or None if it is missing or damaged."""
        path = self.path(kind, key)
        name = (kind, path.name)
        if name in self.recent:
            self.recent.move_to_end(name)
            self.counts[kind, "memory"] += 1
            return self.recent[name]
        arrays = self._read(path)
        if arrays is not None:
            self.counts[kind, "read"] += 1
            self._keep(name, arrays)
        return arrays

    def put(self, kind: str, key: Any, arrays: Arrays) -> None:
        """Store an entry; the caller holds the `lock` of its path."""
        path = self.path(kind, key)
        self.counts[kind, "made"] += 1
        self._write(path, arrays)
        self._keep((kind, path.name), arrays)

    @contextlib.contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """Hold the lock of an entry; the system frees the lock of a process that dies."""
        with FileLock(self._lock(path)):
            yield

    def _lock(self, path: Path) -> Path:
        lock = self.root / "locks" / path.parent.name / (path.name + ".lock")
        with explain_errors(lock, "write"):
            lock.parent.mkdir(parents=True, exist_ok=True)
        return lock

    def _keep(self, name: tuple[str, str], arrays: Arrays) -> None:
        size = sum(a.nbytes for a in arrays.values())
        for array in arrays.values():
            array.flags.writeable = False
        if size > self.memory:
            return
        self.recent[name], self.used = arrays, self.used + size
        while self.used > self.memory:
            _, old = self.recent.popitem(last=False)
            self.used -= sum(a.nbytes for a in old.values())

    def _read(self, path: Path) -> Arrays | None:
        try:
            with explain_errors(path, "read"):
                if path.stat().st_size > MAX_ENTRY:
                    raise StoreError(f"{path}: larger than any entry of the cache; delete it")
                data = path.read_bytes()
        except FileNotFoundError:
            return None
        arrays = decode(data)
        if arrays is None:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # when it was last used
        return arrays

    def _write(self, path: Path, arrays: Arrays) -> None:
        data = encode(arrays)
        partial = path.with_name(f"{path.name}.partial")  # one writer at a time, and the next one's if this one dies
        with explain_errors(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(data)  # not synced: what a power cut damages is noticed and made again
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        self.written += len(data)
        if self.written > LOOK_SHARE * self.limit:
            self.written = 0
            self.prune(self.limit, idle=FRESH_SECONDS)

    def entries(self) -> list[tuple[float, int, Path]]:
        """Return (last use, bytes, path) of every entry, the least recently used first; a run directory counts as one."""
        entries = []
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            if folder.name == RUNS:
                for run in (p for p in folder.iterdir() if p.is_dir()):
                    with contextlib.suppress(FileNotFoundError):
                        size = sum(p.stat().st_size for p in run.rglob("*") if p.is_file())
                        entries.append((run.stat().st_mtime, size, run))
            elif folder.name != "locks" and folder.is_dir():
                for path in (p for p in folder.iterdir() if p.name.endswith((SUFFIX, ".partial"))):
                    with contextlib.suppress(FileNotFoundError):
                        entries.append((path.stat().st_mtime, path.stat().st_size, path))
        return sorted(entries, key=lambda entry: (entry[0], entry[2]))

    def uses(self) -> list[EntryUse]:
        """Return the usage by kind."""
        by_stage: dict[str, list[tuple[float, int, Path]]] = {}
        for entry in self.entries():
            by_stage.setdefault(entry[2].parent.name, []).append(entry)
        return [
            EntryUse(kind, len(entries), sum(size for _, size, _ in entries), entries[-1][0])
            for kind, entries in sorted(by_stage.items())
        ]

    def prune(self, limit: int, kind: str | None = None, idle: float = 0.0, dry: bool = False) -> tuple[int, int]:
        """Delete the least recently used entries until at most `SLACK * limit` bytes are left, if there are more than `limit`.

        Run directories go last: they are what a study costs. One that is being made is skipped. A process that reads a deleted
        entry finds it missing and makes it again.

        Args:
            kind: only entries of this kind, and only their bytes count.
            idle: seconds that a run directory must have lain unused.
            dry: delete nothing.

        Returns:
            How many entries were deleted (`dry`: would be), and their bytes.
        """
        entries = [entry for entry in self.entries() if kind is None or entry[2].parent.name == kind]
        total, removed, freed = sum(size for _, size, _ in entries), 0, 0
        if total <= limit:
            return 0, 0
        if not dry:
            self._drop_locks()
        for used, size, path in sorted(entries, key=lambda entry: entry[2].parent.name == RUNS):
            if total - freed <= SLACK * limit:
                break
            if path.parent.name == RUNS and not (time.time() - used >= idle and (dry or self._drop_run(path))):
                continue
            if path.parent.name != RUNS and not dry:
                with explain_errors(path, "delete"):
                    path.unlink(missing_ok=True)
            removed, freed = removed + 1, freed + size
        return removed, freed

    def _drop_run(self, path: Path) -> bool:
        """Delete a run directory unless a process is making it; return whether it was deleted."""
        with contextlib.suppress(Timeout), FileLock(self._lock(path), timeout=0):
            shutil.rmtree(path, ignore_errors=True)
            return True
        return False

    def _drop_locks(self) -> None:
        """Delete the locks that were unused for `LOCK_SECONDS`."""
        for lock in (self.root / "locks").rglob("*.lock"):
            with contextlib.suppress(OSError):
                if time.time() - lock.stat().st_mtime > LOCK_SECONDS:
                    lock.unlink()


def encode(arrays: Arrays) -> bytes:
    """Return the bytes of an entry: a digest, then the arrays, compressed if they are small or whole numbers."""
    from safetensors.numpy import save

    data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    small = not any(a.dtype.kind == "f" and a.nbytes > 2**16 for a in arrays.values())
    data = b"z" + zlib.compress(data, LEVEL) if small else b"-" + data
    return hashlib.blake2b(data, digest_size=DIGEST).digest() + data


def decode(data: bytes) -> Arrays | None:
    """Return the arrays of an entry's bytes; None if `encode` did not write them."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    kind, rest = data[DIGEST : DIGEST + 1], data[DIGEST + 1 :]
    if hashlib.blake2b(data[DIGEST:], digest_size=DIGEST).digest() != data[:DIGEST]:
        return None
    try:
        if kind == b"z":
            stream = zlib.decompressobj()
            rest = stream.decompress(rest, MAX_ENTRY)
            if not stream.eof:
                return None
        return load(rest)
    except (zlib.error, SafetensorError):
        return None
