"""Parquet tables of a run: written whole, read with limits on what they may become in memory, all of them or piece by piece."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from syn4seg.errors import DamagedError
from syn4seg.schema import NULLABLE
from syn4seg.store.files import MAX_TABLE, explain_errors, one_line, open_regular, retry_stale
from syn4seg.store.seals import write_sealed

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

MAX_ROWS = 50_000_000
"""Rows of the largest Parquet table that is read from a run."""


def write_parquet(path: AnyPath, table: pa.Table) -> None:
    """Write a table and its seal, each atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_sealed(path, sink.getvalue().to_pybytes())


class Columns:
    """An open Parquet file that is read piece by piece. Texts and bytes are first read as dictionaries, so that a small file
    cannot become a large table before its true size is known.

    Attributes:
        schema: pa.Schema of the whole file.
        groups: metadata of every row group.
    """

    def __init__(self, path: AnyPath, source: Any):
        file = pq.ParquetFile(source, page_checksum_verification=True)
        facts = file.metadata
        self.path, self.schema = path, file.schema_arrow
        self.groups = [facts.row_group(i) for i in range(facts.num_row_groups)]
        if len(set(self.schema.names)) < len(self.schema.names):
            raise DamagedError(f"{path}: has two columns of one name; this program did not write it")
        if facts.num_rows > MAX_ROWS or any(pa.types.is_nested(field.type) for field in self.schema):
            raise DamagedError(
                f"{path}: has {facts.num_rows:,} rows, or lists in them; at most {MAX_ROWS:,} plain rows were "
                "expected; this program did not write it"
            )
        texts = [field.name for field in self.schema if field.type in _TEXTS]
        self._file = pq.ParquetFile(source, metadata=facts, read_dictionary=texts, page_checksum_verification=True)

    def read(self, columns: list[str] | None = None, group: int | None = None) -> pa.Table:
        """Return a table, of the whole file or of one row group.

        Raises:
            DamagedError: it lacks a column, or is larger than `MAX_TABLE` once it is decoded.
            pa.ArrowException: it is damaged; `open_parquet` makes a `DamagedError` of it.
        """
        names = self.schema.names if columns is None else columns
        lacking = sorted(set(names) - set(self.schema.names))
        if lacking:
            raise DamagedError(f"{self.path}: has no column {lacking[0]!r}; this program did not write it")
        rows = sum(g.num_rows for g in self.groups) if group is None else self.groups[group].num_rows
        encoded = sum(g.total_byte_size for g in (self.groups if group is None else [self.groups[group]]))
        fixed = sum(self._width(name) for name in names) * rows
        table = None
        if max(encoded, fixed) <= MAX_TABLE:
            table = self._file.read(columns) if group is None else self._file.read_row_group(group, columns)
        size = max(encoded, fixed) if table is None else fixed + sum(_text_bytes(column) for column in table.columns)
        if table is None or size > MAX_TABLE:
            raise DamagedError(
                f"{self.path}: holds {size:,} bytes, at most {MAX_TABLE:,} were expected; this program did not write it"
            )
        fields = [self.schema.field(name) for name in table.column_names]
        table = table.cast(pa.schema(fields, metadata=self.schema.metadata))
        table.validate(full=True)  # texts that are no UTF-8 among others
        return table

    def _width(self, name: str) -> int:
        kind = self.schema.field(name).type
        return 8 if kind in _TEXTS or pa.types.is_null(kind) else max(1, kind.bit_width // 8)


_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes that a column of dictionaries has once it is decoded; 0 for another one."""
    total = 0
    for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
        sizes = pc.fill_null(pc.binary_length(chunk.dictionary), 0).cast(pa.int64())
        if len(sizes):
            total += pc.sum(sizes.take(chunk.indices)).as_py() or 0
    return total


@contextlib.contextmanager
def open_parquet(path: AnyPath) -> Iterator[Columns]:
    """Open a Parquet file that is read piece by piece.

    Raises:
        FileNotFoundError: it is not there, or no longer (`StaleFileError`).
        StoreError: it cannot be read.
        DamagedError: it is damaged, or too large.
    """
    with explain_errors(path, "read"), contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_regular(path) if isinstance(path, Path) else path.fs.open(path.path, "rb"))
            yield Columns(path, opened)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (error.errno or (not isinstance(path, Path) and not _of_arrow(error))):
                raise
            raise DamagedError(f"{path}: damaged ({one_line(error)[:120]}); delete it and run the same command again") from None


def _of_arrow(error: BaseException) -> bool:
    """Return whether it was Arrow that could make no sense of a file; what it says of the file system itself has a number."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and "pyarrow" in frame.tb_frame.f_code.co_filename


def check_columns(path: AnyPath, table: pa.Table, schema: pa.Schema) -> None:
    """Check that the columns of a table have the types of a schema (integers of any width, if they fit), and hold null only where
    that may stand (`NULLABLE`); columns that only one of the two has do not matter.

    Raises:
        DamagedError: one does not.
    """
    for field in (field for field in schema if field.name in table.column_names):
        column = table[field.name]
        if column.type != field.type and not (pa.types.is_integer(column.type) and pa.types.is_integer(field.type)):
            raise DamagedError(
                f"{path}: column {field.name!r} is {column.type}, expected {field.type}; this program did not write it"
            )
        if column.null_count and field.name not in NULLABLE:
            raise DamagedError(f"{path}: column {field.name!r} has empty places; delete it and run the same command again")
        try:
            column.cast(field.type)
        except pa.ArrowInvalid:
            raise DamagedError(f"{path}: column {field.name!r} has too large numbers; this program did not write it") from None


def read_parquet(path: AnyPath, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Return a table, or some of its columns.

    Args:
        columns: their names; by default those of the schema, if one is given, else all.
        schema: what its columns must be, see `check_columns`.

    Raises:
        FileNotFoundError: it is not there.
        DamagedError: it is damaged, lacks a column, or is larger than `MAX_TABLE`.
    """

    def read() -> pa.Table:
        with open_parquet(path) as file:
            return file.read(schema.names if columns is None and schema is not None else columns)

    table = retry_stale(path, read)
    check_columns(path, table, schema or pa.schema([]))
    return table
