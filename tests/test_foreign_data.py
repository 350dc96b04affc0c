"""Data sets as other people have them, at the command line: they run to the end, or one message comes before anything trains."""

from __future__ import annotations

import codecs
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open

from syn4seg.data.folder import FolderDataset
from syn4seg.errors import UserError

NAMES = ["rock/stone", "Gebäude", "Car (old)", "men's shoe", "a, b"]
QUICK = (
    *(
        "placement.runner=inline",
        "base.checkpoint=train",
        "base.epochs=1",
        "base.batch=2",
        "segmenter.size=32",
        "segmenter.channels=16",
    ),
    *(
        "novel.steps=2",
        "novel.replay_images=2",
        "labeling.base_prototype_images=4",
        "labeling.min_target=0",
        "labeling.max_target=1",
    ),
    *("synthesis.source=folder", "synthesis.images_per_class=2", "logging.to=[]"),
)


def blocks(seed: int, *, background: bool = False) -> np.ndarray:
    """A mask of 32 x 32 pixels that holds every class in a block of its own."""
    order = np.random.default_rng(seed).permutation(16)
    values = np.where(order < 10, order % 5 + 1, 0 if background else order % 5 + 1)
    return np.kron(values.reshape(4, 4), np.ones((8, 8))).astype(np.uint8)


def photo(mask: np.ndarray) -> np.ndarray:
    return np.stack([mask * 40, 255 - mask * 40, mask * 7], 2).astype(np.uint8)


@pytest.fixture
def foreign(tmp_path):
    """A data set and images to import, with the names, encodings and companions that other tools leave."""
    root, images = tmp_path / "data", tmp_path / "import"
    for folder in (root / "images", root / "masks"):
        folder.mkdir(parents=True)
    suffixes = (".JPEG", ".PNG", ".tif", ".webp", ".jpg", ".bmp")
    ids = list("abcdefgh")
    for i, name in enumerate(ids):
        suffix = suffixes[i % len(suffixes)]
        Image.fromarray(photo(blocks(i))).save(root / "images" / f"{name}{suffix}")
        Image.fromarray(blocks(i)).save(root / "masks" / f"{name}{'.PNG' if i % 2 == 0 else '.png'}")
    (root / "images" / "._a.jpg").write_bytes(b"\x00\x05\x16\x07" * 1000)
    for name, some in (("train", ids[:5]), ("val", ids[5:])):
        (root / f"{name}.txt").write_bytes(codecs.BOM_UTF8 + "\r\n".join(some).encode())
    table = {"classes": NAMES, "folds_novel": {"fold1": NAMES[:1], "fold0": NAMES[3:]}}
    (root / "classes.json").write_bytes(json.dumps(table, ensure_ascii=False).encode("utf-16"))
    for number, name in enumerate(NAMES):
        folder = images / name.replace("/", "=2F")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(2):
            Image.fromarray(photo(blocks(50 + 2 * number + i))).save(folder / f"{i}.png")
    return [*QUICK, "data.source=folder", f"data.root={root}", f"synthesis.root={images}"], root, tmp_path / "run"


@pytest.mark.parametrize("support", ["background", "kept"])
def test_a_data_set_without_background_and_with_every_awkward_name_runs_to_the_end(foreign, syn4seg, support):
    keys, _, out = foreign
    code, said, complaint = syn4seg("run", *keys, f"data.base_in_support={support}", "--out", out)
    assert code == 0, complaint + said
    results = json.loads((out / "results.json").read_text())
    assert results["classes"] == ["background", *NAMES]
    assert set(pq.read_table(out / "draws/0/manifest.parquet")["class"].to_pylist()) == {"men's shoe", "a, b"}
    assert syn4seg("verify", out)[0] == 0


def test_a_data_set_in_which_no_pixel_is_ever_background_runs_to_the_end(foreign, syn4seg):
    """Base images without a novel class, and support images that keep their base classes: no prototype of the background."""
    keys, root, out = foreign
    for i, name in enumerate("abcdefgh"):
        if name in "cde":
            mask = np.where(blocks(i) == 1, 2, blocks(i)).astype(np.uint8)
            Image.fromarray(mask).save(next((root / "masks").glob(f"{name}.*")))
    keys += ["data.fold=1", "base.images=without_novel", "data.base_in_support=kept"]
    code, said, complaint = syn4seg("run", *keys, "--out", out)
    assert code == 0, complaint + said
    assert set(pq.read_table(out / "draws/0/manifest.parquet")["class"].to_pylist()) == {"rock/stone"}
    with safe_open(out / "draws/0/support.safetensors", "numpy") as file:
        lengths = np.linalg.norm(file.get_tensor("prototypes"), axis=1)
    assert lengths[0] == 0 and lengths[1:] == pytest.approx(1, abs=1e-3)


