"""Files of a run on any file system: a folder here or on the network, or an object store (`s3://`, `gs://`, `memory://`).

What is relied on, and nothing else: a rename inside a folder is atomic (folders), one PUT is atomic (object stores), and what
has been written is seen by everybody who reads or lists afterwards. No lock, no mapped file, no file that several processes
append to. Folders are written to a `.partial` file, which is synced and renamed; a `.partial` that a crash left behind counts
as nothing. Whether a rename itself survives a power cut is not relied on: every reader checks that what it needs is there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from syn4seg.errors import DamagedError, StoreError, UserError
from syn4seg.store.partials import partial_path

if TYPE_CHECKING:
    from upath import UPath

    AnyPath = Path | UPath

MAX_FILE = 2**28
"""Bytes of the largest JSON or PNG file that is read from a run."""
MAX_TABLE = 2**33
"""Bytes, decoded, of the largest table or file of tensors that is read from a run."""

STORES = ("s3", "gs", "s3a", "gcs", "memory")
"""Kinds of URLs that a run may be kept in. What writes in place (sftp, hdfs, smb) may be used through a mount."""
WAITS = (0.1, 0.3, 0.9)
"""Seconds before each further try to read a file that went stale or was merged meanwhile."""

_APPENDING = threading.Lock()
_UMASK = os.umask(0o022)
os.umask(_UMASK)
_MODE = 0o666 & ~_UMASK
In = TypeVar("In")
Out = TypeVar("Out")


class StaleFileError(FileNotFoundError):
    """What NFS says (ESTALE) of a file that another machine has deleted or replaced since it was looked up."""


def as_path(root: str | AnyPath) -> AnyPath:
    """Return the path of a folder, or of a URL: `file://`, or one of the object stores `STORES`, where one PUT is atomic.

    Options of object stores come from their usual environment (AWS_ENDPOINT_URL, AWS_PROFILE, fsspec's configuration).

    Raises:
        UserError: another kind of URL, one with a password in it (which is not repeated), or a package is not installed.
    """
    if not isinstance(root, str) or "://" not in root:
        return Path(root) if isinstance(root, str) else root
    kind, _, rest = root.partition("://")
    if "@" in rest.partition("/")[0] or (":" in rest.partition("/")[0] and "@" in rest):  # secrets may have slashes
        raise UserError(
            "a run's URL holds a user name or password; leave them out of it, and give them by AWS_PROFILE, "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or Google Cloud's login"
        )
    if kind in ("file", "local"):
        return Path(url2pathname(urlsplit(root).path))
    if kind not in STORES:
        raise UserError(
            f"{root}: {kind}:// is not supported, as a run needs files that appear whole or not at all; expected a "
            f"folder (network mounts too), file:// or {', '.join(f'{name}://' for name in STORES[:3])}"
        )
    from upath import UPath

    try:
        path = UPath(root, use_listings_cache=False)
        assert path.fs is not None
    except ImportError as error:
        raise UserError(f"{root}: {error}; pip install 'syn4seg-ray[{kind}]' (extras: s3, gs)") from None
    return path


def is_local(path: AnyPath) -> bool:
    """Return whether a path is a folder or file that the operating system knows, a network mount included."""
    return isinstance(path, Path)


def check_reachable(root: AnyPath) -> None:
    """Ask an object store for the bucket, so that a wrong name or missing rights are found before anything is made.

    Raises:
        UserError: with the remedy, in one line.
    """
    if isinstance(root, Path):
        return
    bucket = root.path.strip("/").partition("/")[0]
    try:
        if root.protocol != "memory":
            root.fs.info(bucket)
    except FileNotFoundError:
        raise UserError(f"{root}: there is no bucket {bucket!r}; create it, or correct the name") from None
    except Exception as error:  # noqa: BLE001 - every client library has errors of its own
        raise UserError(
            f"{root}: cannot be reached ({one_line(error)}); check the bucket, the credentials (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or Google Cloud's) and AWS_ENDPOINT_URL"
        ) from None


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line of at most 300 characters."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]


@contextlib.contextmanager
def explain_errors(path: AnyPath, doing: str) -> Iterator[None]:
    """Turn an error of a file system into one `StoreError` that names the file, the free space and what to do; missing files pass.

    Args:
        doing: what was being done: "written", "read" or "deleted".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(path, Path) and not isinstance(error, OSError):
            raise
        if isinstance(error, FileNotFoundError) and doing == "read":
            raise
        if isinstance(error, OSError) and error.errno == errno.ESTALE and doing == "read":
            raise StaleFileError(errno.ESTALE, os.strerror(errno.ESTALE), str(path)) from error
        remedy = _REMEDIES.get(getattr(error, "errno", 0), _ANY_REMEDY)
        raise StoreError(
            f"{path}: cannot be {doing} ({one_line(error)}{_free(path)}); {remedy}, and run the same command again, which goes on "
            "from here"
        ) from error


_ANY_REMEDY = "make room there, or mend the rights or the connection"
_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or raise the quota",
    errno.EACCES: "mend the rights there",
    errno.EPERM: "mend the rights there",
    errno.EROFS: "choose a place that is not mounted read-only",
    errno.ENOTDIR: "choose a place whose parents are folders",
    errno.EISDIR: "choose a name that is no folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "choose a file system without that limit",
}


