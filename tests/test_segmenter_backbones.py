"""Backbones: what a name means, the stride it promises, and errors that teach."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from syn4seg.segmenter.backbones import load_backbone, read_tensors


@pytest.mark.parametrize(("name", "side"), [("embedded", 64), ("resnet50", 33)])
def test_the_feature_map_has_the_promised_channels_and_stride(name, side):
    torch.manual_seed(0)
    backbone = load_backbone(name)
    with torch.no_grad():
        out = backbone.module.eval()(torch.zeros(1, 3, side, side))
    assert out.shape == (1, backbone.channels, -(-side // backbone.stride), -(-side // backbone.stride))


def test_weights_are_read_from_both_formats_and_checked_tensor_by_tensor(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    state = load_backbone("embedded").module.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    save_file(state | {"fc.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        loaded = load_backbone("embedded", str(tmp_path / name)).module.state_dict()
        assert all(torch.equal(loaded[k], state[k]) for k in state)
    first = next(iter(state))
    torch.save({k: v for k, v in state.items() if k != first}, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=f"1 of .* missing, the first is '{first}'"):
        load_backbone("embedded", str(tmp_path / "short.pth"))
    torch.save(state | {first: torch.zeros(3)}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"is \(3,\), expected"):
        load_backbone("embedded", str(tmp_path / "wrong.pth"))
    with pytest.raises(ValueError, match="does not exist"):
        load_backbone("resnet50", str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match="carries its own"):
        load_backbone("some/hub-name", str(tmp_path / "w.pth"))


class _Surprise:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"a": _Surprise()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="can run code"):
        read_tensors(tmp_path / "bad.pth")
    assert "code ran" not in capsys.readouterr().out


def test_a_factory_is_imported_by_name_and_must_tell_its_facts(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def good(weights):\n    net = nn.Conv2d(3, 7, 2, 2)\n    net.channels, net.stride = 7, 2\n"
        "    net.mean, net.std = (0, 0, 0), (1, 1, 1)\n    net.weights = weights\n    return net\n"
        "def bad(weights):\n    return nn.Conv2d(3, 7, 2, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    backbone = load_backbone("my_nets:good", "path")
    assert (backbone.channels, backbone.stride, backbone.module.weights) == (7, 2, "path")
    with pytest.raises(ValueError, match="without channels, mean, std"):
        load_backbone("my_nets:bad")
    for name in ("my_nets:none", "no_such_module:x"):
        with pytest.raises(ValueError, match="cannot be imported"):
            load_backbone(name)


def test_a_transformers_folder_is_a_backbone(tmp_path):
    from transformers import ResNetBackbone, ResNetConfig

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    net = ResNetBackbone(config).eval()
    net.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.module(x), net(x).feature_maps[-1])
    assert (backbone.channels, backbone.stride) == (16, 8) and isinstance(backbone.module, nn.Module)


def test_the_mobilenet_example_pads_as_tensorflow_does():
    from examples.mobilenet import Convolution

    torch.manual_seed(0)
    for side, stride, kernel in ((7, 2, 3), (8, 2, 3), (8, 1, 3), (5, 1, 1)):
        layer = Convolution(2, 3, kernel, stride, linear=True)
        x = torch.randn(1, 2, side, side)
        out = -(-side // stride)
        spare = max((out - 1) * stride + kernel - side, 0)
        wide = torch.zeros(1, 2, side + spare, side + spare)
        wide[:, :, spare // 2 : spare // 2 + side, spare // 2 : spare // 2 + side] = x
        assert torch.equal(layer(x), layer.conv(wide)) and layer(x).shape[2] == out


def test_the_mobilenet_example_is_a_backbone(tmp_path):
    from safetensors.torch import save_file

    backbone = load_backbone("examples.mobilenet:mobilenet_v2")
    with torch.no_grad():
        assert backbone.module(torch.zeros(1, 3, 60, 44)).shape == (1, backbone.channels, 8, 6)
    state = backbone.module.state_dict()
    save_file({k: v.half() for k, v in state.items()} | {"fc.weight": torch.zeros(2)}, tmp_path / "m.safetensors")
    again = load_backbone("examples.mobilenet:mobilenet_v2", str(tmp_path / "m.safetensors")).module.state_dict()
    assert all(torch.allclose(again[k], state[k], atol=1e-2) for k in state)
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="have no tensor"):
        load_backbone("examples.mobilenet:mobilenet_v2", str(tmp_path / "m.safetensors"))


def test_an_unknown_name_lists_what_is_known(tmp_path):
    with pytest.raises(ValueError, match=r"expected 'embedded', 'resnet50'.*package\.module:factory"):
        load_backbone(str(tmp_path / "nothing"))
