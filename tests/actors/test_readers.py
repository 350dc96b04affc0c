"""Readers under Ray Data make the batches that a trainer would make by itself, in order, and their errors arrive as themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from actors.placement import preflight
from actors.readers import read_with_ray
from syn4seg.config.placement import TrainingConfig
from syn4seg.errors import UserError
from syn4seg.segmenter.base import BaseViews
from syn4seg.segmenter.views import Augmentation
from syn4seg.stages.readers import read_ahead
from tests.shared_batch import DATASET, FOLD, joint_views


def read_drawn(kind, name):
    return DATASET.image(name), FOLD.to_index[DATASET.mask(name)]


def read_badly(kind, name):
    raise UserError(f"{name}: no mask")


def views(read, share=(0, 1)):
    return dataclasses.replace(joint_views(share), read=read)


def base_views(share):
    return BaseViews(DATASET, FOLD, DATASET.train, 8, Augmentation(32), 5, share)


@pytest.mark.slow
@pytest.mark.parametrize(("readers", "shared"), [(1, views(read_drawn)), (2, base_views((1, 2)))], ids=["joint", "base"])
def test_readers_give_the_same_batches_in_order(ray_cluster, readers, shared):
    steps = range(3, 14)
    for ahead, own in zip(list(read_with_ray(shared, readers)(steps)), read_ahead(shared, 0)(steps), strict=True):
        assert np.array_equal(ahead.images, own.images) and np.array_equal(ahead.labels, own.labels) and ahead.kinds == own.kinds


@pytest.mark.slow
def test_what_a_reader_cannot_read_is_said_as_it_was(ray_cluster):
    with pytest.raises(UserError, match=r"^\S+: no mask$"):
        next(iter(read_with_ray(views(read_badly), 1)(range(2))))


def test_readers_count_where_training_must_fit():
    training = TrainingConfig(workers=2, readers=3)
    preflight([], [{"CPU": 9.0}], training)
    with pytest.raises(UserError, match=r"needs 9 CPUs \(training 2 x 1, readers 6 x 1 \+ 1 for reading\), the cluster has 8"):
        preflight([], [{"CPU": 8.0}], training)