def check_writable(place: str, option: str) -> None:
    """Check that something can be written at a path of this machine, before any work is done for it; a URL passes.

    Args:
        place: a file or folder, which need not exist.
        option: the option that names it, for the message.

    Raises:
        UserError: a part of the path is a file, or the folder that exists is not writable.
    """
    path = as_path(place)
    if not isinstance(path, Path):
        return
    try:
        if "\x00" in place:
            raise ValueError("a zero byte")
        folder = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {place[:200]}: is no usable path ({one_line(error)}); choose another one") from None
    if not folder.is_dir() and folder != path.absolute():
        raise UserError(f"{option} {place}: {folder} is a file, so nothing can lie below it; choose another place")
    if not os.access(folder, os.W_OK | os.X_OK if folder.is_dir() else os.W_OK):
        raise UserError(f"{option} {place}: {folder} is not writable for you; mend its rights, or choose another place")


def _free(path: AnyPath) -> str:
    if not isinstance(path, Path):
        return ""
    folder = next((p for p in path.parents if p.is_dir()), None)
    return f"; {shutil.disk_usage(folder).free / 2**20:,.1f} MiB free" if folder else ""


def retry_stale(path: AnyPath, read: Callable[[], Out]) -> Out:
    """Call `read`, and again after short waits while the file is stale (NFS); return its result.

    Raises:
        StoreError: it stays stale.
    """
    for wait in WAITS:
        try:
            return read()
        except StaleFileError:
            time.sleep(wait)
    try:
        return read()
    except StaleFileError as error:
        raise StoreError(
            f"{path}: cannot be read ({one_line(error)}); mend the connection, and run the same command again, which "
            "goes on from here"
        ) from error


def exists(path: AnyPath) -> bool:
    """Return whether a file exists.

    Raises:
        StoreError: the file system does not say.
    """

    def look() -> bool:
        with explain_errors(path, "read"):
            return path.is_file()

    return retry_stale(path, look)


def remove(path: AnyPath) -> None:
    """Delete a file, if it is there.

    Raises:
        StoreError: it cannot be deleted.
    """
    with explain_errors(path, "deleted"):
        try:
            path.unlink()
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and error.errno != errno.ESTALE:
                raise


def map_threads(work: Callable[[In], Out], items: Iterable[In], threads: int = 16) -> list[Out]:
    """Apply `work` to every item in several threads, in order: object stores answer slowly, PNGs free the GIL."""
    items = list(items)
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(work, items))


