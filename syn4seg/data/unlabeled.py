"""Photos without masks in a folder, at any depth: what a base model labels itself (`novel.base_data=predicted`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from syn4seg.data.photos import decode_image, list_pictures
from syn4seg.errors import UserError


class UnlabeledPhotos:
    """The photos below a folder.

    Attributes:
        ids: their paths below it, sorted.

    Raises:
        UserError: there is no such folder, or no photo in it.
    """

    def __init__(self, root: Path):
        self.root = root
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; expected photos in it")
        self.ids = sorted(path.relative_to(root).as_posix() for paths in list_pictures(root).values() for path in paths)
        if not self.ids:
            raise UserError(f"{root}: no photo in it; expected .jpg, .png or another photo, at any depth")

    def image(self, sample_id: str) -> np.ndarray:
        """Return the RGB photo uint8 (H, W, 3), turned upright by its EXIF orientation.

        Raises:
            UserError: it is damaged, too large, or gone.
        """
        return decode_image(self.root / sample_id)
