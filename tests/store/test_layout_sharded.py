"""Both layouts of samples keep the same things; parts and shards neither lose nor double a sample, whatever is cut short."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.graph import stream
from syn4seg.config.loading import load
from syn4seg.config.tree import annotated
from syn4seg.errors import UserError
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.stages.results import verify_run
from syn4seg.stages.reuse import reuse
from syn4seg.store.files import as_path, write_atomically, write_json
from syn4seg.store.images import pixel_digest
from syn4seg.store.layout_files import FileSamples
from syn4seg.store.layout_sharded import IMAGES, ShardSamples
from syn4seg.store.parquet_parts import PartStore
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredImage, StoredSample, check_names

BOTH = pytest.mark.parametrize("kind", [FileSamples, ShardSamples])


def image_of(number: int) -> StoredImage:
    pixels = np.random.default_rng(number).integers(0, 256, (6 + number % 3, 9, 3)).astype(np.uint8)
    return StoredImage(f"hdig-star-{number:05d}", "star", number // 4, pixels, {"retried": "float32"} if number % 5 == 0 else {})


def sample_of(number: int, reason: str = "") -> StoredSample:
    image = image_of(number)
    rng = np.random.default_rng(1000 + number)
    stages = () if reason.startswith("fault") else LABEL_COLUMNS[:-1] if reason else LABEL_COLUMNS
    labels = {stage: rng.integers(0, 5, image.pixels.shape[:2]).astype(np.uint8) for stage in stages}
    record = {
        "sample_id": image.sample_id,
        "class": "star",
        "class_id": 1,
        "prompt": "a star",
        "noise_seed": number,
        "batch": image.batch,
        "reason": reason,
        "audit": {"n": number},
        **({"image": pixel_digest(image.pixels)} if stages else {}),
        **{stage: pixel_digest(label) for stage, label in labels.items()},
    }
    return StoredSample(record, labels)


REASONS = {3: "target too small", 7: "fault: labeling: nan"}


def fill(samples, numbers, call: int = 3) -> None:
    """Writes samples as an actor would, a few per call."""
    numbers = list(numbers)
    for start in range(0, len(numbers), call):
        part = numbers[start : start + call]
        samples.write_images([image_of(n) for n in part if not REASONS.get(n, "").startswith("fault")])
        samples.write(0, [sample_of(n, REASONS.get(n, "")) for n in part])


def expect(samples, numbers, notes=("hdig-star-00007",)) -> None:
    """Exactly these samples are there, once each, with every pixel."""
    ids = [f"hdig-star-{n:05d}" for n in sorted(numbers)]
    assert samples.records(0)["sample_id"].to_pylist() == ids
    assert samples.complete(0, notes)["sample_id"].to_pylist() == ids
    assert samples.finished(0, [*ids, "other"], notes) == set(ids)
    made = samples.images()
    assert len(set(made["sample_id"].to_pylist())) == len(made)
    where = dict(zip(*made.select(["sample_id", "image_at"]).to_pydict().values(), strict=True))
    rows = [{"sample_id": s, "class": "star", "image_at": where.get(s, "")} for s in ids]
    for number, (sample, image) in zip(sorted(numbers), samples.read(0, rows), strict=True):
        wanted = sample_of(number, REASONS.get(number, ""))
        assert sample.record == wanted.record
        assert sample.labels.keys() == wanted.labels.keys()
        assert all(np.array_equal(sample.labels[s], wanted.labels[s]) for s in wanted.labels)
        if wanted.labels:
            np.testing.assert_array_equal(image, image_of(number).pixels)
        else:
            assert image is None


@pytest.fixture(params=["folder", "memory"])
def root(request, tmp_path):
    """A run directory in a folder, and one in fsspec's file system in memory."""
    if request.param == "folder":
        (tmp_path / "run").mkdir()
        yield tmp_path / "run"
        return
    path = as_path(f"memory://{tmp_path.name}/run")
    yield path
    path.fs.rm(path.path, recursive=True)


@BOTH
def test_what_is_written_is_read_back_from_any_file_system_also_by_another_process(root, kind):
    fill(kind(root), range(11))
    expect(kind(root), range(11))
    found = kind(root).read_images([image_of(5), image_of(50)])
    np.testing.assert_array_equal(found[0].pixels, image_of(5).pixels)
    assert found[0].audit == {"retried": "float32"} and found[1] is None
    assert sorted(kind(root).image_digests()) == sorted(pixel_digest(image_of(n).pixels) for n in range(11) if n != 7)


@BOTH
def test_writing_the_same_again_leaves_the_same_files(tmp_path, kind):
    fill(kind(tmp_path), range(6))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    fill(kind(tmp_path), range(6))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@BOTH
def test_a_fault_counts_only_while_its_note_is_there_and_its_repetition_replaces_it(tmp_path, kind):
    samples = kind(tmp_path)
    fill(samples, [6, 7, 8])
    expect(samples, [6, 7, 8])
    ids = [f"hdig-star-{n:05d}" for n in (6, 7, 8)]
    for again in (samples, kind(tmp_path)):
        assert again.finished(0, ids, []) == {ids[0], ids[2]}
        assert again.complete(0, [])["sample_id"].to_pylist() == [ids[0], ids[2]]
    samples.write_images([image_of(7)])
    samples.write(0, [sample_of(7)])
    for again in (samples, kind(tmp_path)):
        again.compact(0)
        assert again.finished(0, ids, []) == set(ids)
        assert again.records(0)["reason"].to_pylist() == ["", "", ""]


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


