"""The palette of exports is the one of PASCAL VOC."""

from __future__ import annotations

import numpy as np
from PIL import Image

from syn4seg.exports.info import palette
from tests.shared_exports import export


def test_the_palette_is_the_one_of_pascal_voc(made, tmp_path):
    run, config, _ = made
    colours = palette(256).tolist()
    assert [colours[i] for i in (0, 1, 2, 8, 15, 20, 255)] == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [64, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
    export(run, config, tmp_path / "out", "voc")
    label = Image.open(next((tmp_path / "out" / "SegmentationClass").iterdir()))
    np.testing.assert_array_equal(np.array(label.convert("RGB")), palette(256)[np.array(label)])
