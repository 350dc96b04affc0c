"""The palette of exports is the one of PASCAL VOC."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from syn4seg.exports.info import palette
from syn4seg.exports.selection import ExportOptions
from syn4seg.exports.writing import write
from tests.shared_exports import made_run, silent


def export(run, config, to, format, **options) -> dict:
    said = {key: options.pop(key, silent) for key in ("note", "warn")}
    sizes = {key: options.pop(key) for key in ("shard_mb", "name") if key in options}
    return write(run, config, ExportOptions(**options), str(to), format, progress=silent, **said, **sizes)


@pytest.fixture(scope="module", params=["files", "sharded"])
def made(request, tmp_path_factory):
    return made_run(tmp_path_factory.mktemp(request.param), request.param)


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
