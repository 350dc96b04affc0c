"""The decoder of photos and masks: the right pixels from every kind of file, or a refusal that names it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from syn4seg.data.photos import check_orientations, decode_image, decode_mask, decode_photo, list_pictures, orientation_evidence
from syn4seg.errors import UserError


def _turned(path, pixels, orientation):
    """Save a photo whose upright form is `pixels`, stored as a camera with this EXIF orientation stores it."""
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    exif, helper = Image.Exif(), Image.Exif()
    exif[0x0112], helper[0x0112] = orientation, undo
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = undo
    ImageOps.exif_transpose(image).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(30, 40), (40, 40)])
def test_a_photo_is_turned_upright_whatever_its_shape(tmp_path, orientation, shape):
    pixels = np.random.default_rng(orientation).integers(0, 256, (*shape, 3), np.uint8)
    _turned(tmp_path / "a.png", pixels, orientation)
    assert np.array_equal(decode_photo(tmp_path / "a.png", shape[::-1]), pixels)
    assert np.array_equal(decode_image(tmp_path / "a.png"), pixels)
    stored = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    if stored.shape == pixels.shape:
        assert np.array_equal(decode_photo(tmp_path / "a.png", shape[::-1], exif="ignore"), stored)
        assert np.array_equal(decode_photo(tmp_path / "a.png", shape[::-1], exif="stored_first"), stored)
    else:
        with pytest.raises(UserError, match="must have one size"):
            decode_photo(tmp_path / "a.png", shape[::-1], exif="ignore")
        assert np.array_equal(decode_photo(tmp_path / "a.png", stored.shape[1::-1]), stored)  # only as stored it fits


def test_a_data_set_whose_sizes_do_not_tell_the_rule_is_refused(tmp_path):
    _turned(tmp_path / "a.png", np.zeros((30, 40, 3), np.uint8), 6)
    _turned(tmp_path / "b.png", np.zeros((40, 40, 3), np.uint8), 6)
    evidence = [orientation_evidence(tmp_path / "a.png", size) for size in ((40, 30), (30, 40), (5, 5))]
    assert evidence == ["turned", "stored", ""] and orientation_evidence(tmp_path / "b.png", (40, 40)) == "both"
    check_orientations(["turned", "both", "", "both"])
    check_orientations(["stored", "turned", ""])
    with pytest.raises(UserError, match=r"data\.exif=auto: 1 photos .* 2 fit both ways.*data\.exif=ignore"):
        check_orientations(["both", "stored", "both"])


def test_sixteen_bits_are_scaled_by_their_whole_range(tmp_path):
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        image = decode_image(tmp_path / name)
        assert np.array_equal(image, np.repeat(np.round(values / 257).astype(np.uint8)[..., None], 3, 2))
        assert 126 < image.mean() < 129


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "b.tif")
    for name in ("a.tif", "b.tif"):
        with pytest.raises(UserError, match=rf"{name} has 32-bit .* convert it to 8 bits"):
            decode_image(tmp_path / name)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb_as_its_own_library_converts_it(tmp_path, mode):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 5, 3), np.uint8)).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    assert np.array_equal(decode_image(path), np.asarray(image.convert("RGB")))


def test_other_formats_several_pages_and_special_files_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    pages = [Image.new("RGB", (3, 3), c) for c in ("red", "blue")]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "c.png").symlink_to("/dev/zero")
    for name, words in (
        ("a.png", "not a readable image"),
        ("b.tif", "2 frames or pages"),
        ("c.png", "no regular file"),
        ("d.png", "missing"),
    ):
        with pytest.raises(UserError, match=words):
            decode_image(tmp_path / name)


def test_a_mask_is_never_of_a_format_with_loss(tmp_path):
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(UserError, match="expected PNG, TIFF, BMP"):
        decode_mask(tmp_path / "a.png", 2)
    for name in ("a.tif", "a.bmp"):
        Image.fromarray(mask).save(tmp_path / name)
        assert np.array_equal(decode_mask(tmp_path / name, 2), mask)
    Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "b.png")
    assert np.array_equal(decode_mask(tmp_path / "b.png", 2), mask)
    Image.fromarray(mask.astype(np.uint16) * 256).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="has the value 65280"):
        decode_mask(tmp_path / "b.png", 2)


def test_pictures_are_listed_by_id_below_their_folder(tmp_path):
    for name in ("a.JPG", "sub/b.png", ".c.png", "._a.JPG", ".hidden/d.png", "Thumbs.db", "e.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {key: [p.name for p in paths] for key, paths in list_pictures(tmp_path).items()} == {"a": ["a.JPG"], "sub/b": ["b.png"]}
