"""Samples page by page: damage costs its samples alone, and no time; names of classes without the data set."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from syn4seg.config.loading import load
from syn4seg.config.tree import annotated
from syn4seg.errors import DamagedError, UserError
from syn4seg.report.page import write_report
from syn4seg.report.reading import class_names, exact_class_names, read_pages, read_records
from syn4seg.store.layout_files import FileSamples
from syn4seg.store.parquet_parts import PartStore
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import write_sealed
from tests.shared_exports import made_run

SAMPLES, GROUP = 24, 4
AUDIT = {"lambda_keep": 0.5, "nothing": None}


def all_samples(run: RunDir) -> list:
    """Return all samples in the order of the plan, a row group per page."""
    records = read_records(run, 0).sort_by([("batch", "ascending"), ("sample_id", "ascending")])
    return [sample for page in read_pages(RunDir(run.root), 0, records, GROUP) for sample in page]


@pytest.fixture
def counted(monkeypatch):
    """The calls while samples are read: seconds slept, listings of a folder, row groups that could not be read."""
    slept, looked, failed = [], [], []
    look, group = PartStore.look, PartStore.group

    def counting(self, name, number, columns=None):
        try:
            return group(self, name, number, columns)
        except DamagedError:
            failed.append((name, number))
            raise

    monkeypatch.setattr("syn4seg.store.parquet_parts.time.sleep", lambda seconds: slept.append(seconds) if seconds else None)
    monkeypatch.setattr(PartStore, "look", lambda self: looked.append(1) or look(self))
    monkeypatch.setattr(PartStore, "group", counting)
    return slept, looked, failed


def sharded(tmp_path, counted, folder: str):
    """A run in row groups of `GROUP` samples, and the one file of a folder of it."""
    run, _, truth = made_run(tmp_path, "sharded", samples=SAMPLES, reasons={})
    for calls in counted:
        calls.clear()
    (part,) = (run.root / folder).glob("part-*.parquet")
    pq.write_table(
        pq.read_table(part), part, row_group_size=GROUP, compression="none", use_dictionary=False, write_page_checksum=True
    )
    return run, part, list(truth)


@pytest.mark.parametrize(("folder", "column"), [("draws/0/labels", "label_png"), ("images", "image_png")])
def test_damaged_row_groups_are_read_once_each_without_waiting_and_cost_their_samples_alone(tmp_path, counted, folder, column):
    run, part, ids = sharded(tmp_path, counted, folder)
    facts, data, broken = pq.ParquetFile(part).metadata, bytearray(part.read_bytes()), (1, 2, 4)
    for group in broken:
        chunk = facts.row_group(group).column(facts.schema.names.index(column))
        data[chunk.data_page_offset + chunk.total_compressed_size - 9] ^= 0xFF  # in the last page
    part.write_bytes(data)
    samples, (slept, looked, failed) = all_samples(run), counted
    lost = {ids[i] for group in broken for i in range(group * GROUP, (group + 1) * GROUP)}
    assert {sample.record["sample_id"] for sample in samples if sample.damage} == lost
    assert all((sample.image is None) == bool(sample.damage) == (not sample.labels) for sample in samples)
    assert all(sample.record["sample_id"] in sample.damage for sample in samples if sample.damage)
    assert all(sample.record["audit"] == AUDIT for sample in samples)
    assert slept == [] and sorted(failed) == [(part.name, group) for group in broken]
    assert len(looked) <= 2 + len(broken)


def test_a_shard_without_its_end_is_looked_for_a_few_times_a_page_without_waiting(tmp_path, counted):
    run, part, _ = sharded(tmp_path, counted, "draws/0/labels")
    part.write_bytes(part.read_bytes()[:-100])
    samples, (slept, looked, _) = all_samples(run), counted
    assert len(samples) == SAMPLES and all(sample.damage and sample.record["audit"] == AUDIT for sample in samples)
    assert slept == [] and len(looked) <= 2 + 3 * SAMPLES // GROUP


def test_what_is_listed_and_gone_is_waited_for(tmp_path, counted, monkeypatch):
    run, _, _ = sharded(tmp_path, counted, "draws/0/labels")
    group, gone = PartStore.group, iter([True, True])

    def sometimes(self, name, number, columns=None):
        if next(gone, False):
            raise FileNotFoundError(name)
        return group(self, name, number, columns)

    monkeypatch.setattr(PartStore, "group", sometimes)
    records = read_records(run, 0).slice(0, 1)
    ((sample,),) = read_pages(RunDir(run.root), 0, records)
    assert sample.damage == "" and sample.image is not None and counted[0] == [0.3]


@pytest.mark.parametrize("audit", ['{"a": 1}', "no JSON", None])
def test_a_damaged_file_makes_nobody_read_the_others_again_and_keeps_what_the_record_says(tmp_path, monkeypatch, audit):
    run, _, truth = made_run(tmp_path, reasons={})
    bad = next(iter(truth))
    run.draw(0).label("draft", truth[bad].class_name, bad).write_bytes(b"no picture")
    read, calls = FileSamples._record, []
    monkeypatch.setattr(FileSamples, "_record", lambda self, *place: calls.append(place) or read(self, *place))
    records = read_records(run, 0)
    texts = [audit if s == bad else "{}" for s in records["sample_id"].to_pylist()]
    records = records.set_column(records.column_names.index("audit"), "audit", pa.array(texts, pa.string()))
    (page,) = read_pages(run, 0, records)
    assert len(calls) == len(page) == len(truth)
    assert [sample.record["sample_id"] for sample in page if sample.damage] == [bad]
    (sample,) = [sample for sample in page if sample.damage]
    assert "draft" in sample.damage and sample.record["audit"] == ({"a": 1} if audit == '{"a": 1}' else {})


def test_without_results_and_data_set_the_novel_classes_have_the_names_of_their_prompts(tmp_path):
    run, config, _ = made_run(tmp_path)
    names = ("background", "cat", "dog", "toy car", "bird.x")
    assert class_names(run, config) == exact_class_names(run, config) == names
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match="data"):
        exact_class_names(run, config)
    assert class_names(run, config) == ("background",)
    columns = pa.schema([("class_id", pa.int32()), ("class", pa.string())])
    rows = {"class_id": [4, 3, 3, 1000], "class": ["bird.x", "toy car", "toy car", "strange"]}
    pq.write_table(pa.table(rows, columns), run.prompts)
    assert class_names(run, config) == ("background", "class 1", "class 2", "toy car", "bird.x")
    pq.write_table(pa.table(rows | {"class_id": [4, 3, 3, None]}, columns), run.prompts)
    with pytest.raises(UserError, match=r"prompts\.parquet: column 'class_id' has empty places"):
        class_names(run, config)
    run.results.write_text(json.dumps({"classes": names}))
    assert class_names(run, config) == exact_class_names(run, config) == names


def test_an_unfinished_run_without_its_data_set_has_a_report(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    run = RunDir(tmp_path / "run")
    run.results.unlink()
    config = load(run.config, ["data.source=folder", f"data.root={tmp_path}/none", "base.checkpoint=train"])
    write_sealed(run.config, annotated(config).encode())
    target, damage = write_report(RunDir(run.root), 0, None, lambda *_: None)
    assert not damage and "class 1" in target.read_text()
