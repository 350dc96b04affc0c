"""Generated images as bytes, and the faults that no mask could repair."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.models.images import image_fault, to_uint8


def image(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (image(0, 1), ""),
        (image(0, 2 / 255), "black"),
        (image(0, 4 / 255), ""),
        (np.full((4, 5, 3), 0.5), "flat"),
        (np.where(np.arange(60).reshape(4, 5, 3) == 7, np.nan, 0.5), "nan"),
        (np.where(np.arange(60).reshape(4, 5, 3) == 7, np.inf, 0.5), "nan"),
        (np.full((4, 5, 3), 2, np.uint8), "black"),
        (np.full((4, 5, 3), 3, np.uint8), "flat"),
        (np.full((4, 5, 3), (3, 90, 200), np.uint8), "flat"),
        (np.arange(60, dtype=np.uint8).reshape(4, 5, 3), ""),
    ],
)
def test_faults_are_told_by_the_levels_of_either_kind(pixels, fault):
    assert image_fault(pixels) == fault


def test_floats_are_rounded_and_clipped_and_what_is_not_finite_becomes_black():
    batch = np.stack([image(0, 1), image(-1, 2), np.full((4, 5, 3), np.nan, np.float32)])
    levels, faults = to_uint8(batch)
    assert levels.dtype == np.uint8 and faults == ["", "", "nan"]
    assert np.array_equal(levels[0], np.rint(batch[0] * 255)) and (levels[1].min(), levels[1].max()) == (0, 255)
    assert not levels[2].any()
    assert to_uint8(np.full((1, 1, 1, 3), 0.5, np.float32))[0].ravel().tolist() == [128, 128, 128]  # 127.5 goes to the even one
