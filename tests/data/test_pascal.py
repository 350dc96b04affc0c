"""PASCAL VOC + SBD: the data set equals what the official files hold, oddities included, and says what is wrong with them."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from syn4seg.data.datasets import class_areas, fold_of
from syn4seg.data.pascal import PascalDataset, derive_lists, read_ids, sbd_folder, sbd_mask, voc_folder
from syn4seg.data.support import draw_support
from syn4seg.errors import UserError
from tests.official import CMYK, GREY, TURNED, truncate


@pytest.mark.parametrize("train_list", ["noduplicate", "trainaug"])
def test_lists_masks_pixels_and_areas_are_those_of_the_official_files(prepared_pascal, train_list):
    root, truth = prepared_pascal
    dataset = PascalDataset(root, train_list)
    dataset.check()
    assert dataset.train == truth.lists[train_list] and dataset.val == truth.lists["val"]
    assert not set(dataset.train) & set(dataset.val)
    for sample_id in (*dataset.train, *dataset.val):
        mask = truth.masks[sample_id]
        assert np.array_equal(dataset.mask(sample_id), mask)
        assert dataset.areas(sample_id) == class_areas(mask)
        counts = {k: sum(int(v == k) for v in mask.ravel().tolist()) for k in dataset.areas(sample_id)}
        assert dataset.pixels(sample_id) == counts


def test_voc_masks_win_over_those_of_sbd_and_keep_their_borders(prepared_pascal):
    root, truth = prepared_pascal
    dataset = PascalDataset(root, "trainaug")
    sbd = root / "benchmark_RELEASE" / "dataset" / "cls"
    both = [s for s in truth.masks if (sbd / f"{s}.mat").is_file() and (truth.masks[s] == 255).any()]
    only = [s for s in dataset.train if not (truth.masks[s] == 255).any()]
    assert len(both) > 10 and len(only) > 10
    assert all((dataset.mask(s) == 255).any() and not (sbd_mask(sbd / f"{s}.mat") == 255).any() for s in both)
    assert all((sbd / f"{s}.mat").is_file() for s in only)


def test_photos_are_rgb_in_the_orientation_of_their_masks(prepared_pascal):
    root, truth = prepared_pascal
    dataset = PascalDataset(root, "trainaug")
    for sample_id in truth.images:
        image, drawn = dataset.image(sample_id), truth.images[sample_id]
        number = (int(sample_id[5:]) - 1000) // 7
        assert image.shape == (*dataset.mask(sample_id).shape, 3) and image.dtype == np.uint8
        if number == GREY:
            drawn = np.repeat(np.array(Image.fromarray(drawn).convert("L"))[..., None], 3, 2)
        assert np.abs(image.astype(int) - drawn).mean() < 10
    modes = {Image.open(dataset.image_path(f"{2007 + n % 2}_{1000 + 7 * n:06d}")).mode for n in (GREY, CMYK, TURNED)}
    assert modes == {"L", "CMYK", "RGB"}


def test_a_photo_is_turned_by_exif_only_where_that_alone_fits(copied):
    dataset = PascalDataset(copied)
    sample_id = dataset.train[0]
    rows, columns = dataset.mask(sample_id).shape
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.zeros((columns, rows, 3), np.uint8)
    turned[:, : rows // 3] = 255
    Image.fromarray(turned).save(dataset.image_path(sample_id), exif=exif)
    image = dataset.image(sample_id)
    assert image.shape == (rows, columns, 3)
    assert image[: rows // 4].mean() > 250 and image[rows // 2 :].mean() < 5
    Image.fromarray(turned[:-1]).save(dataset.image_path(sample_id), exif=exif)
    with pytest.raises(UserError, match=rf"{sample_id}\.jpg is {rows}x{columns - 1} pixels as stored, .* but its mask"):
        dataset.image(sample_id)


def test_a_truncated_photo_and_one_of_too_many_pixels_are_named(copied, monkeypatch):
    dataset = PascalDataset(copied)
    truncate(dataset.image_path(dataset.train[3]))
    with pytest.raises(UserError, match=rf"{dataset.train[3]}\.jpg cannot be decoded .*unpack its archive again"):
        dataset.image(dataset.train[3])
    monkeypatch.setattr("syn4seg.data.photos.MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="expected at most 1000"):
        dataset.image(dataset.train[0])


def test_every_fold_draws_supports_from_both_lists(prepared_pascal):
    dataset = PascalDataset(prepared_pascal[0])
    for number in range(4):
        for source in ("train", "val"):
            fold = fold_of(dataset, number)
            support = draw_support(dataset, fold, 1, 0, seed=1, min_area=0.0, min_pixels=200, source=source)
            assert all(dataset.pixels(ids[0])[k] >= 200 for k, ids in support.items())


# ------------------------------------------------------------------------------------------ what is refused
def test_places_and_lists_are_found_or_refused(tmp_path, prepared_pascal):
    assert voc_folder(prepared_pascal[0] / "VOCdevkit" / "VOC2012") == prepared_pascal[0] / "VOCdevkit" / "VOC2012"
    assert voc_folder(prepared_pascal[0] / "VOCdevkit") == prepared_pascal[0] / "VOCdevkit" / "VOC2012"
    (tmp_path / "sbd").mkdir()
    assert sbd_folder(tmp_path) == tmp_path / "sbd" and voc_folder(tmp_path) is None
    with pytest.raises(UserError, match=r"holds no VOCdevkit/VOC2012.*2\.0 GB"):
        PascalDataset(tmp_path)
    with pytest.raises(UserError, match="list 'all' is none of"):
        PascalDataset(prepared_pascal[0], "all")  # pyright: ignore[reportArgumentType]
    for text in ("", "../../etc/passwd\n", "2007_000032\n2007_32\n"):
        (tmp_path / "train.txt").write_text(text)
        with pytest.raises(UserError, match=r"train\.txt"):
            read_ids(tmp_path / "train.txt")


def test_an_image_of_the_val_list_is_on_no_train_list():
    lists = derive_lists(["b", "a", "v"], ["w", "v"], ["v", "c", "a"], ["w", "d"])
    assert lists == {"noduplicate": ["a", "c", "b"], "trainaug": ["a", "b", "c", "d"], "val": ["v", "w"]}


# -------------------------------------------------------------------------------------------------- .mat
def _mat(**content) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=True)
    return buffer.getvalue()


MASK = np.array([[0, 1, 20], [3, 0, 0]], np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_an_sbd_file_is_read_whatever_its_number_type(tmp_path, dtype):
    (tmp_path / "a.mat").write_bytes(_mat(GTcls={"Segmentation": MASK.astype(dtype)}))
    read = sbd_mask(tmp_path / "a.mat")
    assert read.dtype == np.uint8 and np.array_equal(read, MASK)


BAD_MATS = {
    "no SBD struct": _mat(GTinst={"Segmentation": MASK}),
    "no segmentation": _mat(GTcls={"Boundaries": MASK}),
    "a class too many": _mat(GTcls={"Segmentation": MASK + 1}),
    "half a pixel": _mat(GTcls={"Segmentation": MASK + 0.5}),
    "not flat": _mat(GTcls={"Segmentation": np.zeros((2, 2, 2), np.uint8)}),
    "cut": _mat(GTcls={"Segmentation": MASK})[:-20],
    "text": b"no matlab file " * 20,
    "empty": b"",
}


@pytest.mark.parametrize("what", BAD_MATS)
def test_a_bad_sbd_file_is_named(tmp_path, what):
    path = tmp_path / "a.mat"
    path.write_bytes(BAD_MATS[what])
    with pytest.raises(UserError, match=r"a\.mat.*unpack its archive again"):
        sbd_mask(path)


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused_unread(tmp_path):
    bomb = zlib.compress(bytes(70_000_000), 9)
    element = (15).to_bytes(4, "little") + len(bomb).to_bytes(4, "little") + bomb
    (tmp_path / "a.mat").write_bytes(b" " * 124 + b"\x00\x01IM" + element)
    with pytest.raises(UserError, match=r"a\.mat unpacks to more than"):
        sbd_mask(tmp_path / "a.mat")
