"""Predictions under Ray: the same bytes as inline, for any number of actors; an actor's error ends the command in one line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from actors.predicting import PredictionActor, _lines
from syn4seg.errors import UserError
from syn4seg.trained.inputs import ImageSource
from syn4seg.trained.prediction import PredictionOptions, encode_sources


@pytest.fixture
def photos(tmp_path):
    """A folder of 9 images and a broken one."""
    from syn4seg.data.datasets import EmbeddedDataset

    (tmp_path / "photos").mkdir()
    dataset = EmbeddedDataset(1, 10)
    for i, name in enumerate(dataset.val[:9]):
        Image.fromarray(dataset.image(name)).resize((50 + 9 * i, 64)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"nothing")
    return tmp_path / "photos"


def tree(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_any_number_of_actors_gives_the_bytes_of_one_process(finished, photos, syn4seg, ray_cluster, tmp_path):
    words = ("predict", finished[0], photos, "--batch", 2, "--probabilities", "winner", "--to")
    assert syn4seg(*words, tmp_path / "inline", "--runner", "inline")[0] == 1
    for workers in (1, 2):
        code, _, errors = syn4seg(*words, tmp_path / f"{workers}", "--runner", "ray", "--workers", workers)
        assert code == 1 and "1 of 10 images could not be read" in errors
        assert tree(tmp_path / f"{workers}") == tree(tmp_path / "inline")
    code, _, errors = syn4seg(*words, tmp_path / "many", "--runner", "ray", "--workers", 500)
    assert code == 2 and "--workers 500" in errors


def test_what_a_person_can_mend_in_an_actor_is_one_line_here(tmp_path):
    actor = PredictionActor(str(tmp_path / "none"), str(tmp_path / "p"), PredictionOptions(), "cpu")
    batch = actor({"sources": np.array([encode_sources([ImageSource("a", "a.png")])], object)})
    with pytest.raises(UserError, match="not a model"):
        list(_lines(batch))
