"""The square canvas: the whole image in one corner, nothing labelled beside it, in both kinds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syn4seg.data.canvas import Canvas


@pytest.mark.parametrize("kind", ["plain", "diam"])
@given(rows=st.integers(8, 90), columns=st.integers(8, 90), size=st.integers(16, 64))
def test_the_canvas_holds_the_whole_image_in_its_corner_and_255_beside(kind, rows, columns, size):
    canvas = Canvas(size, kind)
    r, c = canvas.shape((rows, columns))
    label = canvas.label(np.full((rows, columns), 5, np.uint8))
    assert label.shape == (size, size) and (label[:r, :c] == 5).all()
    assert (label[r:] == 255).all() and (label[:, c:] == 255).all()
    image = canvas.image(np.full((rows, columns, 3), 200, np.uint8))
    assert image.shape == (size, size, 3) and (image[:r, :c] == 200).all()
    beside = image[r:] if r < size else image[:, c:]
    assert (beside == (0 if kind == "diam" else (124, 116, 104))).all()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 64))
def test_the_plain_canvas_keeps_the_aspect_up_to_rounding(rows, columns, size):
    r, c = Canvas(size).shape((rows, columns))
    assert max(r, c) == size and abs(r * columns - c * rows) <= max(rows, columns)


@pytest.mark.parametrize(
    ("shape", "expected"), [((375, 500), (312, 416)), ((500, 375), (416, 312)), ((281, 500), (232, 416)), ((417, 417), (416, 416))]
)
def test_diams_canvas_of_417_floors_both_sides_to_a_multiple_of_8(shape, expected):
    assert Canvas(417, "diam").shape(shape) == expected


def test_an_image_of_the_canvas_size_is_not_resampled():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(Canvas(32).image(image), image) and np.array_equal(Canvas(32, "diam").image(image), image)
    label = image[..., 0] % 5
    assert np.array_equal(Canvas(32).label(label), label) and np.array_equal(Canvas(32, "diam").label(label), label)
