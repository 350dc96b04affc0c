"""Photos without masks: those of a folder at any depth, by name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from syn4seg.data.unlabeled import UnlabeledPhotos
from syn4seg.errors import UserError


def test_photos_are_found_at_any_depth_and_a_damaged_one_is_named(tmp_path):
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    for name in ("b.jpg", "a/b.png", "a/.hidden/c.png"):
        Image.fromarray(np.full((5, 7, 3), 9, np.uint8)).save(tmp_path / name)
    (tmp_path / "a" / "b.jpg").write_bytes(b"no photo")
    photos = UnlabeledPhotos(tmp_path)
    assert photos.ids == ["a/b.jpg", "a/b.png", "b.jpg"] and photos.image("a/b.png").shape == (5, 7, 3)
    with pytest.raises(UserError, match=r"a/b\.jpg"):
        photos.image("a/b.jpg")
    with pytest.raises(UserError, match="no such folder"):
        UnlabeledPhotos(tmp_path / "absent")
