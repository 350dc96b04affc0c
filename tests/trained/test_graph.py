"""A model for other programs: ONNX and torch.export give what torch gives, at any height and width."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
import torch

import syn4seg as library
from syn4seg.config.loading import load as load_config
from syn4seg.data.canvas import Canvas
from syn4seg.segmenter.backbones import load_backbone
from syn4seg.segmenter.network import Segmenter
from syn4seg.stages.classifiers import trained_segmenter
from syn4seg.stages.setup import load_dataset
from syn4seg.store.rundir import RunDir
from syn4seg.trained.graph import OPSET, PixelGraph, onnx_bytes, pt2_bytes


@pytest.fixture(scope="module")
def images(finished):
    """50 images of the val world: 10 as they are, 40 of other sizes."""
    dataset = load_dataset(load_config(finished[0] / "config.yaml"))[0]
    rng, found = np.random.default_rng(0), []
    for i in range(50):
        image = dataset.image(f"val-{i:06d}")
        found.append(image if i < 10 else cv2.resize(image, tuple(int(n) for n in rng.integers(16, 240, 2))))
    return found


@pytest.fixture(scope="module")
def graph(finished):
    """The graph of the finished run's model."""
    config = load_config(finished[0] / "config.yaml")
    return PixelGraph(trained_segmenter(config, RunDir(finished[0]), 0, "syn4seg")[0], Canvas(64))


def run_torch(module, images):
    with torch.no_grad():
        return [module(torch.tensor(image)[None])[0].numpy() for image in images]


def test_the_graph_agrees_with_the_model_but_for_rounding(finished, graph, images):
    model = library.load(finished[0], device="cpu")
    found, expected = run_torch(graph, images), [model.probabilities(image) for image in images]
    assert max(float(abs(a - b).max()) for a, b in zip(found, expected, strict=True)) < 0.05
    differ = sum(int((a.argmax(0) != b.argmax(0)).sum()) for a, b in zip(found, expected, strict=True))
    assert differ / sum(image.shape[0] * image.shape[1] for image in images) < 0.002


@pytest.mark.parametrize("kind", ["plain", "diam"])
def test_the_canvas_of_the_graph_is_that_of_the_method(kind, images):
    torch.manual_seed(0)
    net, canvas = Segmenter(load_backbone("embedded"), 3, 8), Canvas(64, kind)
    seen = []
    graph = PixelGraph(net, canvas)
    net.forward = lambda x: seen.append(x) or torch.zeros(1, 3, 16, 16)  # pyright: ignore
    run_torch(graph, images)
    for image, x in zip(images, seen, strict=True):
        levels = (x * net.std + net.mean)[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(levels - canvas.image(image)).max() < 1.01  # OpenCV rounds to whole levels


def test_onnx_equals_torch_at_any_size(graph, images):
    onnx = pytest.importorskip("onnx", reason="onnx is missing: pip install -e .[onnx]")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install -e .[onnx]")
    pytest.importorskip("onnxscript", reason="onnxscript is missing: pip install -e .[onnx]")
    data = onnx_bytes(graph)
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for image, expected in zip(images, run_torch(graph, images), strict=True):
        assert np.abs(session.run(None, {"image": image[None]})[0][0] - expected).max() < 1e-4
    proto = onnx.load_from_string(data)
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [OPSET]
    assert [dim.dim_param or dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim] == [1, "height", "width", 3]
    assert b"site-packages" not in data and b".py" not in data


def test_pt2_equals_torch_at_any_size(graph, images):
    data = pt2_bytes(graph)
    module = torch.export.load(io.BytesIO(data)).module()
    for image, expected in zip(images, run_torch(graph, images), strict=True):
        assert np.abs(run_torch(module, [image])[0] - expected).max() < 1e-4
    assert b"site-packages" not in data


def test_the_verb_writes_each_format_and_never_over_other_files(finished, syn4seg, tmp_path):
    for format, name in (("safetensors", "model.safetensors"), ("pt2", "model.pt2")):
        code, out, _ = syn4seg("model", finished[0], "--to", tmp_path / "model", "--format", format, "--draw", 1)
        assert code == 0 and "draw 1" in out
        assert {p.name for p in (tmp_path / "model").iterdir()} == {name, "config.json", "README.md"}
        assert json.loads((tmp_path / "model" / "config.json").read_text())["weights"]["format"] == format
    code, _, errors = syn4seg("predict", tmp_path / "model", finished[0], "--to", tmp_path / "p")
    assert code == 2 and "for another program" in errors
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for words in (
        ["--to", tmp_path / "mine"],
        ["--to", finished[0] / "more"],
        ["--to", tmp_path / "x", "--draw", 9],
        ["--to", tmp_path / "x", "--row", "best"],
        ["--to", tmp_path / "x", "--format", "gguf"],
    ):
        code, _, errors = syn4seg("model", finished[0], *words)
        assert code == 2 and len(errors.splitlines()) == 1, errors
    assert not (tmp_path / "x").exists() and (tmp_path / "mine" / "notes.txt").read_text() == "mine"
