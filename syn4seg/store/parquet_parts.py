"""A folder of Parquet files that never change: small parts as they come, merged into large shards without losing or doubling.

A shard's metadata name the parts that it replaces. They are deleted only after the shard is there, and whoever reads ignores a
part that a shard names; so a crash at any point neither loses nor doubles a row. Two drivers at once (one of them thought dead)
may still write a row twice: it is read once. A reader may keep what it knows of a file, and looks again only when one has gone.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from syn4seg.errors import DamagedError, StoreError
from syn4seg.schema import FAULT
from syn4seg.store.files import MAX_TABLE, WAITS, atomic_file, map_threads, parse_json, remove, write_atomically
from syn4seg.store.images import decode_image, pixel_digest
from syn4seg.store.listing import list_files
from syn4seg.store.samples import check_names
from syn4seg.store.tables import Columns, check_columns, open_parquet

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

GROUP_BYTES = 4 * 2**20
"""Size of a shard's row groups: what has to be read for one sample."""
_FILE = re.compile(r"(part|shard)-[0-9a-f]{32}\.parquet")
_REPLACES = b"replaces"


@dataclass(frozen=True)
class PartIndex:
    """What a reader keeps of a file: the ids of its rows, where its row groups start, and which parts it replaces."""

    ids: pa.Array
    faults: pa.Array
    starts: np.ndarray
    batch: int
    replaces: frozenset[str]


