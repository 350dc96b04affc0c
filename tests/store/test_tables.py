"""Tables come back as they were written; what this program did not write is refused before it grows."""

from __future__ import annotations

import pyarrow as pa
import pytest

from syn4seg.errors import UserError
from syn4seg.store import tables


def test_a_small_file_that_would_become_a_large_table_is_refused_before_it_is_one(tmp_path, monkeypatch):
    path, limit = tmp_path / "x.parquet", 2**22
    monkeypatch.setattr(tables, "MAX_TABLE", limit)
    table = pa.table({"a": pa.chunked_array([["x" * 10_000] * 1000] * 3), "n": range(3000)})
    tables.write_parquet(path, table)
    assert path.stat().st_size < 50_000
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match=r"x\.parquet: holds 30,0\S+ bytes, at most 4,194,304 were expected"):
        tables.read_parquet(path)
    assert pa.total_allocated_bytes() - before < limit
    assert tables.read_parquet(path, ["n"])["n"].to_pylist() == list(range(3000))
    monkeypatch.setattr(tables, "MAX_TABLE", 2**26)
    assert tables.read_parquet(path).equals(table, check_metadata=True)
    monkeypatch.setattr(tables, "MAX_ROWS", 2999)
    with pytest.raises(UserError, match="has 3,000 rows"):
        tables.read_parquet(path, ["n"])


def test_lists_in_a_table_are_refused(tmp_path):
    tables.write_parquet(tmp_path / "x.parquet", pa.table({"a": [[1] * 100_000] * 9}))
    with pytest.raises(UserError, match="lists in them"):
        tables.read_parquet(tmp_path / "x.parquet")


SCHEMA = pa.schema([("sample_id", pa.string()), ("class_id", pa.int32()), ("image", pa.string())])
SOUND = {"sample_id": ["a", "b"], "class_id": pa.array([1, 2], pa.int32()), "image": ["0", None]}
BAD_TEXT = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"class_id": pa.array([1, None], pa.int32())}, "'class_id' has empty places; delete it"),
        ({"class_id": ["1", "2"]}, "'class_id' is string, expected int32"),
        ({"class_id": [1, 2**40]}, "'class_id' has too large numbers"),
        ({"class_id": None}, "has no column 'class_id'"),
        ({"sample_id": BAD_TEXT}, "damaged .*UTF8"),
        ({"sample_id": [None, "b"]}, "'sample_id' has empty places"),
    ],
)
def test_a_table_that_is_not_of_its_schema_is_refused_in_one_sentence(tmp_path, columns, complaint):
    path = tmp_path / "x.parquet"
    tables.write_parquet(path, pa.table({key: column for key, column in (SOUND | columns).items() if column is not None}))
    with pytest.raises(UserError, match=rf"x\.parquet: .*{complaint}"):
        tables.read_parquet(path, schema=SCHEMA)


def test_a_table_of_its_schema_may_have_wider_integers_and_more_columns_but_no_name_twice(tmp_path):
    path = tmp_path / "x.parquet"
    tables.write_parquet(path, pa.table(SOUND | {"class_id": [1, 2], "more": [None, 3]}))
    assert tables.read_parquet(path, schema=SCHEMA).column_names == SCHEMA.names
    tables.write_parquet(path, pa.table([pa.array([1]), pa.array([2])], ["a", "a"]))
    with pytest.raises(UserError, match="two columns of one name"):
        tables.read_parquet(path)


def test_every_kind_of_column_comes_back_as_it_was_with_nulls(tmp_path):
    table = pa.table(
        {
            "s": ["a", None, "b"],
            "b": pa.array([b"x", None, b""]),
            "i": pa.array([1, None, 2], pa.int32()),
            "t": [True, None, False],
            "f": [1.5, None, 2.0],
            "e": pa.array([None] * 3, pa.string()),
        }
    )
    for part in (table, table.slice(0, 0)):
        tables.write_parquet(tmp_path / "x.parquet", part)
        assert tables.read_parquet(tmp_path / "x.parquet").equals(part)