def test_a_damaged_image_in_a_shard_is_seen_and_made_again_on_the_way(tmp_path):
    fill(ShardSamples(tmp_path), range(4))
    (part, *_) = [p for p in tmp_path.glob("images/part-*") if "hdig-star-00000" in str(pq.read_table(p)["sample_id"])]
    table = pq.read_table(part)
    broken = [table["image_png"][0].as_py()[:-30], *table["image_png"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.column_names.index("image_png"), "image_png", pa.array(broken)), part)
    samples = ShardSamples(tmp_path)
    assert samples.read_images([image_of(0)]) == [None]
    digests, _ = samples.digests(0, samples.records(0), False)
    assert digests["image"].to_pylist()[0] == "" and all(digests["image"].to_pylist()[1:])


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


def test_strange_files_and_columns_are_no_samples(tmp_path):
    fill(ShardSamples(tmp_path), range(3))
    for name in ("part-x.parquet", "notes.txt", f".part-{'0' * 32}.parquet.abcd.partial"):
        (tmp_path / "images" / name).write_bytes(b"x")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "images" / f"part-{'1' * 32}.parquet")
    expect(ShardSamples(tmp_path), range(3))


def quiet(*_):
    return None


def sharded(run: RunDir, small, *keys):
    """The same prepared run, begun sharded."""
    config = load(None, [*small, "layout=sharded", *keys])
    write_atomically(run.config, annotated(config).encode())
    return config, RunDir(run.root)


def test_a_run_has_the_same_digest_in_both_layouts_and_leaves_few_files(finish, fresh, small, reference):
    run, names = fresh
    config, run = sharded(run, small)
    assert finish(config, run, names) == reference[0]
    assert len(list(run.root.rglob("*.png"))) == 0
    assert len(list(run.root.glob("images/*"))) == len(list(run.root.glob("draws/0/labels/*"))) == 1


class Stop(Exception):
    """A person pressing Ctrl-C at a known moment."""


def test_a_sharded_run_that_was_stopped_and_damaged_is_finished_by_the_same_command(finish, fresh, small, reference):
    run, names = fresh
    config, run = sharded(run, small, "placement.synthesis.batch=5")

    def stop_at_ten(done, *_):
        if done >= 10:
            raise Stop

    with pytest.raises(Stop):
        stream(config, run, names, 0, stop_at_ten)
    assert 10 <= len(RunDir(run.root).draw(0).done()) < 24
    for kind in ("images", "draws/0/labels"):
        (victim, *_) = sorted(run.root.glob(f"{kind}/part-*"))
        victim.write_bytes(victim.read_bytes()[:-5])
    assert finish(config, RunDir(run.root), names) == reference[0]


def test_another_layout_is_refused_but_its_images_can_be_taken_over(small, reference, tmp_path):
    old = RunDir(reference[1])
    config = load(None, [*small, "layout=sharded"])
    with pytest.raises(UserError, match="begun with layout=files"):
        old.check(config)
    new = RunDir(tmp_path / "new")
    new.open(config)
    assert reuse(old, new, config) == ["prompts", "images", "base"]
    assert sorted(new.samples.image_digests()) == sorted(old.samples.image_digests())
    back = RunDir(tmp_path / "back")
    back.open(load(None, small))
    assert reuse(new, back, load(None, small)) == ["prompts", "images", "base"]
    assert {p.name: p.read_bytes() for p in back.root.glob("images/*/*")} == {
        p.name: p.read_bytes() for p in old.root.glob("images/*/*")
    }


def test_verify_sees_what_is_wrong_in_a_sharded_run(finish, fresh, small, reference):
    run, names = fresh
    config, run = sharded(run, small)
    finish(config, run, names)
    (shard,) = run.root.glob("draws/0/labels/shard-*")
    good = shard.read_bytes()
    table = pq.read_table(shard)
    label = next(i for i, png in enumerate(table["label_png"].to_pylist()) if png)
    other = table["draft_png"][label].as_py()
    column = [other if i == label else png for i, png in enumerate(table["label_png"].to_pylist())]
    place = table.column_names.index("label_png")
    pq.write_table(table.set_column(place, "label_png", pa.array(column, pa.binary())), shard)
    sample = table["sample_id"][label].as_py()
    assert verify_run(RunDir(run.root))[1] == [f"draw 0: label of {sample} differs"]
    same = RunDir(run.root)
    assert verify_run(same, quick=True)[1] == [], "quick looks at no pixel"
    assert verify_run(same)[1] == [f"draw 0: label of {sample} differs"], "and leaves nothing for the full check to rely on"
    shard.write_bytes(good[: len(good) // 2])
    for quick in (False, True):
        problems = verify_run(RunDir(run.root), quick)[1]
        assert any(shard.name in line and "delete it" in line for line in problems)
        assert any(f"label of {sample} is missing" in line for line in problems)
    shard.unlink()
    assert finish(config, RunDir(run.root), names) == reference[0]
    write_json(run.root / "quarantined" / "hdig-ball-00000.json", {})
    assert verify_run(RunDir(run.root))[1] == [], "a note alone says nothing about a sample that is done"


def test_paths_are_the_same_whether_given_as_text_path_or_file_url(tmp_path):
    assert as_path(f"file://{tmp_path}") == as_path(str(tmp_path)) == as_path(tmp_path) == Path(tmp_path)
