"""The base stage: novel classes never reach its loss, nothing depends on order or worker, and a stop costs nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.data.canvas import Canvas
from syn4seg.data.datasets import EmbeddedDataset, fold_of
from syn4seg.errors import UserError
from syn4seg.segmenter.backbones import Backbone
from syn4seg.segmenter.base import BaseSchedule, BaseViews, train_base
from syn4seg.segmenter.network import Segmenter
from syn4seg.segmenter.views import Augmentation, augment
from syn4seg.stages.readers import read_ahead
from tests import shared_batch

DATASET = EmbeddedDataset(24, 4)
FOLD = fold_of(DATASET, 2)
HOW = Augmentation(32)
SCHEDULE = BaseSchedule(epochs=3, batch=8, lr=0.02, head_factor=1.0)


def _segmenter(classes=13):
    torch.manual_seed(0)
    tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 4, 1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    return Segmenter(Backbone(tiny, 8, 4), classes, 8, ())


def _train(net=None, **changes):
    settings_, net = {"schedule": SCHEDULE, "augmentation": HOW, "seed": 5} | changes, net or _segmenter()
    train_base(net, DATASET, FOLD, DATASET.train, **settings_)
    return net


def _same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(0, 10_000), st.integers(0, 50))
def test_no_novel_index_ever_reaches_the_base_loss(number, seed, epoch):
    fold = fold_of(DATASET, number)
    labels = BaseViews(DATASET, fold, DATASET.train[:4], 4, HOW, seed)[epoch].labels
    assert set(np.unique(labels)) <= {*range(1 + len(fold.base)), 255}


def test_novel_objects_are_background_in_base_training():
    plain = Augmentation(64, scale=(1.0, 1.0), rotate=0, blur=0, flip=0)
    for sample_id in DATASET.train:
        labels = BaseViews(DATASET, FOLD, [sample_id], 1, plain, 0)[0].labels
        mask = DATASET.mask(sample_id)
        assert (labels[0][np.isin(mask, FOLD.novel)] == 0).all()
        assert np.array_equal(labels[0], FOLD.to_base_index[mask])


def test_a_view_is_named_by_seed_epoch_and_id_and_an_epoch_shows_every_image_once():
    views = BaseViews(DATASET, FOLD, DATASET.train, 8, HOW, 1)
    alone = BaseViews(DATASET, FOLD, DATASET.train[3:4], 1, HOW, 1)
    names = [name for step in range(2 * views.steps, 3 * views.steps) for name in views.names(step)]
    assert sorted(names) == sorted(DATASET.train) and names != DATASET.train
    step, place = divmod(names.index(DATASET.train[3]), 8)
    assert np.array_equal(alone[2].images[0], views[2 * views.steps + step].images[place])
    assert not np.array_equal(alone[2].images, alone[3].images)
    parts = [dataclasses.replace(views, share=(rank, 2))[5] for rank in range(2)]
    assert all(np.array_equal(part.images, views[5].images[rank::2]) for rank, part in enumerate(parts))


def test_readers_ahead_change_no_bit():
    """With dropout: readers must leave the generator alone that it draws from."""
    schedule = dataclasses.replace(SCHEDULE, epochs=2)
    nets = [shared_batch.segmenter() for _ in range(2)]
    here, ahead = (
        _train(net, schedule=schedule, read=lambda v, n=n: read_ahead(v, n)) for n, net in zip((0, 2), nets, strict=True)
    )
    assert _same(here, ahead) and not _same(here, shared_batch.segmenter())


def test_image_and_label_are_warped_together_and_outside_is_unlabeled():
    image = np.zeros((40, 60, 3), np.uint8)
    label = np.zeros((40, 60), np.uint8)
    image[10:30, 20:40], label[10:30, 20:40] = 255, 3
    outside = 0
    for seed in range(30):
        view, target = augment(image, label, np.random.default_rng(seed), Augmentation(48, blur=0))
        assert view.shape == (48, 48, 3) and target.shape == (48, 48)
        bright = view[..., 0] > 127
        inside = target != 255
        assert (bright[inside] == (target[inside] == 3)).mean() > 0.97
        outside += (~inside).sum()
    assert outside > 0


@pytest.mark.parametrize("native", [False, True])
def test_scales_are_uniform_in_the_logarithm_on_the_crop_or_uniform_on_the_native_size(native):
    label = np.ones((256, 256), np.uint8)
    label[88:168, 88:168] = 2  # 80 native pixels wide, 20 where the long side is 64
    how = Augmentation(512 if native else 64, scale=(0.5, 2.0), native=native, rotate=0, blur=0, flip=0)
    views = [augment(np.zeros((256, 256, 3), np.uint8), label, np.random.default_rng(s), how)[1] for s in range(400)]
    scales = np.array([np.sqrt((view == 2).sum()) / (80 if native else 20) for view in views])
    assert 0.45 < scales.min() < 0.6 and 1.85 < scales.max() < 2.1
    centre = scales.mean() - 1.25 if native else np.log(scales).mean()
    assert abs(centre) < 0.06


def test_every_part_of_the_image_can_be_cropped():
    label = np.arange(4, dtype=np.uint8).repeat(16)[None].repeat(64, 0)
    image = np.zeros((64, 64, 3), np.uint8)
    how = Augmentation(64, scale=(4.0, 4.0), rotate=0, blur=0, flip=0)
    seen = {int(v) for s in range(40) for v in np.unique(augment(image, label, np.random.default_rng(s), how)[1])}
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_training_continues_bit_for_bit(tmp_path, optimizer):
    schedule = dataclasses.replace(SCHEDULE, optimizer=optimizer, warmup=0.1, background_weight=0.5)
    whole = _train(schedule=schedule)

    class Stop(Exception):
        pass

    def stop(facts):
        if facts["epoch"] == 2:
            raise Stop

    path = tmp_path / "base.pt"
    with pytest.raises(Stop):
        _train(schedule=schedule, checkpoint=path, progress=stop)
    rest = []
    torch.manual_seed(99)
    again = _train(schedule=schedule, checkpoint=path, progress=rest.append)
    assert [r["epoch"] for r in rest] == [3] and _same(whole, again)
    assert not again.training and not _same(whole, _segmenter())
    with pytest.raises(UserError, match="seed was 5, now 6"):
        _train(schedule=schedule, checkpoint=path, seed=6)


def test_the_labels_that_were_trained_on_are_counted_also_across_a_stop(tmp_path):
    expected = np.zeros(256, np.int64)
    views = BaseViews(DATASET, FOLD, DATASET.train, 8, HOW, 5)
    for step in range(SCHEDULE.epochs * views.steps):
        expected += np.bincount(views[step].labels.ravel(), minlength=256)

    def train(epochs):
        return train_base(
            _segmenter(),
            DATASET,
            FOLD,
            DATASET.train,
            schedule=SCHEDULE,
            augmentation=HOW,
            seed=5,
            checkpoint=tmp_path / "c.pt",
            progress=epochs,
        )

    def stop(facts):
        if facts["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stop)
    seen = train(None)
    assert np.array_equal(seen, expected) and seen[13:255].sum() == 0


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    net = _segmenter()
    torch.manual_seed(3)
    _train(net)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("cached", [None, Canvas(32)])
def test_a_frozen_backbone_keeps_weights_and_statistics(cached):
    net = _segmenter()
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    _train(net, freeze_backbone=True, cached_on=cached, bfloat16=True)
    assert all(torch.equal(v, before[k]) for k, v in net.backbone.state_dict().items())
    assert not torch.equal(net.weight, _segmenter().weight)


def test_cached_features_are_computed_once_per_image_and_only_when_needed():
    net, seen = _segmenter(), []
    net.backbone.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    _train(net, freeze_backbone=True, cached_on=Canvas(32))
    assert seen == [2] * len(DATASET.train)


def test_user_errors_name_key_value_and_remedy():
    with pytest.raises(ValueError, match="has 5 classes; expected 13"):
        _train(_segmenter(5))
    with pytest.raises(ValueError, match="need freeze_backbone"):
        _train(cached_on=Canvas(32))
    with pytest.raises(UserError, match=r"fewer than base\.batch=64"):
        _train(schedule=BaseSchedule(1, 64))
