"""The novel stage: independent of the order of arrival, blind to unlabeled pixels, and able to learn a new class."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from syn4seg.segmenter.network import Classifier, upsample
from syn4seg.segmenter.novel import NovelSchedule, Sample, imprint, train_novel

DIM, GRID, SIDE, BASE = 8, 6, 24, 2
DIRECTIONS = torch.eye(DIM)[:4] * 3  # background, two base classes, one novel class
SCHEDULE = NovelSchedule(steps=60, per_step={"support": 2, "synthetic": 2, "replay": 2})
BASE_MODEL = Classifier(DIRECTIONS[:3].clone(), torch.zeros(3))


def _sample(number, kind, classes, *, labels=None, weight=None):
    """Upright strips whose features point along the directions of `classes`, plus noise."""
    g = torch.Generator().manual_seed(number)
    grid = torch.tensor(classes).repeat_interleave(GRID // len(classes))[None].repeat(GRID, 1)
    features = DIRECTIONS[grid].permute(2, 0, 1) + 0.3 * torch.randn(DIM, GRID, GRID, generator=g)
    told = torch.tensor(labels or classes)
    told = told.repeat_interleave(SIDE // len(classes))[None].repeat(SIDE, 1)
    return Sample(f"{kind}-{number}", features.half(), told.numpy().astype(np.uint8), kind, weight)


def _samples():
    support = [_sample(i, "support", [0, 3]) for i in range(2)]
    synthetic = [_sample(10 + i, "synthetic", [3, i % 3]) for i in range(5)]
    replay = [_sample(20 + i, "replay", [i % 3, (i + 1) % 3]) for i in range(4)]
    return support + synthetic + replay


def _start():
    return imprint(BASE_MODEL, DIRECTIONS[3:4])


def _accuracy(classifier, seed=50):
    right = []
    for classes in ([0, 3], [1, 3], [2, 1]):
        s = _sample(seed, "support", classes)
        logits = upsample(classifier(s.features.float()[None]), (SIDE, SIDE))
        right.append((logits[0].argmax(0).numpy() == s.label).mean())
    return np.mean(right)


def test_a_class_imprinted_and_tuned_is_recognised_beside_the_base_classes():
    tuned = train_novel(_start(), _samples(), base_classes=BASE, schedule=SCHEDULE, seed=0)
    assert tuned.weight.shape == (4, DIM) and not tuned.weight.requires_grad
    assert _accuracy(tuned) > 0.93


def test_imprinting_keeps_the_base_rows_and_gives_novel_rows_their_direction_and_the_base_norm():
    prototypes = torch.rand(2, DIM) * 100
    got = imprint(BASE_MODEL, prototypes)
    assert torch.equal(got.weight[:3], BASE_MODEL.weight) and torch.equal(got.bias[:3], BASE_MODEL.bias)
    assert torch.allclose(got.weight[3:].norm(dim=1), BASE_MODEL.weight[1:].norm(dim=1).mean().expand(2))
    assert torch.allclose(torch.cosine_similarity(got.weight[3:], prototypes), torch.ones(2))


def test_the_order_of_arrival_changes_nothing():
    samples = _samples()
    a = train_novel(_start(), samples, base_classes=BASE, schedule=SCHEDULE, seed=0)
    torch.manual_seed(123)
    b = train_novel(_start(), samples[::-1], base_classes=BASE, schedule=SCHEDULE, seed=0)
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
    c = train_novel(_start(), samples, base_classes=BASE, schedule=SCHEDULE, seed=1)
    assert not torch.equal(a.weight, c.weight)


def test_unlabeled_pixels_teach_nothing():
    schedule = dataclasses.replace(SCHEDULE, distill=1.0)
    samples = [dataclasses.replace(s, label=np.full_like(s.label, 255)) for s in _samples()]
    start = _start()
    same = train_novel(start, samples, base_classes=BASE, schedule=schedule, seed=0)
    assert torch.equal(same.weight, start.weight) and torch.equal(same.bias, start.bias)


def test_pixels_of_weight_zero_teach_nothing():
    right = _samples()
    trust = np.zeros((SIDE, SIDE), np.float16)
    lies = [_sample(90 + i, "synthetic", [3, 1], labels=[1, 3], weight=trust) for i in range(3)]
    only_support = dataclasses.replace(SCHEDULE, distill=0.0)
    kept = [s for s in right if s.kind != "synthetic"]
    a = train_novel(_start(), kept, base_classes=BASE, schedule=only_support, seed=0)
    b = train_novel(_start(), kept + lies, base_classes=BASE, schedule=only_support, seed=0)
    assert torch.allclose(a.weight, b.weight, atol=1e-5)


def test_every_sample_of_a_kind_is_used_before_any_is_used_again():
    from syn4seg.segmenter.novel import _draw

    pool = [_sample(i, "replay", [0, 1]) for i in range(7)]
    drawn = [s.sample_id for step in range(7) for s in _draw(pool, "replay", step, 2, 0)]
    assert len(set(drawn[:7])) == 7 and len(set(drawn[7:])) == 7


@pytest.mark.parametrize(
    ("kind", "classes", "told", "key"),
    [("support", [1, 3], [0, 3], "merge_support"), ("replay", [3, 2], [0, 2], "merge_replay")],
)
def test_a_merged_background_protects_the_objects_that_a_kind_leaves_unlabelled(kind, classes, told, key):
    samples = [_sample(i, kind, classes, labels=told) for i in range(2)]
    plain = dataclasses.replace(SCHEDULE, distill=0.0, merge_support=False, merge_replay=False)
    scores = [
        _accuracy(train_novel(_start(), samples, base_classes=BASE, schedule=schedule, seed=0))
        for schedule in (plain, dataclasses.replace(plain, **{key: True}))
    ]
    assert scores[1] > scores[0] + 0.1


def test_distillation_keeps_base_pixels_closer_to_the_base_model():
    lies = [_sample(i, "support", [1, 3], labels=[2, 3]) for i in range(2)]  # base class 1 told as 2
    probe = _sample(77, "support", [1]).features.float()[None]
    before = BASE_MODEL(probe).softmax(1)
    gaps = []
    for weight in (0.0, 10.0):
        schedule = dataclasses.replace(SCHEDULE, distill=weight)
        after = train_novel(_start(), lies, base_classes=BASE, schedule=schedule, seed=0)(probe).softmax(1)
        gaps.append((after[:, :3] - before).abs().mean().item())
    assert gaps[1] < gaps[0] / 2


def test_a_bottleneck_is_trained_in_place_and_its_statistics_stay():
    torch.manual_seed(0)
    bottleneck = torch.nn.Sequential(
        torch.nn.Conv2d(DIM, DIM, 3, padding=1), torch.nn.BatchNorm2d(DIM), torch.nn.ReLU()
    )
    before = {k: v.clone() for k, v in bottleneck.state_dict().items()}
    schedule = dataclasses.replace(SCHEDULE, steps=5, bottleneck_lr=0.01)
    train_novel(_start(), _samples(), base_classes=BASE, schedule=schedule, seed=0, bottleneck=bottleneck)
    after = bottleneck.state_dict()
    assert not torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["1.running_mean"], before["1.running_mean"])


def test_user_errors_name_the_sample_and_the_remedy():
    with pytest.raises(ValueError, match=r"class index 9; expected 0\.\.3 or 255"):
        train_novel(
            _start(), [_sample(0, "support", [0, 3], labels=[0, 9])], base_classes=BASE, schedule=SCHEDULE, seed=0
        )
    with pytest.raises(ValueError, match="got no sample"):
        train_novel(_start(), [], base_classes=BASE, schedule=SCHEDULE, seed=0)
    with pytest.raises(ValueError, match="'fake' is unknown"):
        train_novel(_start(), [_sample(0, "fake", [0, 3])], base_classes=BASE, schedule=SCHEDULE, seed=0)
