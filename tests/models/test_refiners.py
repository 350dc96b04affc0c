"""Hints in the frame of an encoder: boxes and points are scaled, masks become coarse logits."""

from __future__ import annotations

import numpy as np
import torch

from syn4seg.models.refiners import Hints, coarse_logits

CPU = torch.device("cpu")


def test_boxes_and_points_scale_with_the_image_and_what_was_not_hinted_at_is_absent():
    hints = Hints(np.array([[2, 4, 10, 20], [0, 0, 1, 1]], np.float32), np.array([[3, 6], [1, 0]], np.float32))
    assert len(hints) == 2 and len(Hints(points=hints.points)) == 2 and len(Hints(masks=np.zeros((3, 4, 4), bool))) == 3
    boxes, points, masks = hints.prompts(slice(0, 1), (40, 20), (80, 60), (16, 16, 12), CPU)
    assert boxes is not None and boxes.dtype == torch.float32 and boxes.tolist() == [[6, 8, 30, 40]]
    assert points is not None and points.tolist() == [[9, 12]] and masks is None
    assert Hints(points=hints.points).prompts(slice(0, 2), (4, 4), (4, 4), (4, 4, 4), CPU).boxes is None


def test_a_mask_is_certain_inside_and_outside_and_the_padding_is_outside():
    mask = np.zeros((1, 32, 64), bool)
    mask[0, 8:24, 16:48] = True
    logits = coarse_logits(mask, 16, 8, 16)
    assert logits.shape == (1, 1, 16, 16) and logits.dtype == np.float32
    assert (
        (logits[0, 0, 3:5, 5:11] == 10).all() and (logits[0, 0, 8:] == -10).all() and np.allclose(logits[0, 0, 0], -10, atol=1e-5)
    )
    assert np.abs(logits).max() <= 10
    np.testing.assert_allclose(coarse_logits(mask[:, :, ::-1], 16, 8, 16)[0, 0, :8], logits[0, 0, :8, ::-1], atol=1e-5)
    same = coarse_logits(mask, 64, 32, 64)[0, 0, :32]
    assert np.array_equal(same == 10, mask[0]) and np.array_equal(same == -10, ~mask[0])
    np.testing.assert_allclose(coarse_logits(np.ones((1, 1, 900), bool), 16, 0, 16)[0, 0, 0], 10, atol=1e-5)
