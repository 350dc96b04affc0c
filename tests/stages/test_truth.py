"""The true labels of synthetic images."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.data import embedded
from syn4seg.stages.setup import load_dataset
from syn4seg.stages.truth import is_truth_known, truth_source
from syn4seg.store.images import write_image


def test_the_renderer_knows_the_truth_by_class_index(small):
    config = load(None, small)
    truth = truth_source(config)
    assert truth is not None
    exact = truth({"prompt": "a big red star on sand", "noise_seed": 3}, 64)
    drawn = embedded.draw(embedded.scene_of_prompt("a big red star on sand", 3), 64)[1]
    assert exact is not None
    assert np.array_equal(exact, load_dataset(config)[1].to_index[drawn])
    assert truth({"prompt": "nothing of this world", "noise_seed": 3}, 64) is None


def test_imported_photos_have_a_truth_where_their_masks_are_given(small, tmp_path):
    imported = [*small, "synthesis.source=folder", f"synthesis.root={tmp_path}"]
    assert not is_truth_known(load(None, imported)) and truth_source(load(None, imported)) is None
    config = load(None, [*imported, f"evaluation.masks={tmp_path / 'masks'}"])
    (tmp_path / "masks").mkdir()
    mask = np.array([[0, 1], [5, 255]], np.uint8)
    write_image(tmp_path / "masks" / "a.png", mask)
    truth = truth_source(config)
    assert truth is not None
    read = truth({"prompt": "star/a.jpg"}, 2)
    assert read is not None
    assert np.array_equal(read, load_dataset(config)[1].to_index[mask])
    assert truth({"prompt": "star/b.jpg"}, 2) is None


@pytest.mark.parametrize("model", ["embedded-sd3"])
def test_a_generator_that_paints_freely_has_no_truth(small, model):
    assert not is_truth_known(load(None, [*small, f"synthesis.model={model}"]))