def test_pictures_lists_and_tables_are_found_under_the_names_and_in_the_encodings_that_they_have(foreign):
    _, root, _ = foreign
    dataset = FolderDataset(root)
    dataset.check()
    assert (dataset.train, dataset.val, list(dataset.classes)) == (list("abcde"), list("fgh"), NAMES)
    assert dataset.check_files() == []
    for i, name in enumerate("abcdefgh"):
        assert np.array_equal(dataset.mask(name), blocks(i))
        assert np.abs(dataset.image(name).astype(int) - photo(blocks(i))).mean() < 12, "JPEG and WebP change pixels a little"


@pytest.mark.parametrize(("name", "data"), [("train.txt", "ä\n".encode("latin-1")), ("classes.json", '{"ä"'.encode("utf-16-le"))])
def test_a_text_of_an_unknown_encoding_is_named(foreign, name, data):
    _, root, _ = foreign
    (root / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}.*save it as UTF-8"):
        FolderDataset(root).check()


@pytest.mark.parametrize(("shape", "orientation"), [((30, 40), 3), ((40, 40), 6), ((40, 40), 8)])
def test_a_photo_that_a_camera_turned_lies_on_its_mask(foreign, shape, orientation):
    _, root, _ = foreign
    mask = np.zeros(shape, np.uint8)
    mask[:5], mask[:, :9] = 1, 2
    stored = np.rot90(photo(mask), {3: 2, 6: 1, 8: 3}[orientation])  # the camera was held another way
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(root / "images/a.JPEG", exif=exif, quality=95)
    Image.fromarray(mask).save(root / "masks/a.PNG")
    assert np.abs(FolderDataset(root).image("a").astype(int) - photo(mask)).mean() < 4
    unturned = FolderDataset(root, exif="ignore").image("a")
    assert np.abs(unturned.astype(int) - photo(mask)).mean() > 20


@pytest.mark.parametrize("harm", ["value 77", "another size", "truncated"])
def test_a_bad_mask_of_the_val_list_is_named_before_anything_trains(foreign, syn4seg, harm):
    keys, root, out = foreign
    path = root / "masks/f.png"
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    else:
        Image.fromarray(np.full((32, 32) if harm == "value 77" else (8, 9), 77 if harm == "value 77" else 1, np.uint8)).save(path)
    code, _, complaint = syn4seg("run", *keys, "--out", out)
    assert (
        code == 2 and complaint.startswith("error: ") and re.search(r"\bf\.(png|bmp)\b", complaint) and "Traceback" not in complaint
    )
    assert not list(out.rglob("*.safetensors"))


def test_a_support_object_that_is_lost_on_the_canvas_is_named_with_its_image_and_the_canvas(foreign, syn4seg):
    keys, root, out = foreign
    for i, name in enumerate("abcde"):
        mask = np.kron(np.where(blocks(i) > 3, 1, blocks(i)), np.ones((32, 32), np.uint8)).astype(np.uint8)
        mask[5, 5:8], mask[500, 5:8] = 4, 5  # three pixels of 1024 x 1024
        Image.fromarray(mask).save(next((root / "masks").glob(f"{name}.*")))
        next((root / "images").glob(f"{name}.*")).unlink()
        Image.fromarray(photo(mask)).save(root / "images" / f"{name}.png")
    code, _, complaint = syn4seg("run", *keys, "data.min_support_area=0", "segmenter.size=64", "--out", out)
    assert code == 2 and not out.exists()
    words = ("support image '", "of draw 0", "has no pixel left on the canvas of 64 pixels; raise segmenter.size")
    assert all(part in complaint for part in words), complaint


def test_of_an_import_folder_the_companions_of_another_system_are_no_images(foreign, syn4seg):
    keys, root, out = foreign
    for name in NAMES[3:]:
        folder = root.parent / "import" / name
        (folder / "._0.png").write_bytes(b"\x00\x05\x16\x07" * 1000)
        (folder / "1.png").rename(folder / "z.png")
    code, said, complaint = syn4seg("synthesize", *keys, "synthesis.images_per_class=1", "--out", out)
    told = "".join((said + complaint).split())
    assert code == 0 and told.count("1of2imagesimported") == told.count("1otherfilesleftout(._0.png)") == 2
    assert len(list(out.rglob("images/*/*.png"))) == 2 and not list(out.rglob("quarantined/*"))
