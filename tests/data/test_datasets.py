"""Folds and the embedded data set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syn4seg.data.datasets import EmbeddedDataset, Fold, class_areas, extended_fold, fold_of
from syn4seg.errors import UserError


@given(st.sets(st.integers(1, 40), min_size=1, max_size=30), st.data())
def test_class_indices_are_background_then_base_then_novel_each_by_ascending_id(ids, data):
    novel = tuple(sorted(k for k in ids if data.draw(st.booleans())))
    base = tuple(sorted(set(ids) - set(novel)))
    fold = Fold(tuple(f"c{k}" for k in range(1, 41)), base, novel)
    expected = {0: 0, 255: 255} | {k: i + 1 for i, k in enumerate(base)} | {k: len(base) + 1 + i for i, k in enumerate(novel)}
    assert fold.to_index.dtype == np.uint8
    assert {k: int(fold.to_index[k]) for k in expected} == expected
    assert all(fold.to_index[k] == 255 for k in range(256) if k not in expected)
    assert all(fold.to_base_index[k] == (0 if k in novel else fold.to_index[k]) for k in range(256))
    assert fold.index_names == ("background", *(f"c{k}" for k in base), *(f"c{k}" for k in novel))
    assert list(fold.novel_indices) == [int(fold.to_index[k]) for k in novel]


def test_the_folds_of_the_embedded_world_partition_its_classes():
    dataset = EmbeddedDataset(1, 1)
    novel = [k for n in range(4) for k in fold_of(dataset, n).novel]
    assert sorted(novel) == list(range(1, 17))
    with pytest.raises(UserError, match="folds fold0, fold1, fold2, fold3"):
        fold_of(dataset, 4)


def test_an_embedded_image_depends_on_its_name_alone():
    small, large = EmbeddedDataset(3, 2), EmbeddedDataset(900, 50)
    assert small.train == large.train[:3] and small.val == large.val[:2]
    image, mask = small.image("train-000002"), small.mask("train-000002")
    assert image.shape == (64, 64, 3) and mask.shape == (64, 64) and image.dtype == mask.dtype == np.uint8
    assert np.array_equal(image, large.image("train-000002")) and not np.array_equal(image, small.image("val-000002"))
    with pytest.raises(UserError, match="test-000001"):
        small.image("test-000001")


def test_areas_are_shares_of_the_whole_image_without_background_and_unlabeled():
    mask = np.zeros((10, 10), np.uint8)
    mask[:2], mask[5, :5], mask[9] = 3, 7, 255
    assert class_areas(mask) == {3: 0.2, 7: 0.05}
    dataset = EmbeddedDataset(4, 1)
    for sample_id in dataset.train:
        assert dataset.areas(sample_id) == class_areas(dataset.mask(sample_id))


def test_an_extended_fold_gives_a_model_s_classes_their_own_indices_and_knows_them_by_name():
    fold = extended_fold(Fold(("kite", "traffic light", "sky"), (), (1,)), ("road", "TrafficLight", "car"))
    assert fold.index_names == ("background", "road", "TrafficLight", "car", "kite")  # in the order of the model's rows
    assert fold.to_index[[0, 1, 2, 3, 255]].tolist() == [0, 4, 2, 255, 255]  # "sky" is neither new nor the model's
    assert fold.to_base_index[[0, 1, 2]].tolist() == [0, 0, 2]
    with pytest.raises(UserError, match="has learned 'kite' already"):
        extended_fold(Fold(("kite",), (), (1,)), ("Kite",))
    with pytest.raises(UserError, match="255 classes in all; a mask has values for 254"):
        extended_fold(Fold(("kite",), (), (1,)), [f"c{i}" for i in range(254)])
