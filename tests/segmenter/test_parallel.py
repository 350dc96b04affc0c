"""Two processes that share every batch learn what one learns; and each of the three things that this takes is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from syn4seg.errors import UserError
from syn4seg.segmenter.base import BaseSchedule, check_batch_shares
from syn4seg.segmenter.parallel import synchronize_layers
from tests.shared_batch import FROZEN, PARTIAL, curve, dropped, joint_curve, normalised


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two gloo processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.shared_batch"]
    root, env = Path(__file__).parents[2], os.environ | {"OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([*command, str(r), "2", str(folder)], cwd=root, env=env) for r in range(2)]
    try:
        assert [p.wait(timeout=300) for p in started] == [0, 0]
    finally:
        for p in started:
            p.kill()
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(2)]


WAYS = {
    "curve": {},
    "frozen": {"freeze_backbone": True},
    "cached": FROZEN,
    "adamw": {"schedule": BaseSchedule(2, 8, 0.01, optimizer="adamw")},
}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_learn_what_one_learns(both, way):
    single, shared = curve(**WAYS[way]), both[0][way]
    assert shared["losses"] == pytest.approx(single["losses"], rel=1e-5)
    assert torch.equal(shared["seen"], single["seen"])
    assert list(shared["state"]) == list(single["state"]) and shared["kinds"] == single["kinds"]
    for key, value in single["state"].items():
        torch.testing.assert_close(shared["state"][key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_both_processes_end_with_the_same_bits(both, way):
    a, b = (found[way] for found in both)
    assert a["losses"] == b["losses"] and torch.equal(a["seen"], b["seen"])
    assert all(torch.equal(value, b["state"][key]) for key, value in a["state"].items())


def test_two_processes_train_a_network_jointly_as_one_does(both):
    single = joint_curve()
    assert both[0]["joint"]["losses"] == both[1]["joint"]["losses"] == pytest.approx(single["losses"], rel=1e-5)
    for key, value in single["state"].items():
        torch.testing.assert_close(both[0]["joint"]["state"][key], value, rtol=1e-3, atol=1e-4)
        assert torch.equal(both[0]["joint"]["state"][key], both[1]["joint"]["state"][key])


@pytest.mark.parametrize("part", PARTIAL)
def test_without_sharing_each_of_them_the_curve_is_another(both, part):
    single = np.array(curve()["losses"])
    assert np.abs(np.array(both[0][f"without {part}"]["losses"]) / single - 1).max() > 1e-3


def _joined(both, *keys):
    parts = [found[keys[0]] if len(keys) == 1 else found[keys[0]][keys[1]] for found in both]
    return torch.stack(parts, 1).flatten(0, 1)


def test_a_shared_batch_norm_is_that_of_the_whole_batch_forward_backward_and_in_its_statistics(both):
    whole = normalised(slice(None))
    for key in ("out", "gradient"):
        torch.testing.assert_close(_joined(both, "normalised", key), whole[key], rtol=1e-9, atol=1e-9)
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(both[1]["normalised"][key], whole[key], rtol=1e-9, atol=1e-9)
        assert torch.equal(both[0]["normalised"][key], both[1]["normalised"][key])


DROPOUTS = [("dropout", nn.Dropout, (3, 4)), ("dropout2d", nn.Dropout2d, (3, 2, 2))]


@pytest.mark.parametrize(("key", "kind", "shape"), DROPOUTS)
def test_a_shared_dropout_is_that_of_one_process_bit_for_bit(both, key, kind, shape):
    whole = dropped(slice(None), kind, shape)
    assert torch.equal(_joined(both, key), whole) and 0 < (whole == 0).float().mean() < 1


def test_what_cannot_be_shared_is_refused_unless_it_is_frozen(both):
    assert "workers=2" in both[0]["refusal"] and "BatchNorm1d" in both[0]["refusal"]
    assert both[0]["frozen_norm"] == "accepted"
    with synchronize_layers(nn.BatchNorm1d(3)):  # one process has the whole batch anyway
        pass


def test_a_checkpoint_that_not_every_process_sees_is_refused_by_all(both):
    for found in both:
        assert "[3, 0] finished epochs" in found["unseen"] and "file system that every node shares" in found["unseen"]


def test_a_batch_that_does_not_divide_names_both_keys():
    check_batch_shares(8, 4)
    with pytest.raises(UserError, match=r"base.batch=8 is not a multiple of placement.training.workers=3"):
        check_batch_shares(8, 3)
