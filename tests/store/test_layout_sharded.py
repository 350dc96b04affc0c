"""Both layouts of samples keep the same things; a run in shards is the run in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.graph import stream
from syn4seg.config.loading import load
from syn4seg.config.tree import annotated
from syn4seg.errors import UserError
from syn4seg.stages.results import verify_run
from syn4seg.stages.reuse import reuse
from syn4seg.store.files import as_path, write_json
from syn4seg.store.images import pixel_digest
from syn4seg.store.layout_files import FileSamples
from syn4seg.store.layout_sharded import ShardSamples
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import write_sealed
from tests.shared_samples import expect, fill, image_of, sample_of

BOTH = pytest.mark.parametrize("kind", [FileSamples, ShardSamples])


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


def sharded(run: RunDir, small, *keys):
    """The same prepared run, begun sharded."""
    config = load(None, [*small, "layout=sharded", *keys])
    write_sealed(run.config, annotated(config).encode())
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
