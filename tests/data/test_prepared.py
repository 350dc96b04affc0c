"""A prepared folder: whatever is unprepared, damaged, stale or missing names its remedy."""

from __future__ import annotations

import json
import shutil

import pytest

from syn4seg.data.pascal import PascalDataset
from syn4seg.errors import UserError
from tests.official import truncate


def _no_manifest(folder):
    (folder / "manifest.json").unlink()


def _damaged_manifest(folder):
    (folder / "manifest.json").write_text("{")


def _old_format(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))


def _changed_list(folder):
    path = folder / "lists" / "val.txt"
    path.write_text(path.read_text()[:-1])


def _cut_index(folder):
    truncate(folder / "index.parquet")


def _new_official_list(folder):
    path = folder.parent / "benchmark_RELEASE" / "dataset" / "train.txt"
    path.write_text(path.read_text()[12:])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_no_manifest, "is not prepared"),
        (_damaged_manifest, "is damaged"),
        (_old_format, "has format 0"),
        (_changed_list, "is not the list that was prepared"),
        (_cut_index, "missing or damaged"),
        (_new_official_list, "is stale"),
    ],
)
def test_an_unprepared_damaged_or_stale_folder_names_the_remedy(copied, harm, words):
    harm(copied / "syn4seg-pascal")
    with pytest.raises(UserError, match=rf"{words}.*run `syn4seg prepare pascal {copied}`"):
        PascalDataset(copied)


def test_official_lists_may_be_put_away_once_prepared(copied):
    shutil.rmtree(copied / "benchmark_RELEASE")
    assert PascalDataset(copied).train


def test_missing_files_are_found_before_any_is_opened(copied):
    dataset = PascalDataset(copied)
    dataset.image_path(dataset.val[2]).unlink()
    with pytest.raises(UserError, match=rf"{dataset.val[2]}\.jpg is missing, and 0 more"):
        dataset.check()
    shutil.rmtree(dataset.folder / "masks")
    with pytest.raises(UserError, match=r"\.jpg is missing"):
        dataset.check()
    with pytest.raises(UserError, match=r"masks/.*\.png is missing.*prepare pascal"):
        dataset.mask(dataset.train[0])
    with pytest.raises(UserError, match="'2001_000001' is not in"):
        dataset.mask("2001_000001")
