"""The novel stage: independent of the order of arrival, blind to unlabeled pixels, and able to learn a new class."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from syn4seg.errors import UserError
from syn4seg.seeds import seeded
from syn4seg.segmenter.losses import distillation, pixel_loss
from syn4seg.segmenter.network import Classifier, upsample
from syn4seg.segmenter.novel import KINDS, NovelSchedule, NovelTraining, TrainingSample, imprint, train_novel

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
    return TrainingSample(f"{kind}-{number}", features.half(), told.numpy().astype(np.uint8), kind, weight)


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


def _slowly(start, samples, planned, schedule, seed):
    """The rule written out: every step builds its pools anew from what was planned and accepted."""
    rows = 1 + BASE
    base = Classifier(start.weight[:rows], start.bias[:rows])
    weight, bias = start.weight.clone().requires_grad_(), start.bias.clone().requires_grad_()
    top = schedule.lr * base.weight.square().mean().sqrt().item()
    adam = torch.optim.Adam([weight, bias], lr=top)
    for step in range(schedule.steps):
        ended = schedule.ramp == 0 or step + 1 >= schedule.ramp * schedule.steps
        first = len(planned) if ended else math.ceil(len(planned) * (step + 1) / (schedule.ramp * schedule.steps))
        batch = []
        for kind in KINDS:
            pool = [s for s in samples if s.kind == kind and (kind != "synthetic" or s.sample_id in planned[:first])]
            pool.sort(key=lambda s: s.sample_id)
            for place in range(step * schedule.per_step[kind], (step + 1) * schedule.per_step[kind]) if pool else ():
                turn, at = divmod(place, len(pool))
                batch.append(pool[seeded("novel", seed, kind, turn).permutation(len(pool))[at]])
        x = torch.stack([s.features for s in batch]).float()
        label = torch.from_numpy(np.stack([s.label for s in batch]))
        logits = Classifier(weight, bias)(x)
        merged = torch.zeros(len(batch), len(start.weight), dtype=torch.bool)
        for n, s in enumerate(batch):
            merged[n, :rows] = s.kind == "support"
            merged[n, rows:] = True
            for k in range(rows, len(start.weight)):
                if s.kind == "support" and (s.label == k).any():
                    merged[n, k] = False
            merged[n, 0] = True
        loss = pixel_loss(upsample(logits, (SIDE, SIDE)), label, merged=merged)
        pure = (label < rows).reshape(len(batch), GRID, SIDE // GRID, GRID, SIDE // GRID).all(4).all(2)
        loss = loss + schedule.distill * distillation(logits, base(x), pure)
        adam.param_groups[0]["lr"] = top * (0.5 + 0.5 * math.cos(math.pi * step / schedule.steps))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return Classifier(weight.detach(), bias.detach())


RAMPED = dataclasses.replace(SCHEDULE, steps=12, ramp=0.8)


def _planned(count=17):
    """Planned ids in no order at all, the accepted ones among them as samples, and the others."""
    ids = [f"synthetic-{i}" for i in random.Random(5).sample(range(100, 200), count)]
    accepted = [name for i, name in enumerate(ids) if i % 4 != 1]
    made = [_sample(int(name[10:]), "synthetic", [3, int(name[10:]) % 3]) for name in accepted]
    return ids, [s for s in _samples() if s.kind != "synthetic"], {s.sample_id: s for s in made}


def _same(a, b):
    return torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


@pytest.mark.parametrize("ramp", [0.0, 0.3, 0.8, 1.0])
def test_the_rule_of_the_ramp_is_what_the_module_says(ramp):
    planned, fixed, made = _planned()
    schedule = dataclasses.replace(RAMPED, ramp=ramp)
    samples = [*fixed, *made.values()]
    got = train_novel(_start(), samples, planned=planned, base_classes=BASE, schedule=schedule, seed=3)
    assert _same(got, _slowly(_start(), samples, planned, schedule, 3))


def test_without_a_ramp_the_order_of_the_plan_does_not_count():
    planned, fixed, made = _planned()
    schedule = dataclasses.replace(RAMPED, ramp=0.0)
    a, b = (
        train_novel(_start(), [*fixed, *made.values()], planned=ids, base_classes=BASE, schedule=schedule, seed=3)
        for ids in (planned, None)
    )
    assert _same(a, b)


def _training(planned, fixed, schedule=RAMPED):
    return NovelTraining(_start(), fixed, planned, base_classes=BASE, schedule=schedule, seed=3)


def _tell(training, names, made):
    for name in names:
        training.record_verdict(name, name in made, made.get(name))


@pytest.mark.parametrize("ramp", [0.0, 0.8, 1.0])
def test_when_and_in_which_order_verdicts_arrive_changes_no_bit(ramp):
    planned, fixed, made = _planned()
    schedule = dataclasses.replace(RAMPED, ramp=ramp)
    at_once = train_novel(_start(), [*fixed, *made.values()], planned=planned, base_classes=BASE, schedule=schedule, seed=3)
    for seed in range(6):
        dice, training = random.Random(seed), _training(planned, fixed, schedule)
        coming = dice.sample(planned, len(planned)) if seed % 2 else list(planned)
        early = 0
        while not training.finished:
            if coming and (not training.ready or dice.random() < 0.3):
                count = dice.choice((1, 2, 5))
                _tell(training, coming[:count], made)
                coming = coming[count:]
            elif training.ready and dice.random() < 0.9:
                early += bool(coming)
                training.step()
        assert _same(training.classifier, at_once)
        assert (early > 0) == (ramp > 0) or seed % 2  # in the order of the plan, a ramp lets steps go before the last label


def test_a_ramp_needs_verdicts_alone_and_a_rejected_sample_counts_as_arrived():
    planned, fixed, _ = _planned()
    training = _training(planned, fixed)
    while not training.finished:
        for name in planned[: training.required]:
            assert name in training.accepted or not training.ready
            training.record_verdict(name, False)
        assert training.ready
        training.step()
    only_fixed = train_novel(_start(), fixed, base_classes=BASE, schedule=RAMPED, seed=3)
    assert _same(training.classifier, only_fixed)


@pytest.mark.parametrize("ramp", [0.0, 0.8])
def test_a_training_stopped_after_any_step_goes_on_bit_for_bit(ramp):
    planned, fixed, made = _planned()
    schedule = dataclasses.replace(RAMPED, ramp=ramp)
    whole = train_novel(_start(), [*fixed, *made.values()], planned=planned, base_classes=BASE, schedule=schedule, seed=3)
    first = _training(planned, fixed, schedule)
    _tell(first, planned, made)
    for stopped in range(schedule.steps):
        again = _training(planned, fixed, schedule)
        again.load_state(first.state())
        _tell(again, planned[: again.required], made)
        assert again.ready
        again.step()
        assert again.steps_done == stopped + 1
        _tell(again, planned, made)
        while stopped % 4 == 0 and not again.finished:
            again.step()
        assert stopped % 4 or _same(again.classifier, whole)
        first.step()
    assert _same(first.classifier, whole)


def test_a_checkpoint_that_relied_on_another_verdict_is_not_continued():
    planned, fixed, made = _planned()
    first = _training(planned, fixed)
    _tell(first, planned, made)
    for _ in range(6):
        first.step()
    mended = {**made, planned[1]: _sample(7, "synthetic", [3, 0])}  # was rejected
    mended[planned[1]] = dataclasses.replace(mended[planned[1]], sample_id=planned[1])
    again = _training(planned, fixed)
    again.load_state(first.state())
    _tell(again, planned, mended)
    again.step()
    assert again.steps_done == 1


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


@pytest.mark.parametrize(("corners", "stride"), [(False, 2), (False, 3), (True, 23)])
def test_with_a_label_stride_the_pixels_between_teach_nothing(corners, stride):
    """The middle of every block of pixels counts; with corner cells on corner pixels, both ends do."""
    schedule = dataclasses.replace(SCHEDULE, steps=5, label_stride=stride, distill=0.0)
    start, first = dataclasses.replace(_start(), align_corners=corners), 0 if corners else stride // 2
    counted = np.zeros((SIDE, SIDE), bool)
    counted[first::stride, first::stride] = True
    assert counted.sum() == (4 if corners else (SIDE // stride) ** 2)

    def train(labels):
        samples = [dataclasses.replace(s, label=labels(s)) for s in _samples()]
        return train_novel(start, samples, base_classes=BASE, schedule=schedule, seed=0)

    all_of_them = train(lambda s: s.label)
    assert torch.equal(train(lambda s: np.where(counted, s.label, 3).astype(np.uint8)).weight, all_of_them.weight)
    assert not torch.equal(train(lambda s: np.where(counted, 3, s.label).astype(np.uint8)).weight, all_of_them.weight)


def test_every_sample_of_a_kind_is_used_before_any_is_used_again():
    from syn4seg.segmenter.novel import draw_places

    drawn = [place for step in range(7) for place in draw_places(7, "replay", step, 2, 0)]
    assert len(set(drawn[:7])) == 7 and len(set(drawn[7:])) == 7


@pytest.mark.parametrize(
    ("kind", "classes", "told", "key"),
    [
        ("support", [1, 3], [0, 3], "merge_base"),
        ("synthetic", [1, 3], [0, 3], "merge_base"),
        ("replay", [3, 2], [0, 2], "merge_novel"),
        ("synthetic", [3, 2], [0, 2], "merge_novel"),
    ],
)
def test_a_merged_background_protects_the_objects_that_a_kind_leaves_unlabelled(kind, classes, told, key):
    samples = [_sample(i, kind, classes, labels=told) for i in range(2)]
    plain = dataclasses.replace(SCHEDULE, distill=0.0, merge_base=(), merge_novel=())
    merged = dataclasses.replace(plain, **{key: (kind,)})
    scores = [
        _accuracy(train_novel(_start(), samples, base_classes=BASE, schedule=schedule, seed=0)) for schedule in (plain, merged)
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


def test_user_errors_name_the_sample_and_the_remedy():
    with pytest.raises(UserError, match=r"class index 9; expected 0\.\.3 or 255"):
        train_novel(_start(), [_sample(0, "support", [0, 3], labels=[0, 9])], base_classes=BASE, schedule=SCHEDULE, seed=0)
    with pytest.raises(UserError, match="got no sample"):
        train_novel(_start(), [], base_classes=BASE, schedule=SCHEDULE, seed=0)
    with pytest.raises(UserError, match="'fake' is unknown"):
        train_novel(_start(), [_sample(0, "fake", [0, 3])], base_classes=BASE, schedule=SCHEDULE, seed=0)


# ------------------------------------------------------------------------------------------------ several processes
@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two gloo processes found."""
    folder, env = tmp_path_factory.mktemp("novel"), os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.shared_novel"]
    root = Path(__file__).parents[2]
    started = [subprocess.Popen([*command, str(r), "2", str(folder)], cwd=root, env=env) for r in range(2)]
    try:
        assert [p.wait(timeout=300) for p in started] == [0, 0]
    finally:
        for p in started:
            p.kill()
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(2)]


def test_two_processes_learn_what_one_learns_and_each_keeps_its_own_samples_alone(both):
    from tests.shared_novel import curve

    alone = curve()
    assert both[0]["shared"]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    torch.testing.assert_close(both[0]["shared"]["weight"], alone["weight"], rtol=1e-3, atol=1e-3)
    kept = [set(found["shared"]["kept"]) for found in both]
    assert all(found == both[0]["shared"]["losses"] for found in (b["shared"]["losses"] for b in both))
    assert len(kept[0] & kept[1]) == 0 < len(kept[0]) < len(alone["kept"])


def test_two_processes_that_were_stopped_go_on_bit_for_bit(both):
    for found in both:
        assert found["continued"]["losses"] == found["shared"]["losses"]
        assert torch.equal(found["continued"]["weight"], both[0]["shared"]["weight"])


def test_if_each_process_had_a_mean_of_its_own_the_curve_would_be_another(both):
    off = np.array(both[0]["own means"]["losses"]) / np.array(both[0]["shared"]["losses"]) - 1
    assert np.abs(off).max() > 1e-3
