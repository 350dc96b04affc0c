"""The joint stage: views that only their names decide, a loss that is the novel stage's, a training that goes on bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from syn4seg.errors import UserError
from syn4seg.schema import UNLABELED
from syn4seg.segmenter import joint
from syn4seg.segmenter.base import poly_rate
from syn4seg.segmenter.joint import JointViews, check_shares, train_jointly, with_classifier
from syn4seg.segmenter.losses import distillation
from syn4seg.segmenter.novel import NovelSchedule, cells_without_novel, merged_classes
from syn4seg.stages.readers import read_ahead
from tests.shared_batch import DATASET, FOLD, JOINT, joint_curve, joint_views, segmenter

BASE_ROWS = 1 + len(FOLD.base)


def test_the_shares_of_several_processes_are_the_views_of_one():
    whole = joint_views()[3]
    parts = [joint_views((rank, 4))[3] for rank in range(4)]
    for rank, part in enumerate(parts):
        assert np.array_equal(part.images, whole.images[rank::4]) and part.kinds == whole.kinds[rank::4]
        assert np.array_equal(part.labels, whole.labels[rank::4])


def test_every_image_is_seen_equally_often_and_each_time_another_view():
    views = joint_views()
    names = [name for step in range(15) for name in views.names(step)]
    counts = {name: names.count(name) for name in names if name[0] == "support"}
    assert set(counts.values()) == {10}  # 15 steps x 2 places over 3 images
    assert not np.array_equal(views._view(0, 0, *names[0])[0], views._view(1, 0, *names[0])[0])


def read_drawn(kind, name):
    return DATASET.image(name), FOLD.to_index[DATASET.mask(name)]


def test_readers_ahead_give_the_same_batches():
    views = joint_views()
    views = JointViews(views.pools, views.per_step, views.augmentation, 5, read_drawn)
    for ahead, own in zip(read_ahead(views, 2)(range(2, 5)), read_ahead(views, 0)(range(2, 5)), strict=True):
        assert np.array_equal(ahead.images, own.images) and np.array_equal(ahead.labels, own.labels) and ahead.kinds == own.kinds


def test_steps_that_cannot_be_shared_and_empty_ones_are_refused():
    check_shares(joint_views(), 4)
    with pytest.raises(UserError, match=r"8 images.*placement.training.workers=3.*joint.support_batch"):
        check_shares(joint_views(), 3)
    nothing = JointViews({}, JOINT.per_step, joint_views().augmentation, 5, read_drawn)
    with pytest.raises(UserError, match="no image of the kinds"):
        check_shares(nothing, 1)


def plain_torch(trains: str) -> tuple[list[float], dict]:
    """Six steps written out: plain cross-entropy over probabilities in which an image's background is any of its classes."""
    views, base, how = joint_views(), segmenter(dropout=0.0).eval(), NovelSchedule(background_weight=0.5)
    rows = torch.randn(BASE_ROWS + len(FOLD.novel), 8, generator=torch.Generator().manual_seed(1))
    network = with_classifier(base, base.classifier.replaced(rows, torch.zeros(len(rows))))
    decoder = [*network.ppm.parameters(), *network.bottleneck.parameters()]
    groups = [{"params": decoder, "lr": 0.02}, {"params": [network.weight, network.bias], "lr": 0.01}]
    if trains == "all":
        groups.append({"params": list(network.backbone.parameters()), "lr": 0.01})
    optimizer, tops, losses = torch.optim.AdamW(groups, weight_decay=0.01), [g["lr"] for g in groups], []
    for step in range(6):
        batch = views[step]
        x, label = network.prepare(batch.images), torch.from_numpy(batch.labels).long()
        logits = network(x)
        odds = F.interpolate(logits, label.shape[1:], mode="bilinear").softmax(1)
        total, weights = torch.zeros(()), 0.0
        merged = merged_classes(batch.kinds, list(batch.labels), BASE_ROWS, len(rows), how)
        for n in range(len(x)):
            for k in label[n].unique().tolist():
                if k == UNLABELED:
                    continue
                mass = odds[n, merged[n]].sum(0) if k == 0 else odds[n, k]
                weight = 0.5 if k == 0 else 1.0
                total = total - weight * mass[label[n] == k].log().sum()
                weights += weight * int((label[n] == k).sum())
        with torch.no_grad():
            before = base(x)
        allowed = cells_without_novel(label, BASE_ROWS, before, False)
        loss = total / weights + distillation(logits, before, allowed)
        for group, top in zip(optimizer.param_groups, tops, strict=True):
            group["lr"] = top * poly_rate(step / 6, 0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, network.state_dict()


@pytest.mark.parametrize("trains", ["decoder", "all"])
def test_a_training_is_plain_torch(monkeypatch, trains):
    monkeypatch.setattr("tests.shared_batch.segmenter", lambda: segmenter(dropout=0.0))
    losses, state = plain_torch(trains)
    found = joint_curve(trains=trains, norms="frozen", average=0.0)
    assert found["losses"] == pytest.approx(losses, rel=1e-4)
    start = segmenter(dropout=0.0).state_dict()
    for key, value in state.items():
        torch.testing.assert_close(found["state"][key], value, rtol=1e-3, atol=1e-4)
        if key.startswith("backbone") and trains == "decoder":
            assert torch.equal(found["state"][key], start[key])


@pytest.mark.parametrize("average", [0.0, 0.7])
def test_a_killed_training_goes_on_bit_for_bit_and_one_of_other_samples_starts_over(tmp_path, monkeypatch, average):
    monkeypatch.setattr(joint, "CHECKPOINT_STEPS", 2)
    whole = joint_curve(average=average, confidence_weight=0.5)
    with pytest.raises(InterruptedError):
        joint_curve(5, tmp_path / "c.pt", average=average, confidence_weight=0.5)
    rest = joint_curve(checkpoint=tmp_path / "c.pt", average=average, confidence_weight=0.5)
    assert len(rest["losses"]) == 2 and rest["losses"] == whole["losses"][4:]
    assert all(torch.equal(value, rest["state"][key]) for key, value in whole["state"].items())
    assert len(joint_curve(checkpoint=tmp_path / "c.pt", average=average, confidence_weight=0.4)["losses"]) == 6


def test_frozen_norms_keep_their_statistics_and_the_base_network_stays_as_it_was():
    before = segmenter().state_dict()
    after = joint_curve(norms="frozen")["state"]
    moved = joint_curve(norms="batch")["state"]
    for key in (k for k in before if "running" in k):
        assert torch.equal(before[key], after[key]) and not torch.equal(before[key], moved[key])


def test_confidence_and_weight_of_synthetic_pixels_change_the_loss_and_the_average_the_result():
    plain = joint_curve()
    for change in ({"confidence_weight": 0.5}, {"synthetic_weight": 0.5}):
        assert joint_curve(**change)["losses"][0] != plain["losses"][0]
    last = joint_curve(average=0.0)
    assert last["losses"] == plain["losses"] and not torch.equal(last["state"]["weight"], plain["state"]["weight"])


def test_the_base_network_is_left_as_it_was():
    base = segmenter().eval()
    kept = {key: value.clone() for key, value in base.state_dict().items()}
    rows = base.classifier.replaced(torch.zeros(BASE_ROWS + len(FOLD.novel), 8), torch.zeros(BASE_ROWS + len(FOLD.novel)))
    views = joint_views()
    train_jointly(
        base, rows, lambda steps: (views[s] for s in steps), base_classes=len(FOLD.base), schedule=JOINT, seed=0, facts={}
    )
    assert all(torch.equal(value, base.state_dict()[key]) for key, value in kept.items())