def write_atomically(path: AnyPath, data: bytes) -> None:
    """Write a file so that it is either absent, old or complete, also after a power cut.

    Raises:
        StoreError: it cannot be written; nothing of it is there then, or the old file.
    """
    if not isinstance(path, Path):
        with explain_errors(path, "written"):
            path.fs.pipe_file(path.path, data)
        return
    with atomic_file(path) as partial, partial.open("wb") as f:
        f.write(data)


@contextlib.contextmanager
def atomic_file(path: AnyPath) -> Iterator[Path]:
    """Yield a local file to write to; it becomes `path` in one step when the block ends, and vanishes if it fails.

    Raises:
        StoreError: it cannot be written.
    """
    with explain_errors(path, "written"):
        if not isinstance(path, Path):
            with tempfile.TemporaryDirectory() as folder:
                partial = Path(folder) / path.name
                yield partial
                path.fs.put_file(str(partial), path.path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        try:
            yield partial
            with partial.open("rb+") as f:
                if os.fstat(f.fileno()).st_mode & 0o777 != _MODE:  # some libraries make files for the owner alone
                    os.fchmod(f.fileno(), _MODE)
                os.fsync(f.fileno())
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def append_line(path: AnyPath, line: str) -> None:
    """Add one line to a file that only this process writes: appended and synced; on object stores the file is written anew.

    Raises:
        StoreError: it cannot be written.
    """
    data = (line + "\n").encode()
    if not isinstance(path, Path):
        with _APPENDING:
            existing = read_bytes(path) if exists(path) else b""
            return write_atomically(path, existing + data)
    with explain_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as f:
            if f.write(data) < len(data):
                raise OSError(28, os.strerror(28), str(path))
            os.fsync(f.fileno())


def write_json(path: AnyPath, value: Any) -> None:
    """Write plain JSON atomically; nan is written as null, as JSON has no nan."""
    write_atomically(path, to_json_bytes(value))


def to_json_bytes(value: Any) -> bytes:
    """Return a value as the text of a JSON file; nan becomes null."""
    return (json.dumps(to_json(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def to_json(value: Any) -> Any:
    """Convert a value to the types of JSON: nan and infinity become null, arrays become lists."""
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return bool(value) if isinstance(value, np.bool_) else value


def open_regular(path: AnyPath) -> IO[bytes]:
    """Open a regular file, or an object of a store, for reading; a pipe or a device never makes anybody wait.

    Raises:
        OSError: it cannot be opened.
        DamagedError: it is something else.
    """
    _check_regular(path, path.stat())
    return path.open("rb")


def _check_regular(path: AnyPath, facts: Any) -> None:
    if isinstance(path, Path) and not stat.S_ISREG(facts.st_mode):
        raise DamagedError(f"{path}: is no regular file; this program did not write it")


def read_bytes(path: AnyPath, limit: int = MAX_FILE) -> bytes:
    """Return the whole of a file.

    Raises:
        FileNotFoundError: it does not exist.
        StoreError: it cannot be read.
        DamagedError: it is larger than `limit` bytes.
    """

    def read() -> bytes:
        with explain_errors(path, "read"):
            facts = path.stat()
            _check_regular(path, facts)
            if facts.st_size > limit:
                raise DamagedError(
                    f"{path}: has {facts.st_size:,} bytes, at most {limit:,} were expected; this program did not write it"
                )
            return path.read_bytes()

    return retry_stale(path, read)


def read_json(path: AnyPath) -> Any:
    """Return the value of a JSON file.

    Raises:
        FileNotFoundError: it does not exist.
        DamagedError: it is damaged or too large.
    """
    return parse_json(read_bytes(path), str(path))


def parse_json(data: bytes | str, what: str) -> Any:
    """Parse JSON that was read from a file of a run.

    Args:
        what: name of the file or of the place in it, for the message.

    Raises:
        DamagedError: it is no JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise DamagedError(f"{what}: damaged; delete it and run the same command again to make it anew") from None
