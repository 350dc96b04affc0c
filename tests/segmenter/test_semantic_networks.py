"""Networks of transformers and torchvision: ours predicts what the library predicts; the rest is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from syn4seg.errors import UserError
from syn4seg.planning.sizes_vision import network_size
from syn4seg.segmenter import semantic_sources as sources
from syn4seg.segmenter.network import Segmenter, load_segmenter, save_segmenter, upsample
from syn4seg.segmenter.semantic_networks import run_network
from tests.shared_networks import FAMILIES, LABELS, saved_network, torchvision_network

TORCHVISION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
STEPPED = {"dpt": True}
"""Networks that bring logits to their own grid with aligned corners."""


def segmenter_of(network: sources.SemanticNetwork) -> Segmenter:
    net = Segmenter(network.backbone, len(network.weight), align_corners=network.align_corners, bottleneck=False).eval()
    net.load_state_dict({"weight": network.weight, "bias": network.bias}, strict=False)
    return net


def loaded(checkpoint, size: int) -> sources.SemanticNetwork:
    return sources.load(sources.describe(str(checkpoint), weights=True), size)


@pytest.mark.parametrize(
    ("family", "size"),
    [*((name, 32 if name == "data2vec" else 64) for name in (*FAMILIES, *TORCHVISION)), ("segformer", 50), ("beit", 32)],
)
@torch.no_grad()
def test_logits_on_the_librarys_grid_are_the_librarys_and_survive_saving(tmp_path, family, size):
    if family in FAMILIES:
        own, checkpoint = saved_network(tmp_path, family), str(tmp_path)
    else:
        own = torchvision_network(tmp_path / "w.pth", family)
        checkpoint = f"torchvision:{family}:{tmp_path / 'w.pth'}"
    network = loaded(checkpoint, size)
    net = segmenter_of(network)
    assert network.align_corners is STEPPED.get(family, False)
    for seed in (1, 2):
        image = np.random.default_rng(seed).integers(0, 256, (2, size, size, 3), np.uint8)
        prepared = net.prepare(image)
        bgr = prepared.flip(1) if family.startswith("mobilevit") else prepared
        expected = run_network(own, bgr)
        mine = upsample(net(prepared), (expected.shape[2], expected.shape[3]), net.align_corners)
        away, moved = (mine - expected).abs().max(), (expected[0] - expected[1]).abs().max()
        assert away <= 1e-5 * max(1, expected.abs().max()) and away < 0.01 * moved  # what the image changes is compared
    save_segmenter(net, tmp_path / "base.safetensors", backbone=network.shape, facts={"a": 1})
    again, facts = load_segmenter(tmp_path / "base.safetensors")
    net.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in net.state_dict().items()})
    assert facts == {"a": 1} and torch.equal(again.mean, net.mean)
    assert torch.allclose(again(prepared), net(prepared), rtol=1e-4, atol=1e-5)
    planned = network_size(checkpoint, len(network.weight), size)
    assert planned.features == net.features(prepared).shape[1:]
    assert planned.part.parameters == sum(p.numel() for p in net.parameters())


def test_images_are_prepared_as_the_folder_says_and_else_as_the_librarys_processor(tmp_path):
    from transformers import AutoImageProcessor, BeitImageProcessor, MobileViTImageProcessor, SegformerImageProcessor

    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    kinds = {
        "segformer": SegformerImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]),
        "beit": BeitImageProcessor(do_normalize=False),
        "mobilevit": MobileViTImageProcessor(),
        "data2vec": None,
    }
    for family, processor in kinds.items():
        folder = tmp_path / family
        saved_network(folder, family)
        if processor is not None:
            processor.save_pretrained(folder)
        library = AutoImageProcessor.from_pretrained(folder) if processor else BeitImageProcessor()
        expected = library(image, return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]
        network = loaded(folder, 32)
        ours = segmenter_of(network).prepare(image)
        assert torch.allclose(ours.flip(1) if network.shape.blue_first else ours, expected, atol=1e-5)
    assert network.shape.mean == (0.5, 0.5, 0.5)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [1, 2], "image_std": [0, 0, 0]}')
    with pytest.raises(UserError, match=r"image_mean \[1, 2\].*expected three numbers"):
        sources.describe(str(folder))


def edited(folder, **changes) -> str:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["Mask2FormerForUniversalSegmentation"], "model_type": "mask2former"},
            "predicts masks and their classes",
        ),
        (
            {"architectures": ["SegformerForImageClassification"]},
            "'SegformerForImageClassification', which has no linear classifier",
        ),
        ({"architectures": 3}, "no linear classifier|no configuration"),
        ({"model_type": ["x"]}, "has no linear classifier"),
        ({"auto_map": {"AutoModel": "evil.Net"}}, "names code of its own .auto_map., which is never run"),
        ({"backbone": "someone/net"}, "names a further model .backbone='someone/net'"),
        ({"hidden_sizes": [8, 8]}, "cannot be built|no configuration"),
        ({"hidden_sizes": [8, 8, 16, 24]}, "cannot be loaded|lacks"),
        ({"num_attention_heads": [0, 0, 0, 0]}, "cannot be built|takes no canvas|no configuration"),
    ],
)
def test_a_hostile_or_other_configuration_is_refused_with_one_message(tmp_path, changes, message):
    saved_network(tmp_path)
    with pytest.raises(UserError, match=message):
        loaded(edited(tmp_path, **changes), 64)


def test_weights_that_are_no_whole_safetensors_are_refused(tmp_path):
    net = saved_network(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model.safetensors is damaged .*bytes"):
        loaded(tmp_path, 64)
    file.unlink()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"other formats .* are pickles, which can run code, and are refused"):
        loaded(tmp_path, 64)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(UserError, match="no index of safetensors files in its folder"):
        loaded(tmp_path, 64)
    net.decode_head.classifier.weight.data[0, 0] = 1e6
    (tmp_path / "model.safetensors.index.json").unlink()
    net.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"'decode_head.classifier.weight' holds NaN, infinity or values too large"):
        loaded(tmp_path, 64)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        sources.describe(str(tmp_path))


def test_a_canvas_that_a_network_cannot_take_is_refused_with_the_remedy(tmp_path):
    saved_network(tmp_path / "dpt", "dpt")
    saved_network(tmp_path / "data2vec", "data2vec")
    with pytest.raises(UserError, match=r"patches of 8 pixels: segmenter.size=60 is no multiple; set 56"):
        loaded(tmp_path / "dpt", 60)
    with pytest.raises(UserError, match=r"takes no canvas of segmenter.size=64 .*set segmenter.size=32"):
        loaded(tmp_path / "data2vec", 64)


def test_torchvision_files_are_checked_tensor_by_tensor_and_names_are_vocs_for_21_rows(tmp_path):
    name, file = "lraspp_mobilenet_v3_large", tmp_path / "w.pth"
    state = torchvision_network(file, name, 21).state_dict()
    described = sources.describe(f"torchvision:{name}:{file}")
    assert described.names is not None and described.names[:2] == ("__background__", "aeroplane")
    torch.save({k: v for k, v in state.items() if k != "backbone.0.0.weight"}, file)
    with pytest.raises(UserError, match=r"'backbone.0.0.weight' is missing, expected \(16, 3, 3, 3\)"):
        loaded(f"torchvision:{name}:{file}", 64)
    for wrong, message in ((f"deeplabv3_resnet50:{file}", "has no classifier"), ("vgg", "no segmentation network 'vgg'")):
        with pytest.raises(UserError, match=message):
            sources.describe(f"torchvision:{wrong}")


def test_a_network_whose_logits_are_not_its_last_convolutions_is_refused(tmp_path, monkeypatch):
    from transformers.models.segformer import modeling_segformer

    saved_network(tmp_path)
    old = modeling_segformer.SegformerDecodeHead.forward
    monkeypatch.setattr(modeling_segformer.SegformerDecodeHead, "forward", lambda self, x, **more: old(self, x, **more).tanh() * 3)
    with pytest.raises(UserError, match=r"logits are not those of its last 1x1 convolution \(decode_head.classifier\)"):
        loaded(tmp_path, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "os.system"}, "os.system of transformers"),
        ({"library": "timm"}, "is no segmenter checkpoint"),
        ({"classifiers": ["decode_head"]}, "has no convolution 'decode_head'"),
        ({"classifiers": []}, "has 0 features; expected 16"),
        ({"labels": 6}, "its configuration is of .* with 5 labels"),
        ({"config": {"hidden_sizes": [8, 8, 16, 2**12]}}, "has more weights than the checkpoint holds"),
        ({"config": {"auto_map": {"a": "b"}}}, "names code of its own"),
        ({"config": {"architectures": ["OneFormerForUniversalSegmentation"]}}, "predicts masks"),
        ({"mean": [0, 0]}, "is no segmenter checkpoint"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path, change, message):
    from safetensors.torch import load_file, save_file

    saved_network(tmp_path / "net")
    network, path = loaded(tmp_path / "net", 64), tmp_path / "base.safetensors"
    save_segmenter(segmenter_of(network), path, backbone=network.shape, facts={})
    assert len(load_segmenter(path)[0].weight) == len(LABELS)
    shape = network.shape.model_dump(mode="json")
    given = shape | {key: shape[key] | value if key == "config" else value for key, value in change.items()}
    header = {"backbone": given, "classes": 5, "channels": 16, "ppm_bins": [], "cosine": False}
    save_file(load_file(path), path, {"network": json.dumps(header)})
    with pytest.raises(UserError, match=message):
        load_segmenter(path)
