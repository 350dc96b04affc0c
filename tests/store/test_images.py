"""Images of a run are bounded before they are decoded."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from PIL import Image

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.stages.results import verify_run
from syn4seg.store.images import decode_image, encode_image


def png(rows: int, columns: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7), (1, 1, 3)])
def test_a_png_keeps_every_pixel_and_the_order_of_its_colours(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for given in (pixels, pixels[::-1, ::-1], np.asfortranarray(pixels)):
        data = encode_image(given)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), given)
        found = decode_image(data)
        assert np.array_equal(found, given) and found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable


def test_images_are_bounded_before_they_are_decoded(finish, fresh, small, monkeypatch):
    from syn4seg.store import files
    from syn4seg.store.images import read_image

    run, names = fresh
    config = load(None, small)
    finish(config, run, names)
    record = next(r for r in run.draw(0).records() if not r["reason"])
    path = run.draw(0).label("label", record["class"], record["sample_id"])
    path.write_bytes(png(60_000, 60_000))
    with pytest.raises(UserError, match="claims 60000 x 60000 pixels"):
        read_image(path)
    assert verify_run(run)[1] == [f"draw 0: label of {record['sample_id']} is missing"]
    monkeypatch.setattr(files, "MAX_FILE", 100)
    os.truncate(path, 2**28 + 1)  # sparse: it takes no room
    with pytest.raises(UserError, match="at most"):
        read_image(path)
    with pytest.raises(UserError, match="at most"):
        files.read_json(path)
