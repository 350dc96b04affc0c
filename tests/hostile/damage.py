"""What a disk, a transfer or a person may make of a value, of the bytes of a file, or of a Parquet table."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    *(
        "",
        " ",
        "~",
        "null",
        "true",
        "no",
        "nan",
        ".inf",
        "-1",
        "0",
        "1e400",
        "9" * 400,
        "0x10",
        "1_000",
        "[]",
        "{}",
        "[[]]",
        "{a: {}}",
    ),
    *(
        "!!bool foo",
        "!!int ''",
        "!!timestamp foo",
        "!!python/object:os.system x",
        "!!binary aGk=",
        "&a [*a]",
        "*b",
        "[" * 500,
        "{a: " * 300,
    ),
    *(
        "2026-11-29",
        "'",
        '"',
        "\\",
        "\x00",
        "\n",
        "a\nb: c",
        "../../etc/passwd",
        "/dev/zero",
        "~root",
        "é",
        "日本語",
        "\udcff",
        "A" * 5000,
    ),
    *(
        "- 1",
        "a: b: c",
        "? [1]\n: 2",
        "<<: 1",
        "!!set {a}",
        "%TAG",
        "---\n---",
        "1:30",
        "os:system",
        "1,2,3",
        "[1, 2, 3]",
        "embedded",
    ),
]


def harm(data: bytes, dice: random.Random) -> bytes:
    """Return bytes that may have become of a file."""
    kind, at = dice.randrange(9), dice.randrange(max(1, len(data)))
    if kind == 0:
        return b""
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data + dice.randbytes(dice.randrange(1, 200))
    if kind == 3:
        return bytes(len(data))
    if kind == 4:
        return dice.choice(
            [b"{}", b"[]", b"null", b"{}{}", b'"x"', b"3", b'{"support": 3}', b"\xff\xfe", b"[" * 5000, b'{"rows": [1]}']
        )
    if kind == 5:
        return dice.randbytes(min(len(data), 4096))
    harmed = bytearray(data)
    for _ in range(1 if kind == 6 else dice.randrange(2, 30)):
        if harmed:
            harmed[dice.randrange(len(harmed) if kind < 8 else min(len(harmed), 64))] = dice.randrange(256)
    return bytes(harmed)


def harm_table(data: bytes, dice: random.Random) -> bytes:
    """Return a sound Parquet file whose table is not the one that was written: as another program may leave it, or a forger."""
    table = pq.read_table(io.BytesIO(data))
    name = dice.choice(table.column_names)
    at, values, kind = table.column_names.index(name), table[name].to_pylist(), dice.randrange(12)
    if kind < 3:
        table = table.set_column(at, name, _of_another_type(len(values), dice))
    elif kind < 7:
        rows = range(len(values)) if dice.random() < 0.3 or not values else [dice.randrange(len(values))]
        for row in rows:
            values[row] = _strange(values[row], table.schema.field(at).type, dice)
        table = table.set_column(at, table.schema.field(at), _array(values, table.schema.field(at).type))
    elif kind == 7:
        table = table.drop_columns([name])
    elif kind == 8:
        table = table.rename_columns([dice.choice(["x", "sample_id", "reason"]) if n == name else n for n in table.column_names])
    elif kind == 9:
        rows = list(range(len(values)))
        table = table.take(pa.array(dice.choice([rows + rows, rows[:0], rows[1:], rows[::-1]]), pa.int64()))
    elif kind == 10:
        table = table.append_column("sample_id", _of_another_type(len(values), dice))
    else:
        table = table.replace_schema_metadata({"replaces": dice.choice([*WORDS, *_REPLACES]).encode("utf-8", "replace")})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=dice.choice([1, 3, 1000]), use_dictionary=dice.random() < 0.5)
    return out.getvalue()


_PART = f"part-{'0' * 32}.parquet"
_REPLACES = [json.dumps(names) for names in ([_PART], [_PART] * 9, ["../x"], [None], [[]], {"a": 1})]


def _of_another_type(rows: int, dice: random.Random) -> pa.Array:
    """Return a column that fits no schema of ours, or by chance."""
    value = dice.choice([None, 0, -1, 2**40, 1.5, float("nan"), True, "x", "", b"\xff", [1], {"a": 1}, "a star"])
    column = pa.array([value] * rows)
    return column.dictionary_encode() if isinstance(value, str) and dice.random() < 0.5 else column


def _strange(value: Any, kind: pa.DataType, dice: random.Random) -> Any:
    """Return another value of the type of a column, or null."""
    if dice.random() < 0.3:
        return None
    if pa.types.is_integer(kind):
        return dice.choice([0, -1, 255, 256, 2 ** (kind.bit_width - 1) - 1, -(2 ** (kind.bit_width - 1))])
    if pa.types.is_boolean(kind):
        return not value
    if pa.types.is_floating(kind):
        return dice.choice([0.0, -1.0, float("nan"), float("inf"), 1e300])
    data = harm(value if isinstance(value, bytes) else str(value or "").encode(), dice)
    if kind == pa.string() and dice.random() < 0.7:
        return dice.choice([*WORDS, "fault: x", "[3]", "3", "null", '{"a": NaN}']).encode("utf-8", "replace")
    return data


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return a column; its texts need not be UTF-8, as in a file that another program wrote."""
    if kind != pa.string():
        return pa.array(values, kind)
    column = pa.array([v.encode() if isinstance(v, str) else v for v in values], pa.binary())
    return pa.StringArray.from_buffers(len(column), *column.buffers()[1:], column.buffers()[0], column.null_count)