class PartStore:
    """The parts and shards of one folder, all of one schema."""

    def __init__(self, folder: AnyPath, schema: pa.Schema):
        self.folder, self.schema = folder, schema
        self.files: dict[str, PartIndex] = {}
        self.sizes: dict[str, int] = {}
        self.damaged: dict[str, str] = {}
        self._group: tuple[str, pa.Table] = ("", pa.table({}))
        self._lock = threading.Lock()

    def plain_columns(self) -> list[str]:
        """Return the names of the columns that hold no pixels."""
        return [name for name in self.schema.names if not name.endswith("_png")]

    def look(self) -> dict[str, PartIndex]:
        """Return the files to read, by name, sorted; only new files are opened. Thread-safe."""
        with self._lock:
            sizes = {name: size for name, size in list_files(self.folder).items() if _FILE.fullmatch(name)}
            files = {name: index for name, index in self.files.items() if name in sizes}
            damaged = {name: why for name, why in self.damaged.items() if self.sizes.get(name) == sizes.get(name, -1)}
            new = [name for name in sizes if name not in files and name not in damaged]
            for name, index in zip(new, map_threads(self._open, new), strict=True):
                if isinstance(index, PartIndex):
                    files[name] = index
                elif index:
                    damaged[name] = index
            self.files, self.sizes, self.damaged = files, sizes, damaged
            hidden = {*self.replaced(), *damaged}
            return {name: files[name] for name in sorted(files) if name not in hidden}

    def replaced(self) -> set[str]:
        """Return the names that the shards say they replace; a damaged shard replaces nothing, since its samples are made again."""
        return {part for name, index in self.files.items() if name not in self.damaged for part in index.replaces}

    def _open(self, name: str) -> PartIndex | str:
        """Return what to keep of a file; why it cannot be read; or "" if it is gone."""
        try:
            with open_parquet(self.folder / name) as file:
                if not file.schema.equals(self.schema):
                    return f"{self.folder / name}: has other columns than expected; delete it and run the same command again"
                groups = file.groups
                if any(group.total_byte_size > MAX_TABLE // 8 for group in groups):
                    return f"{self.folder / name}: a row group is unreasonably large; this program did not write it"
                columns = [c for c in ("sample_id", "batch", "reason") if c in self.schema.names]
                table = file.read(columns).combine_chunks()
                check_names(table["sample_id"], f"{self.folder / name}: sample")
                check_columns(file.path, table, self.schema)
                replaces = parse_json((file.schema.metadata or {}).get(_REPLACES, b"[]"), f"{self.folder / name}: metadata")
                if not isinstance(replaces, list) or not all(isinstance(n, str) and _FILE.fullmatch(n) for n in replaces):
                    return f"{self.folder / name}: names strange parts; this program did not write it"
        except FileNotFoundError:
            return ""
        except DamagedError as error:
            return _line(error)
        fault = pc.starts_with(table["reason"], FAULT) if "reason" in columns else pa.array([False] * len(table), pa.bool_())
        starts = np.cumsum([0, *(group.num_rows for group in groups)])
        batch = table["batch"][0].as_py() if len(table) else 0
        return PartIndex(_combine(table["sample_id"]), _combine(fault), starts, batch or 0, frozenset(replaces))

    def locations(self) -> pa.Table:
        """Return `sample_id`, `at` ("FILE:GROUP:ROW") and `fault` of every sample, once: sound rows before faults."""
        parts = []
        for name, index in self.look().items():
            group = np.repeat(np.arange(len(index.starts) - 1), np.diff(index.starts))
            row = np.arange(len(group)) - index.starts[:-1][group]
            text = (pa.array(x, pa.int64()).cast(pa.string()) for x in (group, row))
            location = pc.binary_join_element_wise(pa.array([name] * len(group), pa.string()), *text, ":")
            parts.append(pa.table({"sample_id": index.ids, "location": location, "fault": index.faults}))
        empty = pa.table(
            {"sample_id": pa.array([], pa.string()), "location": pa.array([], pa.string()), "fault": pa.array([], pa.bool_())}
        )
        return drop_duplicates(pa.concat_tables([empty, *parts]))

    def rows(self, ids: Sequence[str], locations: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return the rows of samples, pixels still encoded; None for a sample that is not there or cannot be read.

        Args:
            locations: where each lay when the pass began, or ""; what has moved since is looked up.
        """
        results: dict[str, dict[str, Any]] = {}
        places, damaged = dict(zip(ids, locations, strict=True)), set[str]()
        for wait in (*WAITS[:2], 0):
            anew = not any(places.values())
            places |= self._locate([sample for sample, place in places.items() if not place])
            for sample, place in sorted(places.items(), key=itemgetter(1)):
                row = self._row(place, damaged) if place else None
                if row is not None and row["sample_id"] == sample:
                    results[sample] = row
            places = {sample: place for sample, place in places.items() if sample not in results}
            if not places or (anew and all(_group_of(place) in damaged for place in places.values())):
                break
            if anew and any(place and _group_of(place) not in damaged for place in places.values()):
                time.sleep(wait)  # what was listed has gone
            places = dict.fromkeys(places, "")
        return [results.get(sample) for sample in ids]

    def _locate(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the location of each of a few samples, as `locations` gives it for all; "" if there is none."""
        requested = pa.array(ids, pa.string())
        sound, faults = {}, {}
        for name, index in self.look().items() if ids else ():
            for row in np.flatnonzero(pc.is_in(index.ids, value_set=requested).to_numpy(zero_copy_only=False)).tolist():
                group = int(np.searchsorted(index.starts, row, side="right")) - 1
                kind = faults if index.faults[row].as_py() else sound
                kind.setdefault(index.ids[row].as_py(), f"{name}:{group}:{row - index.starts[group]}")
        return {sample: sound.get(sample) or faults.get(sample, "") for sample in ids}

    def _row(self, place: str, damaged: set[str]) -> dict[str, Any] | None:
        """Return a row, or None if it is gone or its row group is damaged; such groups go to `damaged` and are not read again."""
        name, group, row = place.split(":")
        if not _FILE.fullmatch(name) or _group_of(place) in damaged:
            return None
        key, part = self._group
        if key != _group_of(place):
            try:
                part = self.group(name, int(group))
            except (FileNotFoundError, IndexError):  # merged meanwhile
                return None
            except DamagedError:
                damaged.add(_group_of(place))
                return None
            self._group = _group_of(place), part
        return part.slice(int(row), 1).to_pylist()[0] if int(row) < len(part) else None

    def group(self, name: str, number: int, columns: list[str] | None = None) -> pa.Table:
        """Return one row group of a file."""
        with open_parquet(self.folder / name) as file:
            return self._read(file, columns, number)

    def _read(self, file: Columns, columns: list[str] | None = None, group: int | None = None) -> pa.Table:
        """Return columns of an open file.

        Raises:
            DamagedError: it is damaged, or lacks a value that every row has.
        """
        table = file.read(columns, group)
        check_columns(file.path, table, pa.schema([self.schema.field(name) for name in self.plain_columns()]))
        return table

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Return columns of every sample, once, sorted by `sample_id`, which is one of them; `reason` decides between two rows."""
        columns = list(columns)
        for wait in (0, 0, *WAITS):
            time.sleep(wait)
            names = self.look()
            try:
                parts = map_threads(lambda name: self._columns(name, columns), names)
            except FileNotFoundError:  # merged meanwhile
                continue
            if any(name in self.damaged for name in names):  # what it replaced, if that is there, counts again
                continue
            result = pa.concat_tables([pa.schema([self.schema.field(c) for c in columns]).empty_table(), *parts])
            if "reason" in columns:
                result = result.append_column("fault", pc.starts_with(result["reason"], FAULT))
            return drop_duplicates(result)
        raise StoreError(f"{self.folder}: files keep changing; let only one command write to a run at a time")

    def _columns(self, name: str, columns: list[str]) -> pa.Table:
        try:
            with open_parquet(self.folder / name) as file:
                return self._read(file, columns)
        except DamagedError as error:
            self.damaged[name] = _line(error)
            return pa.schema([self.schema.field(c) for c in columns]).empty_table()

    def part(self, name: Iterable[str]) -> list[dict[str, Any]]:
        """Return the rows that `write` kept under this name; none if it is not there, or damaged."""
        with contextlib.suppress(FileNotFoundError, DamagedError):
            table = self._whole(_part_name(name))
            return table.to_pylist() if table.schema.equals(self.schema) else []
        return []

    def write(self, rows: list[dict[str, Any]], name: Iterable[str]) -> None:
        """Keep rows as one part; `name` is what its name is made of."""
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, self.schema, **self.options()) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=self.schema))
        write_atomically(self.folder / _part_name(name), sink.getvalue().to_pybytes())

    def options(self) -> dict[str, Any]:
        """Return options of the writer: pixels are compressed already, and statistics of them would be as large."""
        columns = self.plain_columns()
        return {
            "compression": {name: "zstd" if name in columns else "none" for name in self.schema.names},
            "use_dictionary": columns,
            "write_statistics": columns,
            "write_page_checksum": True,
        }

    def compact(self, whole: bool, shard_bytes: int, shard_parts: int) -> None:
        """Merge parts into shards, in the order of the plan, and delete the parts that a shard names.

        Args:
            whole: also merge what is too little for a full shard.
        """
        files = self.look()
        parts = sorted((n for n in files if n.startswith("part-")), key=lambda n: (files[n].batch, n))
        names, size = [], 0
        for name in parts:
            names.append(name)
            size += self.sizes[name]
            if size >= shard_bytes or len(names) >= shard_parts:
                self._merge(names)
                names, size = [], 0
        if whole and len(names) > 1:
            self._merge(names)
        self.look()
        self._delete(sorted(self.replaced() & set(self.sizes)))

    def _merge(self, parts: list[str]) -> None:
        """Write one shard of these parts; write none if one of them cannot be read."""
        name = f"shard-{hashlib.blake2b(' '.join(sorted(parts)).encode(), digest_size=16).hexdigest()}.parquet"
        schema = self.schema.with_metadata({_REPLACES: json.dumps(sorted(parts))})
        try:
            with atomic_file(self.folder / name) as path, pq.ParquetWriter(path, schema, **self.options()) as writer:
                waiting: list[pa.Table] = []
                for part in parts:
                    waiting.append(self._whole(part).replace_schema_metadata(schema.metadata))
                    if sum(table.nbytes for table in waiting) >= GROUP_BYTES:
                        writer.write_table(pa.concat_tables(waiting))
                        waiting = []
                if waiting:
                    writer.write_table(pa.concat_tables(waiting))
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # another driver was faster
                raise
        except DamagedError:  # left as it is, for `verify` to name it; the others are merged next time
            return

    def _whole(self, name: str) -> pa.Table:
        try:
            with open_parquet(self.folder / name) as file:
                return self._read(file)
        except DamagedError as error:
            self.damaged[name] = _line(error)
            raise

    def _delete(self, names: list[str]) -> None:
        map_threads(lambda name: remove(self.folder / name), names)

    def recomputed(self, columns: Sequence[str]) -> pa.Table:
        """Return `sample_id` and the digest of the pixels of each column ("" if damaged), of every sample, once."""
        tables = []
        for name, index in self.look().items():
            for number in range(len(index.starts) - 1):
                try:
                    part = self.group(name, number)
                except (FileNotFoundError, DamagedError) as error:
                    self.damaged[name] = _line(error)
                    continue
                digests = {c: pa.array(_digests(part[f"{c}_png"]), pa.string()) for c in columns}
                fault = pc.starts_with(part["reason"], FAULT) if "reason" in part.column_names else None
                tables.append(pa.table({"sample_id": part["sample_id"], **digests} | ({} if fault is None else {"fault": fault})))
        empty = pa.table({c: pa.array([], pa.string()) for c in ("sample_id", *columns)})
        return drop_duplicates(pa.concat_tables(tables)) if tables else empty


def _part_name(name: Iterable[str]) -> str:
    return f"part-{hashlib.blake2b(chr(0x1F).join(name).encode(), digest_size=16).hexdigest()}.parquet"


def _group_of(place: str) -> str:
    """Return FILE:GROUP of a location FILE:GROUP:ROW."""
    return place.rpartition(":")[0]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _combine(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _digests(column: pa.ChunkedArray) -> list[str | None]:
    """Return the digests of a column of PNGs, computed by several threads."""
    values = column.to_pylist()

    def some(part: list[bytes | None]) -> list[str | None]:
        return [None if data is None else _digest(data) for data in part]

    return [digest for part in map_threads(some, [values[i : i + 256] for i in range(0, len(values), 256)], 8) for digest in part]


def _digest(data: bytes) -> str:
    try:
        return pixel_digest(decode_image(data))
    except DamagedError:
        return ""


def drop_duplicates(table: pa.Table) -> pa.Table:
    """Return each `sample_id` once, sorted; of several rows the first that is no fault (column `fault`, which goes)."""
    fault = table["fault"] if "fault" in table.column_names else pa.chunked_array([np.zeros(len(table), bool)], pa.bool_())
    keys = pa.table({"sample_id": table["sample_id"], "fault": fault.cast(pa.int8()), "row": np.arange(len(table))})
    order = pc.sort_indices(keys, [("sample_id", "ascending"), ("fault", "ascending"), ("row", "ascending")])
    ids = _combine(table["sample_id"].take(order))
    first = np.ones(len(ids), bool)
    if len(ids) > 1:
        first[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    kept = table.take(order.filter(pa.array(first)))
    return kept.drop_columns(["fault"]) if "fault" in table.column_names else kept
