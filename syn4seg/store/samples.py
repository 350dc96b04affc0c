"""Samples of a run: what is read and written whatever the layout, and names that are safe as file names."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.errors import DamagedError, StoreError, UserError
from syn4seg.schema import FAULT, RECORD
from syn4seg.store.files import In, Out, read_json, to_json

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

NAME = r"[A-Za-z0-9=][A-Za-z0-9 ._+=-]{0,199}"
_SAFE = re.compile(NAME)
_LONGEST = 120
"""Characters of the longest escaped name; of a longer one the rest is a hash."""


def checked_name(name: str, what: str) -> str:
    """Return `name` if it is safe as one part of a path.

    Raises:
        UserError: it is empty, starts with a dot, or has other characters than letters, digits, space and ._+=-
    """
    if not _SAFE.fullmatch(name):
        raise UserError(_unsafe(name, what))
    return name


def _unsafe(name: str, what: str) -> str:
    return (
        f"{what} {name[:80]!r}: cannot be part of a file name; expected letters, digits, space or ._+=-, "
        "not starting with a dot; rename it"
    )


def check_names(names: pa.ChunkedArray | pa.Array, what: str) -> None:
    """Check a whole column as `checked_name` does; null is refused too."""
    safe = pc.fill_null(pc.match_substring_regex(names, f"^(?:{NAME})$"), False)
    if not pc.all(safe).as_py() and len(names):
        raise DamagedError(_unsafe(names.filter(pc.invert(safe))[0].as_py() or "", what))


def check_class_name(name: str) -> None:
    """Check a class name: 1 to 200 printable characters of any script, no space at the ends.

    Raises:
        UserError: it is something else.
    """
    if not 0 < len(name) <= 200 or name != name.strip() or not name.isprintable():
        raise UserError(f"class {name[:80]!r}: expected 1 to 200 printable characters without a space at the ends; rename it")


@lru_cache(maxsize=4096)
def escape_name(name: str) -> str:
    """Return a class name as part of a path; different names give different parts, also where only ASCII is safe.

    Letters, digits, space and ._+- stay; any other byte of UTF-8 becomes =XX, as does a sign at either end. Of a long name the
    rest is a hash.
    """
    data = name.encode("utf-8", "surrogatepass")
    parts = []
    for i, byte in enumerate(data):
        end = i in (0, len(data) - 1)
        plain = chr(byte) if byte < 128 else ""
        parts.append(plain if plain.isalnum() or (plain in set(" ._+-") and plain and not end) else f"={byte:02X}")
    escaped = "".join(parts)
    if len(escaped) <= _LONGEST:
        return escaped
    return f"{re.sub('=.?$', '', escaped[: _LONGEST - 18])}=h{hashlib.blake2b(data, digest_size=8).hexdigest()}"


def id_part(name: str) -> str:
    """Return a class name as part of a sample id: `escape_name` with "_" for a space, and no dot; different for different names."""
    return escape_name(name).replace("_", "=5F").replace(".", "=2E").replace(" ", "_")


@dataclass(frozen=True)
class StoredImage:
    """A synthetic image: uint8 (H, W, 3) RGB, whose it is, and what there is to say about how it was made."""

    sample_id: str
    class_name: str
    batch: int
    pixels: np.ndarray
    audit: dict[str, Any]
    location: str = ""
    """Where it lies, as `images()` says; empty for a new one."""


@dataclass(frozen=True)
class StoredSample:
    """What a draw knows of a sample: its record (columns `schema.RECORD`) and, by stage, labels uint8 (H, W)."""

    record: dict[str, Any]
    labels: dict[str, np.ndarray]


Pair = tuple[StoredSample, np.ndarray | None]
"""A finished sample and its image uint8 (H, W, 3), which a fault does not have."""


def catch_damaged(read: Callable[[In], Out]) -> Callable[[In], Out | DamagedError]:
    """Wrap `read` so that a `DamagedError` is returned, not raised; a `StoreError` is still raised."""

    def read_or_error(item: In) -> Out | DamagedError:
        try:
            return read(item)
        except DamagedError as error:
            return error

    return read_or_error


def require_undamaged(results: list[Pair | DamagedError]) -> list[Pair]:
    """Return the results if none of them is an error, else raise the first one."""
    for result in results:
        if isinstance(result, DamagedError):
            raise result
    return [result for result in results if not isinstance(result, DamagedError)]


def notes_file(image: AnyPath) -> AnyPath:
    """Return where the audit of an image lies, if there is anything to say."""
    return image.with_suffix(".json")


def read_notes(image: AnyPath) -> dict[str, Any]:
    """Read the audit beside an image; empty if there is none."""
    try:
        notes = read_json(notes_file(image))
    except (FileNotFoundError, DamagedError):  # most images have none
        return {}
    return notes if isinstance(notes, dict) else {}


def check_run_exists(root: AnyPath) -> None:
    """Refuse to write into a run directory that was removed; creating it again would hide the loss.

    Raises:
        StoreError: it is gone.
    """
    if isinstance(root, Path) and not root.is_dir():
        raise StoreError(
            f"{root}: the run directory was removed or unmounted while it was written to; put it back, and run the "
            "same command again, which goes on from what is there"
        )


def record_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Return records as a table of the columns `schema.RECORD`; an audit becomes JSON text."""
    rows = [row | {"audit": json.dumps(to_json(row.get("audit", {})), sort_keys=True)} for row in rows]
    return pa.Table.from_pylist(rows, schema=RECORD)


def drop_retried(records: pa.Table, notes: Sequence[str]) -> pa.Table:
    """Return the records without those of faults whose note is gone: these samples are to be made again."""
    fault = pc.starts_with(records["reason"], FAULT)
    quarantined = pc.is_in(records["sample_id"], pa.array(list(notes), pa.string()))
    return records.filter(pc.or_(pc.invert(fault), quarantined))
