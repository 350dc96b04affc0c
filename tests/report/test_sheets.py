"""Thumbnails and sheets: no label value is lost or invented, and each pixel has the stage that decided it."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from syn4seg.report.sheets import ROW, class_colors, encode_labels, provenance, shrink, tile
from syn4seg.schema import LABEL_COLUMNS, UNLABELED


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_who_decided_a_pixel_equals_a_slow_rule(seed):
    rng = np.random.default_rng(seed)
    labels = {stage: rng.choice(np.array([0, 1, 5, 255], np.uint8), (6, 7)) for stage in LABEL_COLUMNS}
    codes = provenance(labels)
    for y in range(6):
        for x in range(7):
            draft, kept, relabeled, label = (int(labels[s][y, x]) for s in LABEL_COLUMNS)
            if label != relabeled:
                expected = 4
            elif relabeled != kept:
                expected = 3
            elif kept != draft and label == UNLABELED:
                expected = 2
            else:
                expected = 0 if draft == 0 else 1
            assert codes[y, x] == expected


def test_a_sheet_keeps_every_label_in_its_cell():
    rng = np.random.default_rng(0)
    cells = [rng.choice(np.array([0, 3, 20, 255], np.uint8), (rng.integers(3, 9), rng.integers(3, 9))) for _ in range(23)]
    cells[4] = None
    url = encode_labels(tile(cells, 9), class_colors(21))
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    codes = np.array(picture)
    assert codes.shape == (3 * 9, ROW * 9) and picture.info["transparency"] == 0
    for i, cell in enumerate(cells):
        y, x = i // ROW * 9, i % ROW * 9
        if cell is not None:
            assert (codes[y : y + cell.shape[0], x : x + cell.shape[1]] == cell).all()
    assert np.array(picture.convert("RGB"))[codes == 255].min() == 255


def test_thumbnails_never_invent_a_class_and_never_grow():
    label = np.random.default_rng(1).choice(np.array([0, 7, 255], np.uint8), (300, 200))
    small = shrink(label, 48)
    assert small.shape == (48, 32) and set(np.unique(small)) <= {0, 7, 255}
    assert shrink(label, 999) is label


@pytest.mark.parametrize("count", [2, 21, 81, 201])
def test_classes_have_colours_of_their_own(count):
    assert len(set(class_colors(count))) == count
