"""The table of data sets: every name opens, unknown ones and missing roots are refused with the remedy."""

from __future__ import annotations

import pytest

from syn4seg.config.loading import load
from syn4seg.data.sources import DATASETS, DatasetSource, open_dataset
from syn4seg.errors import UserError
from syn4seg.stages.setup import is_prepared, load_dataset


def test_an_unknown_data_set_is_refused_with_the_known_ones_and_the_nearest():
    with pytest.raises(UserError, match=r"data.source=pascall: .*embedded, folder, pascal, coco; did you mean pascal\?"):
        load_dataset(load(None, ["data.source=pascall", "base.checkpoint=train"]))


@pytest.mark.parametrize("name", [name for name, source in DATASETS.items() if source.needs_root])
def test_a_data_set_of_files_needs_its_root(name):
    with pytest.raises(UserError, match=rf"data.root is empty, but data.source is '{name}': set data.root"):
        open_dataset(load(None, [f"data.source={name}", "base.checkpoint=train"]).data)


def test_only_a_data_set_that_is_prepared_from_official_files_can_be_unprepared(tmp_path):
    for name, source in DATASETS.items():
        config = load(None, [f"data.source={name}", f"data.root={tmp_path}", "base.checkpoint=train"])
        assert is_prepared(config) == (source.prepare is None)


def test_one_line_in_the_table_is_enough_for_a_new_data_set(monkeypatch):
    monkeypatch.setitem(DATASETS, "again", DatasetSource(DATASETS["embedded"].open, needs_root=False))
    config = load(None, ["data.source=again", "base.checkpoint=train", "data.train_images=30", "data.val_images=7"])
    dataset, fold = load_dataset(config)
    assert (len(dataset.train), len(dataset.val), len(fold.novel)) == (30, 7, 4)
