"""`syn4seg predict`: every image its files and its line; a bad one costs itself; a kill costs what was not written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import syn4seg as library
from syn4seg.errors import Interrupted
from syn4seg.trained import output
from syn4seg.trained.prediction import ChunkPredictor


@pytest.fixture(scope="module")
def photos(finished, tmp_path_factory):
    """A folder of 7 images of many sizes, one of them turned by EXIF, and one that is broken."""
    from syn4seg.data.datasets import EmbeddedDataset

    root, dataset = tmp_path_factory.mktemp("photos"), EmbeddedDataset(1, 10)
    for i, name in enumerate(dataset.val[:7]):
        exif = Image.Exif()
        exif[0x112] = 6 if i == 3 else 1
        (root / f"{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(dataset.image(name)).resize((40 + 30 * i, 64)).save(root / f"{i % 2}" / f"{i}.png", exif=exif)
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xffnothing")
    return root


def tree(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_every_image_has_its_mask_its_line_and_pictures_and_a_bad_one_costs_itself(finished, photos, syn4seg, tmp_path):
    words = ("predict", finished[0], photos, "--to", tmp_path / "p", "--batch", 3, "--probabilities", "classes", "--palette")
    code, _, errors = syn4seg(*words)
    assert code == 1 and "broken.jpg" in errors and "1 of 8 images could not be read" in errors
    model, lines = library.load(finished[0]), lines_of(tmp_path / "p")
    assert [line["name"] for line in lines] == ["0/0", "0/2", "0/4", "0/6", "1/1", "1/3", "1/5", "broken"]
    assert set(lines[-1]) == {"name", "image", "error"} and not list((tmp_path / "p").rglob("*broken*"))
    for line in lines[:-1]:
        picture = Image.open(tmp_path / "p" / line["mask"])
        mask, expected = np.array(picture), model(line["image"])
        assert picture.mode == "P" and np.array_equal(mask, expected) and mask.shape == (line["height"], line["width"])
        assert np.array_equal(np.array(picture.convert("RGB")), model.palette[mask])
        found = np.load(tmp_path / "p" / line["probabilities"])
        assert found.dtype == np.float16 and np.abs(found - model.probabilities(line["image"])).max() < 1e-3
        shares = {name: facts["pixels"] for name, facts in line["classes"].items()}
        assert shares == {model.classes[k]: int((mask == k).sum()) for k in np.unique(mask)}
        best = model.probabilities(line["image"]).max(0)
        assert abs(line["confidence"] - best.mean()) < 1e-3
        assert all(abs(f["confidence"] - best[mask == model.classes.index(n)].mean()) < 1e-3 for n, f in line["classes"].items())
        assert Image.open(tmp_path / "p" / line["overlay"]).size == picture.size
    assert lines[5]["height"] > lines[5]["width"]  # turned upright
    assert Image.open(tmp_path / "p" / "contact_sheet.png").size[0] > 400
    page = (tmp_path / "p" / "index.html").read_text("utf-8")
    assert all(f'"mask":"{line["mask"]}"' in page for line in lines[:-1]) and "1 more could not be read" in page
    (photos / "again.png").write_bytes((photos / "0" / "0.png").read_bytes())  # images may be added
    try:
        assert syn4seg(*words)[0] == 1 and len(lines_of(tmp_path / "p")) == 9
    finally:
        (photos / "again.png").unlink()


def test_a_stopped_command_goes_on_and_ends_with_the_same_bytes(finished, photos, syn4seg, tmp_path, monkeypatch):
    syn4seg("predict", finished[0], photos, "--to", tmp_path / "whole", "--batch", 3)
    monkeypatch.setattr(output, "KEEP_SECONDS", -1.0)
    write, finish, count, chunks = ChunkPredictor._write, ChunkPredictor.finish, [0], []

    def stop_at_the_fifth(self, *arguments):
        count[0] += 1
        if count[0] == 5:
            raise Interrupted("stopped")
        return write(self, *arguments)

    monkeypatch.setattr(ChunkPredictor, "_write", stop_at_the_fifth)
    assert syn4seg("predict", finished[0], photos, "--to", tmp_path / "p", "--batch", 3)[0] == 130
    assert len(lines_of(tmp_path / "p")) == 3
    with (tmp_path / "p" / "predictions.jsonl").open("a") as file:
        file.write('{"name": "0/6", "ma')  # torn by a kill
    (tmp_path / "p" / "masks" / "0" / "0.png").unlink()  # its line says nothing without it
    monkeypatch.setattr(ChunkPredictor, "_write", write)
    assert syn4seg("predict", finished[0], photos, "--to", tmp_path / "p", "--batch", 3)[0] == 1
    assert tree(tmp_path / "p") == tree(tmp_path / "whole")
    monkeypatch.setattr(ChunkPredictor, "finish", lambda self, chunk, images: chunks.append(chunk) or finish(self, chunk, images))
    assert syn4seg("predict", finished[0], photos, "--to", tmp_path / "p", "--batch", 3)[0] == 1
    assert [[source.name for source in chunk] for chunk in chunks] == [["1/5", "broken"]]  # a bad image is tried again
    assert tree(tmp_path / "p") == tree(tmp_path / "whole")


def test_tiles_see_small_things_of_a_large_image(finished, photos, syn4seg, tmp_path):
    large = np.concatenate([np.asarray(Image.open(photos / "0" / "0.png").resize((64, 64)))] * 4, 1)
    Image.fromarray(large).save(tmp_path / "large.png")
    code, _, _ = syn4seg("predict", finished[0], tmp_path / "large.png", "--to", tmp_path / "p", "--tile", 64, "--overlap", 0)
    assert code == 0
    mask, once = np.array(Image.open(tmp_path / "p" / "masks" / "large.png")), library.load(finished[0])(large[:, :64])
    assert np.array_equal(mask, np.concatenate([once] * 4, 1))


def test_a_folder_of_others_or_with_other_options_is_refused(finished, photos, syn4seg, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    one = photos / "0" / "0.png"
    assert syn4seg("predict", finished[0], one, "--to", tmp_path / "p")[0] == 0
    for words in (
        [finished[0], one, "--to", tmp_path / "mine"],
        [finished[0], one, "--to", tmp_path / "p", "--palette"],
        [finished[0], photos / "1" / "..", "--to", tmp_path / "p", "--probabilities", "all"],
        [finished[0], one, "--to", tmp_path / "q", "--tile", 1],
        [finished[0], one, "--to", tmp_path / "q", "--runner", "slurm"],
        [finished[0], photos / "none.png", "--to", tmp_path / "q"],
        [photos, one, "--to", tmp_path / "q"],
    ):
        code, _, errors = syn4seg("predict", *words)
        assert code == 2 and len(errors.splitlines()) == 1, errors
    assert not (tmp_path / "q").exists()


def test_predictions_go_to_an_object_store(finished, photos, syn4seg, tmp_path):
    from syn4seg.store.files import as_path

    words = ("predict", finished[0], photos / "0", "--to")
    assert syn4seg(*words, "memory://bucket-predictions/p")[0] == 0
    assert syn4seg(*words, "memory://bucket-predictions/p")[0] == 0
    assert syn4seg(*words, tmp_path / "p")[0] == 0
    store = as_path("memory://bucket-predictions/p")
    assert {name: (store / name).read_bytes() for name in tree(tmp_path / "p")} == tree(tmp_path / "p")
