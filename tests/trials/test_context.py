"""What trials need of a run: its images as they are stored, and an error if one is changed while trials use it."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from syn4seg.errors import UserError
from syn4seg.store.images import pixel_digest, write_image
from syn4seg.store.rundir import RunDir
from syn4seg.trials.context import RunContext


@pytest.fixture
def context(finished, tmp_path):
    config, run, _ = finished
    shutil.copytree(run.root, tmp_path / "run")
    return RunContext(config, RunDir(tmp_path / "run"), "cpu")


def path_of(context, image):
    return context.run.image(image.class_name, image.sample_id)


def test_images_are_those_of_the_methods_bank_in_the_order_of_the_plan_with_their_pixels(context):
    plan = [row for row in pq.read_table(context.run.plan).to_pylist() if row["bank"] == "hdig" and not row["padding"]]
    assert context.planned == [row["sample_id"] for row in plan]
    expected = [row["sample_id"] for row in plan if list(context.run.root.glob(f"images/*/{row['sample_id']}.png"))]
    assert [image.sample_id for image in context.images] == expected and len(expected) > 5
    for image, pixels in zip(context.images, context.pixels(context.images), strict=True):
        stored = np.array(Image.open(path_of(context, image)))
        np.testing.assert_array_equal(pixels, stored)
        assert (image.digest, image.shape) == (pixel_digest(stored), stored.shape)


@pytest.mark.parametrize(
    "harm", [lambda path, pixels: write_image(path, 255 - pixels), lambda path, _: path.unlink()], ids=["changed", "deleted"]
)
def test_an_image_that_is_changed_or_deleted_while_trials_use_it_is_named(context, harm):
    first, second = context.images[:2]
    (pixels,) = context.pixels([second])
    harm(path_of(context, second), pixels)
    with pytest.raises(UserError, match=rf"image {second.sample_id} was deleted or changed"):
        context.pixels([first, second])
    assert len(context.pixels([first])) == 1
