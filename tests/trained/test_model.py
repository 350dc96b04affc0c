"""A model outside of its run: the masks of the evaluation, from a folder that needs nothing else, for any kind of image."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import syn4seg as library
from syn4seg.config.loading import load as load_config
from syn4seg.errors import DamagedError, UserError
from syn4seg.segmenter.evaluation import iterate_queries, predictor_of
from syn4seg.stages.classifiers import best_row, load_classifier
from syn4seg.stages.labels import load_on_device
from syn4seg.stages.setup import canvas_of, load_dataset
from syn4seg.store.rundir import RunDir


class OddSizes:
    """The images of another data set at sizes of their own, larger and smaller than the canvas."""

    def __init__(self, dataset):
        self.dataset = dataset

    def _size(self, sample_id):
        rng = np.random.default_rng(int(sample_id[-6:]))
        return int(rng.integers(20, 200)), int(rng.integers(20, 200))

    def image(self, sample_id):
        return cv2.resize(self.dataset.image(sample_id), self._size(sample_id))

    def mask(self, sample_id):
        return cv2.resize(self.dataset.mask(sample_id), self._size(sample_id), interpolation=cv2.INTER_NEAREST)


@pytest.fixture(scope="module")
def opened(finished):
    """The finished run, its configuration and data set, and its model."""
    run = RunDir(finished[0])
    config = load_config(run.config)
    return run, config, *load_dataset(config), library.load(finished[0], device="cpu")


def test_a_model_predicts_what_the_evaluation_of_its_run_predicts(opened):
    run, config, dataset, fold, model = opened
    segmenter, canvas = load_on_device(run, "cpu"), canvas_of(config)
    predict = predictor_of(load_classifier(run.draw(0).checkpoint("syn4seg")))
    for images in (dataset, OddSizes(dataset)):
        queries = list(iterate_queries(segmenter, images, fold, dataset.val, canvas=canvas))  # pyright: ignore
        expected = {query.sample_id: predict(query) for query in queries}
        masks = model([images.image(name) for name in dataset.val])
        for name, mask in zip(dataset.val, masks, strict=True):
            assert np.array_equal(mask, expected[name]) and np.array_equal(model(images.image(name)), mask)
    other = predictor_of(load_classifier(run.draw(0).checkpoint("support_only")))
    assert any((other(query) != predict(query)).any() for query in queries)


def test_a_run_ends_with_its_best_trained_row_and_says_how_to_use_it(opened, finished):
    run, config, _, fold, model = opened
    facts = model.config.provenance
    assert (facts["row"], facts["draw"]) == ("syn4seg", 0) and best_row(config, run, 0) == "syn4seg"
    assert model.classes == fold.index_names and model.novel == tuple(fold.names[k - 1] for k in fold.novel)
    assert model.palette.shape == (len(model.classes), 3) and len({tuple(color) for color in model.palette}) == len(model.classes)
    assert sum(facts["synthetic_images"].values()) == 12 and set(facts["support"]) == set(model.novel)
    results = json.loads((finished[0] / "results.json").read_text())
    assert facts["scores"]["novel"] == results["rows"]["syn4seg"]["novel"]
    assert f"syn4seg predict {run.model} IMAGES --to DIR" in finished[1].splitlines()[-1]


def test_a_folder_is_all_that_a_fresh_process_needs(finished, tmp_path):
    shutil.copytree(finished[0] / "model", tmp_path / "model")
    for path in (tmp_path / "model").glob("[!.]*"):
        data = path.read_bytes()
        assert str(finished[0]).encode() not in data and b"/tmp" not in data and b"/home" not in data
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    code = (
        "import sys, time, torch, syn4seg\n"
        "start = time.process_time()\n"
        "model = syn4seg.load('model', device='cpu')\n"
        "seconds = time.process_time() - start\n"
        "mask = model('photo.png')\n"
        "print(mask.shape, mask.dtype, seconds < 1, [n for n in ('ray', 'transformers', 'diffusers') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "(40, 60) uint8 True []", done.stdout + done.stderr


def test_every_kind_of_image_gives_one_mask_in_its_own_form(opened, tmp_path):
    model = opened[-1]
    image = opened[2].image(opened[2].val[0])[:50]
    expected, whole = model(image), model.probabilities(image)
    Image.fromarray(image).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.png", exif=exif)  # shown turned back
    tensor = torch.tensor(image).permute(2, 0, 1)
    same = [image, image / 255, str(tmp_path / "a.png"), tmp_path / "turned.png", Image.open(tmp_path / "a.png"), [image]]
    for one in same:
        found = model(one)
        assert np.array_equal(found[0] if isinstance(one, list) else found, expected)
    for one in (tensor, tensor.float() / 255):
        assert isinstance(model(one), torch.Tensor) and np.array_equal(model(one).numpy(), expected)
    assert np.array_equal(model(np.stack([image, image])), np.stack([expected, expected]))
    assert model(tensor[None]).shape == (1, *expected.shape)
    assert whole.shape == (len(model.classes), *expected.shape) and np.array_equal(whole.argmax(0), expected)
    assert np.allclose(whole.sum(0), 1, atol=1e-5)
    model.show([image]).save(tmp_path / "shown.png")
    assert Image.open(tmp_path / "shown.png").size[0] > 200
    for wrong in (
        image.astype(np.int64),
        image[..., :2],
        np.zeros((0, 4, 3), np.uint8),
        3,
        [],
        image * 2.0,
        tensor.permute(1, 2, 0),
    ):
        with pytest.raises(ValueError, match="expected a path"):
            model(wrong)


def change(config, *keys, to):
    for key in keys[:-1]:
        config = config[key]
    config[keys[-1]] = to


HOSTILE = {
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "another kind": lambda folder: (folder / "config.json").write_text('{"format": "other"}'),
    "huge": lambda folder: (folder / "config.json").write_bytes(b" " * 2**24 + b"{}"),
    "cut weights": lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000]),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "backbone": ("network", "backbone", "resnet50"),
    "code": ("network", "backbone", "os:system"),
    "width": ("network", "channels", 65536),
    "canvas": ("canvas", "size", 10**9),
    "normalisation": ("network", "std", [0, 1, 1]),
    "extra": ("command", "rm"),
    "classes": ("classes", []),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_model_is_refused_in_one_line(finished, tmp_path, what, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(finished[0] / "model", folder)
    shutil.rmtree(folder / ".seals")
    if callable(HOSTILE[what]):
        HOSTILE[what](folder)
    else:
        config = json.loads((folder / "config.json").read_text())
        change(config, *HOSTILE[what][:-1], to=HOSTILE[what][-1])
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as refused:
        library.load(folder)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_a_header_never_makes_anybody_allocate_what_the_file_does_not_hold(finished, tmp_path):
    from safetensors.torch import load_file, save_file

    from syn4seg.segmenter.network import NetworkShape, load_segmenter

    tensors = load_file(finished[0] / "model" / "model.safetensors")
    shape = NetworkShape(backbone="embedded", classes=17, channels=65536, ppm_bins=(1,), cosine=False)
    save_file(tensors, tmp_path / "m.safetensors", metadata={"network": shape.model_dump_json()})  # would be 58 GB
    with pytest.raises(UserError, match="does not hold the tensors that its header promises"):
        load_segmenter(tmp_path / "m.safetensors")


def test_a_transformers_backbone_is_in_the_folder_and_needs_no_other(tmp_path):
    transformers = pytest.importorskip("transformers")
    from syn4seg.segmenter.backbones import load_backbone
    from syn4seg.segmenter.network import Segmenter, load_segmenter, save_segmenter

    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, out_features=["stage1"]
    )
    transformers.Dinov2Backbone(config).save_pretrained(tmp_path / "dino")
    net = Segmenter(load_backbone(str(tmp_path / "dino")), 3, 8).eval()
    save_segmenter(net, tmp_path / "m.safetensors", backbone="file dino", facts={}, whole=True)
    image = net.prepare(np.random.default_rng(0).integers(0, 256, (1, 42, 42, 3), dtype=np.uint8))
    with torch.no_grad():
        expected = net(image)
        shutil.rmtree(tmp_path / "dino")
        again = load_segmenter(tmp_path / "m.safetensors")[0]
        assert torch.equal(again(image), expected)
    assert str(tmp_path).encode() not in (tmp_path / "m.safetensors").read_bytes()


def test_the_model_in_a_run_is_sealed(finished, syn4seg, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "model" / "README.md"
    path.write_text(path.read_text() + "more")
    code, _, errors = syn4seg("verify", tmp_path / "run", "--quick")
    assert code == 1 and "model/README.md" in errors
    path = tmp_path / "run" / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(DamagedError, match="not the weights"):
        library.load(tmp_path / "run")


def test_a_network_of_another_library_trained_whole_leaves_the_run_whole(small, syn4seg, tmp_path):
    from syn4seg.segmenter.network import load_segmenter
    from tests.shared_networks import saved_network

    fold = load_dataset(load_config(None, []))[1]
    saved_network(tmp_path / "net", labels=("sky", *(fold.names[k - 1] for k in fold.base)))
    joint = ("novel.trains=all", "novel.rows=[syn4seg]", "evaluation.rows=[syn4seg]", "joint.steps=2", "joint.crop=32")
    code, _, errors = syn4seg("run", *small, *joint, f"base.checkpoint={tmp_path / 'net'}", "--out", tmp_path / "run")
    assert code == 0, errors
    assert syn4seg("model", tmp_path / "run", "--row", "syn4seg", "--to", tmp_path / "frozen")[0] == 0
    shutil.rmtree(tmp_path / "net")
    run = RunDir(tmp_path / "run")
    config = load_config(run.config)
    dataset = load_dataset(config)[0]
    base, whole = (load_segmenter(path)[0] for path in (run.base, run.draw(0).checkpoint("syn4seg_all")))
    rows = {
        "frozen": ("syn4seg", base, load_classifier(run.draw(0).checkpoint("syn4seg"))),
        "run/model": ("syn4seg_all", whole, whole.classifier),
    }
    for place, (row, network, classifier) in rows.items():
        model = library.load(tmp_path / place, device="cpu")
        assert model.config.provenance["row"] == row and model.config.provenance["scores"]
        for query in iterate_queries(network, dataset, fold, dataset.val, canvas=canvas_of(config)):
            assert np.array_equal(model(dataset.image(query.sample_id)), predictor_of(classifier)(query))
        assert not any(str(tmp_path).encode() in path.read_bytes() for path in (tmp_path / place).glob("[!.]*"))
