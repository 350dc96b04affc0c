"""Parts and shards neither lose nor double a sample, whatever is cut short, damaged or strange."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from syn4seg.errors import UserError
from syn4seg.store.files import as_path, write_atomically
from syn4seg.store.layout_sharded import IMAGES, ShardSamples
from syn4seg.store.parquet_parts import PartStore
from syn4seg.store.samples import check_names
from tests.shared_samples import REASONS, expect, fill, image_of, sample_of


def test_parts_become_shards_of_the_wanted_size_in_the_order_of_the_plan_with_small_row_groups(tmp_path):
    fill(ShardSamples(tmp_path), range(60), call=2)
    size = sum(p.stat().st_size for p in tmp_path.glob("images/part-*"))
    samples = ShardSamples(tmp_path, shard_bytes=size // 3)
    samples.compact(0, whole=False)
    assert len(list(tmp_path.glob("images/shard-*"))) == 2, "the rest is too little for a shard"
    samples.compact(0)
    assert not list(tmp_path.rglob("part-*"))
    expect(samples, range(60))
    spans = []
    for path in tmp_path.glob("images/shard-*"):
        batches = pq.read_table(path, columns=["batch"])["batch"].to_pylist()
        assert batches == sorted(batches)
        spans.append((batches[0], batches[-1]))
    assert all(a[1] <= b[0] for a, b in zip(sorted(spans), sorted(spans)[1:], strict=False))


def test_a_shard_has_row_groups_that_one_sample_can_be_read_from(tmp_path, monkeypatch):
    import syn4seg.store.parquet_parts

    monkeypatch.setattr(syn4seg.store.parquet_parts, "GROUP_BYTES", 2000)
    fill(ShardSamples(tmp_path), range(40))
    ShardSamples(tmp_path).compact(0)
    (shard,) = tmp_path.glob("images/shard-*")
    assert pq.ParquetFile(shard).metadata.num_row_groups >= 4
    expect(ShardSamples(tmp_path), range(40))


def test_many_small_parts_become_a_shard_however_small_they_are(tmp_path):
    fill(ShardSamples(tmp_path), range(12), call=1)
    ShardSamples(tmp_path, shard_parts=4).compact(0, whole=False)
    assert not list(tmp_path.glob("draws/0/labels/part-*")) and len(list(tmp_path.glob("draws/0/labels/shard-*"))) == 3
    expect(ShardSamples(tmp_path), range(12))


@pytest.mark.parametrize("seed", range(4))
def test_a_merge_that_stops_at_any_point_neither_loses_nor_doubles_a_sample(tmp_path, seed):
    whole = tmp_path / "whole"
    whole.mkdir()
    fill(ShardSamples(whole), range(20))
    parts = {p.relative_to(whole): p.read_bytes() for p in whole.rglob("part-*")}
    ShardSamples(whole, shard_parts=3).compact(0)
    rng = np.random.default_rng(seed)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name, data in parts.items():  # the shards are there, and some of their parts still are
        if rng.random() < 0.5:
            (cut / name).write_bytes(data)
    shards = list(whole.rglob("shard-*"))
    lost = shards[int(rng.integers(len(shards)))]  # this one was not finished: its parts are all there
    (cut / lost.relative_to(whole)).rename(cut / lost.relative_to(whole).parent / f".{lost.name}.0123abcd.partial")
    for name in pq.ParquetFile(lost).schema_arrow.metadata[b"replaces"].decode()[2:-2].split('", "'):
        (cut / lost.relative_to(whole).parent / name).write_bytes(parts[lost.relative_to(whole).parent / name])
    expect(ShardSamples(cut), range(20))
    ShardSamples(cut, shard_parts=3).compact(0)
    expect(ShardSamples(cut), range(20))
    left = list(cut.rglob("part-*"))
    assert len(left) <= 2, "parts that a shard replaces are cleared away; one alone is not worth a shard"


def test_a_sample_that_two_drivers_wrote_is_there_once(tmp_path):
    fill(ShardSamples(tmp_path), range(10), call=4)
    fill(ShardSamples(tmp_path), range(2, 12), call=3)
    expect(ShardSamples(tmp_path), range(12))
    ShardSamples(tmp_path).compact(0)
    expect(ShardSamples(tmp_path), range(12))
    fill(ShardSamples(tmp_path), range(10), call=4)  # a retry that comes when its part is merged already
    expect(ShardSamples(tmp_path), range(12))


def test_a_reader_that_knows_old_places_finds_what_has_been_merged_since(root):
    fill(ShardSamples(root), range(9))
    reader = ShardSamples(root)
    images, labels = (dict(zip(*t.to_pydict().values(), strict=True)) for t in (reader.images(), reader.locations(0)))
    ShardSamples(root).compact(0)
    rows = [{"sample_id": s, "class": "star", "image_at": images.get(s, ""), "label_at": at} for s, at in labels.items()]
    for (sample, image), row in zip(reader.read(0, rows), rows, strict=True):
        number = int(row["sample_id"][-5:])
        assert sample.record == sample_of(number, REASONS.get(number, "")).record
        assert image is None or np.array_equal(image, image_of(number).pixels)


def test_polling_and_reading_go_on_while_parts_appear_and_are_merged(tmp_path):
    ids, done = [f"hdig-star-{n:05d}" for n in range(40)], threading.Event()

    def work() -> None:
        writer = ShardSamples(tmp_path, shard_parts=4)
        for number in range(40):
            fill(writer, [number])
            writer.compact(0, whole=number % 7 == 0)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    reader, seen = ShardSamples(tmp_path), set()
    while True:
        last = done.is_set()
        now = reader.finished(0, ids, ["hdig-star-00007"])
        assert seen <= now, "what is finished stays so"
        new = sorted(now - seen)
        for (sample, _), sample_id in zip(reader.read(0, [{"sample_id": s, "class": "star"} for s in new]), new, strict=True):
            assert sample.record["sample_id"] == sample_id
        seen = now
        if last:
            break
    thread.join()
    assert seen == set(ids)


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, -8, -1])
def test_a_file_that_is_cut_short_is_named_and_its_samples_are_not_done(tmp_path, keep):
    fill(ShardSamples(tmp_path), range(9))
    (victim, *_) = sorted(tmp_path.glob("draws/0/labels/part-*"))
    lost = pq.read_table(victim, columns=["sample_id"])["sample_id"].to_pylist()
    data = victim.read_bytes()
    victim.write_bytes(data[: int(len(data) * keep)] if isinstance(keep, float) else data[:keep])
    samples = ShardSamples(tmp_path)
    assert not set(lost) & set(samples.complete(0, ["hdig-star-00007"])["sample_id"].to_pylist())
    assert len(samples.records(0)) == 6
    manifest = samples.records(0)
    assert [victim.name in line for line in samples.digests(0, manifest, True)[1]] == [True]
    samples.compact(0)
    assert victim.is_file(), "only whole parts are merged"
    fill(samples, [int(s[-5:]) for s in lost], call=2)
    expect(ShardSamples(tmp_path), range(9))


def test_a_part_with_damaged_pixels_is_named_and_left_out_of_a_merge(root):
    fill(ShardSamples(root), range(9), call=3)
    images = as_path(str(root)) / "images"
    damaged = sorted(path.name for path in images.iterdir())[0]
    data = (images / damaged).read_bytes()
    middle = data.index(b"IDAT")
    write_atomically(images / damaged, data[:middle] + bytes(8) + data[middle + 8 :])
    samples = ShardSamples(root)
    samples.compact(0)
    assert list(samples._images.damaged) == [damaged] and (images / damaged).is_file()


def test_a_shard_whose_pages_are_damaged_hides_nothing_of_what_is_made_again_under_the_same_names(tmp_path):
    fill(ShardSamples(tmp_path), range(9))
    ShardSamples(tmp_path).compact(0)
    (shard,) = tmp_path.glob("draws/0/labels/shard-*")
    facts = pq.ParquetFile(shard).metadata.row_group(0).column(0)
    data = bytearray(shard.read_bytes())
    data[facts.data_page_offset + 20] ^= 0xFF
    shard.write_bytes(data)
    samples = ShardSamples(tmp_path)
    assert len(samples.complete(0, [])) == 0
    assert len(samples.records(0)) == 0
    fill(ShardSamples(tmp_path), range(9))
    assert len(ShardSamples(tmp_path).records(0)) == 9
    fill(samples, range(9))
    expect(samples, range(9))


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", ".x", "", "x\x00", "x\n", None])
def test_a_part_with_an_id_that_is_no_plain_name_is_not_read(tmp_path, name):
    rows = [{"sample_id": name, "class": "star", "batch": 0, "audit": "{}", "image": "0", "image_png": b""}]
    PartStore(tmp_path / "images", IMAGES).write(rows, ["x"])
    samples = ShardSamples(tmp_path)
    assert len(samples.images()) == 0
    assert [line for line in samples._images.damaged.values() if "cannot be part of a file name" in line]
    with pytest.raises(UserError, match="cannot be part of a file name"):
        check_names(pa.chunked_array([["fine", name]], pa.string()), "sample")


def test_a_shard_that_names_files_elsewhere_deletes_nothing(tmp_path):
    (tmp_path / "precious.parquet").write_bytes(b"mine")
    fill(ShardSamples(tmp_path), range(3))
    (part,) = tmp_path.glob("images/part-*")
    for replaces in ('["../precious.parquet"]', '{"a": 1}', "[1]", "not json"):
        table = pq.read_table(part)
        shard = tmp_path / "images" / f"shard-{'0' * 32}.parquet"
        pq.write_table(table.replace_schema_metadata({"replaces": replaces}), shard)
        ShardSamples(tmp_path).compact(0)
        assert (tmp_path / "precious.parquet").read_bytes() == b"mine" and part.is_file()
        assert len(ShardSamples(tmp_path).images()) == 3


@pytest.mark.parametrize("value", [None, b"{\xff}"])
def test_a_row_without_a_sound_value_in_every_column_costs_its_part_which_is_named(tmp_path, value):
    fill(ShardSamples(tmp_path), range(9))
    (part, *_) = sorted(tmp_path.glob("draws/0/labels/part-*"))
    table = pq.read_table(part)
    audits = pa.array([value, *(text.encode() for text in table["audit"].to_pylist()[1:])], pa.binary())
    texts = pa.StringArray.from_buffers(len(audits), *audits.buffers()[1:], audits.buffers()[0])
    at, lost = table.column_names.index("audit"), table["sample_id"].to_pylist()
    pq.write_table(table.set_column(at, table.schema.field(at), texts), part)
    samples = ShardSamples(tmp_path)
    rows = [{"sample_id": f"hdig-star-{number:05d}", "class": "star"} for number in range(9)]
    results = samples.read_or_errors(0, rows)
    assert [row["sample_id"] for row, found in zip(rows, results, strict=True) if isinstance(found, UserError)] == sorted(lost)
    assert len(samples.records(0)) == 9 - len(lost) and part.name in samples.digests(0, samples.records(0), False)[1][0]


def test_a_part_that_was_emptied_costs_its_samples_alone(tmp_path):
    fill(ShardSamples(tmp_path), range(9))
    lost = set()
    for folder in ("images", "draws/0/labels"):
        (part, *_) = sorted(tmp_path.glob(f"{folder}/part-*"))
        table = pq.read_table(part)
        lost |= set(table["sample_id"].to_pylist())
        pq.write_table(table.slice(0, 0), part)
    samples = ShardSamples(tmp_path)
    assert 0 < len(samples.images()) < 8 and len(samples.locations(0)) == 6
    assert not lost & set(samples.complete(0, ["hdig-star-00007"])["sample_id"].to_pylist())
    fill(samples, range(9))
    expect(ShardSamples(tmp_path), range(9))


def test_strange_files_and_columns_are_no_samples(tmp_path):
    fill(ShardSamples(tmp_path), range(3))
    for name in ("part-x.parquet", "notes.txt", f".part-{'0' * 32}.parquet.abcd.partial"):
        (tmp_path / "images" / name).write_bytes(b"x")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "images" / f"part-{'1' * 32}.parquet")
    expect(ShardSamples(tmp_path), range(3))
