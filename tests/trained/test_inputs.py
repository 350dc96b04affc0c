"""Which images words mean: folders, globs, stores and shards; each gets a name of its own that stays in its folder."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from syn4seg.data.photos import decode_bytes
from syn4seg.errors import UserError
from syn4seg.store.files import as_path
from syn4seg.trained.inputs import find_images


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def levels(sources) -> dict[str, int]:
    return {source.name: int(decode_bytes(source.read(), source.label)[0, 0, 0]) for source in sources}


@pytest.fixture
def photos(tmp_path):
    for level, name in enumerate(("a.png", "city/b (1).PNG", "city/a.png", "city/über.png", ".hidden.png", ".thumbs/c.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(png(level))
    (tmp_path / "photos" / "Thumbs.db").write_text("x")
    return tmp_path / "photos"


def test_a_folder_a_glob_and_files_mean_the_same_images(photos):
    names = {"a": 0, "city/b (1)": 1, "city/a": 2, "city/über": 3}
    assert levels(find_images([str(photos)])) == levels(find_images([f"{photos}/**/*.[pP][nN][gG]"])) == names
    assert levels(find_images([f"{photos}/city/*.png"])) == {"a": 2, "über": 3}
    assert levels(find_images([f"{photos}/a.png", f"{photos}/city/b (1).PNG"])) == {"a": 0, "b (1)": 1}
    assert len(find_images([str(photos), str(photos)])) == 4


def test_predictions_among_the_images_are_not_taken_for_images(photos):
    before = find_images([str(photos)], photos / "out")
    (photos / "out" / "masks").mkdir(parents=True)
    (photos / "out" / "masks" / "a.png").write_bytes(png(9))
    assert find_images([str(photos)], photos / "out") == before
    assert len(find_images([str(photos)])) == len(before) + 1


def test_names_that_would_meet_keep_their_suffix_or_are_refused(photos):
    Image.open(photos / "a.png").save(photos / "a.jpg")
    assert sorted(source.name for source in find_images([f"{photos}/a.*"])) == ["a.jpg", "a.png"]
    with pytest.raises(UserError, match="would both be written"):
        find_images([f"{photos}/a.png", f"{photos}/city/a.png"])


def test_an_object_store_is_read_as_a_folder_is(photos):
    store = as_path("memory://bucket-inputs/photos")
    for path in photos.rglob("*.png"):
        (store / path.relative_to(photos).as_posix()).write_bytes(path.read_bytes())
    write_tar(photos / "s.tar", [("k.png", png(9))])
    (store / "s.tar").write_bytes((photos / "s.tar").read_bytes())
    assert levels(find_images(["memory://bucket-inputs/photos"])) == {"a": 0, "city/a": 2, "city/über": 3, "k": 9}
    assert levels(find_images(["memory://bucket-inputs/photos/city/*.png"])) == {"a": 2, "über": 3}


def test_shards_give_their_images_and_never_their_labels(tmp_path):
    members = [(f"w{k}.{kind}", png(level)) for k in range(2) for kind, level in (("label.png", 99), ("image.png", k))]
    write_tar(
        tmp_path / "a.tar",
        [*members, ("w0.json", b"{}"), ("only.mask.png", png(5)), ("../../up.jpg", png(7)), ("plain.png", png(8))],
    )
    assert levels(find_images([str(tmp_path / "a.tar")])) == {"w0": 0, "w1": 1, "=2E=2E/=2E=2E/up": 7, "plain": 8}
    images = pa.array([{"bytes": png(k), "path": None} for k in range(5)])
    pq.write_table(pa.table({"image": images, "label": images}), tmp_path / "rows.parquet", row_group_size=2)
    assert levels(find_images([str(tmp_path / "rows.parquet")])) == {f"rows-{k:06d}": k for k in range(5)}
    pq.write_table(pa.table({"data": [png(3)], "id": ["x/y.png"]}), tmp_path / "named.parquet")
    assert levels(find_images([str(tmp_path / "named.parquet")])) == {"x/y": 3}


def test_what_holds_no_image_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    (tmp_path / "bad.parquet").write_bytes(b"x" * 2000)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "numbers.parquet")
    for word in ("empty", "nothing.png", "*.jpg", "bad.tar", "bad.parquet", "numbers.parquet"):
        with pytest.raises(UserError) as refused:
            find_images([str(tmp_path / word)])
        assert "\n" not in str(refused.value)
