"""`syn4seg extend`: new classes for a trained model from a few annotated images, twice, and what is said about bad input."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

import syn4seg as library
from syn4seg.config.loading import load
from syn4seg.data.datasets import EmbeddedDataset
from syn4seg.errors import UserError
from syn4seg.segmenter.evaluation import accumulate_confusion, iterate_queries, metrics, predictor_of
from syn4seg.segmenter.network import load_segmenter
from syn4seg.stages.setup import canvas_of, load_dataset
from syn4seg.trained.extending import extension_words
from tests.shared_extension import BASE, FOLD, QUICK, write_base_model, write_data


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model of the twelve base classes of fold 0."""
    return write_base_model(tmp_path_factory.mktemp("extend") / "model")


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """Two annotated images of a ball and two of a donut; one query of each kind."""
    return write_data(tmp_path_factory.mktemp("extend") / "balls", "ball", "donut")


def _base_scores(place, images: int = 40) -> float:
    """Base mIoU of a model on the embedded world; what it calls by a new name counts as a miss."""
    model, world = library.load(place, device="cpu"), EmbeddedDataset(1, images)
    stream = iterate_queries(model.segmenter, world, FOLD, world.val, canvas=model.canvas)
    matrix = accumulate_confusion(stream, {"": predictor_of(model.segmenter.classifier)}, len(FOLD.index_names))[""]
    return metrics(matrix, len(FOLD.base), len(FOLD.novel))["base"]


def test_a_model_is_extended_twice_and_keeps_its_classes_their_values_and_what_it_knows_of_them(syn4seg, model, balls, tmp_path):
    code, printed, problem = syn4seg("extend", model, "--data", balls, "--to", tmp_path / "one", *QUICK)
    assert code == 0, problem
    assert "12 classes of" in printed and "ball (2), donut (2)" in printed and "no scores" in printed
    moons = write_data(tmp_path / "moons", "moon", shots=1, queries=3)
    code, printed, problem = syn4seg("extend", tmp_path / "one", "--data", moons, "--to", tmp_path / "two", *QUICK)
    assert code == 0, problem
    assert f"syn4seg predict {tmp_path / 'two' / 'model'} IMAGES --to DIR" in printed.splitlines()[-1]
    found = library.load(tmp_path / "two", device="cpu")
    assert found.classes == ("background", *BASE, "ball", "donut", "moon") and found.novel == ("moon",)
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    figures = results["rows"]["syn4seg"]
    assert figures["novel"]["mean"] is not None and figures["base"]["mean"] is None  # base objects have no masks there
    assert json.loads((tmp_path / "one" / "results.json").read_text())["protocol"]["queries"] == "none"
    before, after = _base_scores(model), _base_scores(tmp_path / "two")
    assert after > before - 0.08, (before, after)
    for verb in ("verify", "audit", "report", "watch"):
        assert syn4seg(verb, tmp_path / "one", *(["--once"] if verb == "watch" else []))[0] == 0, verb


def test_an_extension_starts_from_every_number_of_the_model(syn4seg, model, balls, tmp_path):
    assert syn4seg("refine", *extension_words(str(model), str(balls), QUICK)[0], "--out", tmp_path / "run")[0] == 0
    files = tmp_path / "run" / "checkpoints" / "base.safetensors", model / "model.safetensors"
    ours, theirs = (load_segmenter(path)[0].state_dict() for path in files)
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs) and ours.keys() == theirs.keys()


def test_photos_beside_the_images_are_labelled_by_the_model_itself(model, balls, tmp_path):
    folder = shutil.copytree(balls, tmp_path / "data")
    (folder / "unlabeled").mkdir()
    world = EmbeddedDataset(9, 1)
    for sample in world.train:
        Image.fromarray(world.image(sample)).save(folder / "unlabeled" / f"{sample}.png")
    config = load(None, extension_words(str(model), str(folder), QUICK)[0])
    assert (config.novel.base_data, config.novel.base_photos) == ("predicted", folder / "unlabeled")
    alone = load(None, extension_words(str(model), str(folder), [*QUICK, "novel.base_data=none"])[0])
    assert (alone.novel.base_data, alone.novel.base_photos) == ("none", None)


def test_classes_of_a_table_with_folds_may_have_masks_of_base_classes(model, tmp_path):
    folder = write_data(tmp_path / "data", "ball", "star", queries=2)
    (folder / "classes.json").write_text(json.dumps({"classes": ["ball", "Star"], "folds_novel": {"fold0": ["ball"]}}))
    (folder / "train.txt").write_text("\n".join(sorted(p.stem for p in (folder / "masks").glob("train*"))))
    config = load(None, extension_words(str(model), str(folder), QUICK)[0])
    fold = load_dataset(config)[1]
    assert fold.index_names == ("background", *BASE, "ball") and fold.to_index[2] == 1 + BASE.index("star")
    assert config.data.fold == 0 and canvas_of(config).size == 64


def _table(text):
    return lambda data: (data / "classes.json").write_text(text)


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (_table('{"classes": ["ball", "Cross"]}'), (), "has learned 'Cross' already"),
        (_table('{"classes": ["ball", "donut", "moon"]}'), (), "no mask shows the new class 'moon'.*3 for"),
        (_table('{"classes": ["ball"]}'), (), "2"),
        (lambda data: (data / "classes.json").unlink(), (), "no classes.json"),
        (lambda data: None, ("data.root=x",), "decides it"),
        (lambda data: None, ("novel.base_data=labelled",), "the masks of .* have no class 'star'"),
        (lambda data: None, ("novel.base_data=predicted",), r"set novel\.base_photos=FOLDER"),
        (lambda data: None, ("data.base_in_support=kept",), "taught as background"),
    ],
)
def test_bad_input_of_an_extension_is_one_sentence(syn4seg, model, balls, tmp_path, change, words, message):
    data = shutil.copytree(balls, tmp_path / "data")
    change(data)
    code, _, problem = syn4seg("extend", model, "--data", data, "--to", tmp_path / "run", *QUICK, *words)
    assert code == 2
    with pytest.raises(UserError, match=message):
        raise UserError(problem)
    assert not (tmp_path / "run").exists()


def test_a_damaged_model_and_too_many_images_are_refused(syn4seg, model, balls, tmp_path):
    damaged = shutil.copytree(model, tmp_path / "model")
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(data)
    code, _, problem = syn4seg("extend", damaged, "--data", balls, "--to", tmp_path / "run", *QUICK)
    assert code == 2 and "not the weights that config.json names" in problem
    code, _, problem = syn4seg("extend", tmp_path, "--data", balls, "--to", tmp_path / "run", *QUICK)
    assert code == 2 and "not a model" in problem
    many = write_data(tmp_path / "many", "ball", shots=6)
    code, _, problem = syn4seg("extend", model, "--data", many, "--to", tmp_path / "run", *QUICK)
    assert code == 2 and "has 6 annotated images, and extend takes 1 to 5" in problem
    assert load(None, extension_words(str(model), str(many), ["data.shots=5"])[0]).data.shots == 5
    code, _, problem = syn4seg("run", "embedded", f"base.checkpoint={model}", "--out", tmp_path / "run")
    assert code == 2 and "syn4seg extend" in problem
