"""Backbones: what a name means, the stride it promises, and errors that teach."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from syn4seg.errors import UserError
from syn4seg.segmenter.backbones import IMAGENET_MEAN, IMAGENET_STD, check_backbone, load_backbone, read_weights
from syn4seg.trust import VARIABLE, trust


@pytest.fixture(autouse=True)
def own_trust(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


@pytest.mark.parametrize(("name", "side"), [("embedded", 64), ("resnet50", 33), ("resnet50-deep", 33)])
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
    with pytest.raises(UserError, match=f"1 of .* missing, the first is '{first}'"):
        load_backbone("embedded", str(tmp_path / "short.pth"))
    torch.save(state | {first: torch.zeros(3)}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=r"is \(3,\), expected"):
        load_backbone("embedded", str(tmp_path / "wrong.pth"))
    with pytest.raises(UserError, match="does not exist"):
        load_backbone("resnet50", str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="carries its own"):
        load_backbone("some/hub-name", str(tmp_path / "w.pth"))


class _Surprise:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"a": _Surprise()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="can run code"):
        read_weights(tmp_path / "bad.pth")
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
    for name in ("my_nets:good", "my_nets:bad", "my_nets:none", "no_such_module:x"):
        trust(name)
    backbone = load_backbone("my_nets:good", "path")
    assert (backbone.channels, backbone.stride, backbone.module.weights) == (7, 2, "path")
    with pytest.raises(UserError, match="without channels, mean, std"):
        load_backbone("my_nets:bad")
    for name in ("my_nets:none", "no_such_module:x"):
        with pytest.raises(UserError, match="cannot be imported"):
            load_backbone(name)


def test_a_transformers_folder_is_a_backbone(tmp_path):
    from transformers import ResNetBackbone, ResNetConfig

    torch.manual_seed(0)
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    config = ResNetConfig.from_dict(shape | {"out_features": ["stage2"]})
    net = ResNetBackbone(config).eval()
    net.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.module(x), net(x).feature_maps[-1])
    assert (backbone.channels, backbone.stride) == (16, 8) and isinstance(backbone.module, nn.Module)


def _tiny(kind):
    from transformers import ConvNextBackbone, ConvNextConfig, Dinov2Backbone, Dinov2Config, SwinBackbone, SwinConfig

    torch.manual_seed(0)
    if kind == "dinov2":
        config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
        return Dinov2Backbone(config).eval()
    if kind == "convnext":
        return ConvNextBackbone(ConvNextConfig(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1])).eval()
    return SwinBackbone(SwinConfig(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 2], window_size=7)).eval()


KINDS = {"dinov2": (16, 14), "convnext": (24, 32), "swin": (64, 32)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformers_map_has_the_promised_shape_and_shows_the_whole_image_at_every_canvas_size(kind, tmp_path):
    net = _tiny(kind)
    net.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert (backbone.channels, backbone.stride) == KINDS[kind]
    for side in (417, 473, 64):
        check_backbone(str(tmp_path), size=side)
        x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))
        cells = math.ceil(side / backbone.stride)
        stretched = F.interpolate(x, (cells * backbone.stride,) * 2, mode="bilinear", align_corners=False)
        with torch.no_grad():
            found = backbone.module(x)
            assert found.shape == (1, backbone.channels, cells, cells)
            assert torch.equal(found, net(stretched).feature_maps[-1])
            x[..., -4:, -4:] += 1  # the last pixels are seen
            assert not torch.equal(backbone.module(x)[..., -1, -1], found[..., -1, -1])


def test_a_half_precision_checkpoint_is_loaded_as_float32(tmp_path):
    net = _tiny("swin").half()
    net.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path)).module.state_dict()
    for k, v in net.state_dict().items():
        assert loaded[f"net.{k}"].dtype != torch.float16 and torch.equal(loaded[f"net.{k}"], v.to(loaded[f"net.{k}"].dtype))


def test_a_checkpoint_of_a_classifier_is_a_backbone_with_plain_norms_but_lost_tensors_are_an_error(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import SwinConfig, SwinForImageClassification

    config = _tiny("swin").config
    assert isinstance(config, SwinConfig)
    whole = SwinForImageClassification(config)
    whole.save_pretrained(tmp_path)
    state = load_backbone(str(tmp_path)).module.state_dict()
    for name, tensor in whole.swin.encoder.state_dict().items():
        assert torch.equal(next(v for k, v in state.items() if k.endswith(name)), tensor)
    norm = {k: v for k, v in state.items() if "hidden_states_norms" in k}
    assert norm and all(torch.equal(v, torch.full_like(v, k.endswith("weight"))) for k, v in norm.items())
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(k for k in tensors if k.endswith("layernorm_before.weight"))
    save_file({k: v for k, v in tensors.items() if k != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors of SwinBackbone.*layernorm_before"):
        load_backbone(str(tmp_path))


def test_normalisation_is_the_folders_own_where_it_has_one(tmp_path):
    _tiny("dinov2").save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD)
    facts, file = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}, tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(facts))
    backbone = load_backbone(str(tmp_path))
    assert (backbone.mean, backbone.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    file.write_text(json.dumps(facts | {"do_normalize": False}))
    backbone = load_backbone(str(tmp_path))
    assert (backbone.mean, backbone.std) == ((0, 0, 0), (1, 1, 1))
    file.write_text(json.dumps(facts | {"image_std": [0.2, 0, 0.4]}))
    with pytest.raises(UserError, match="image_std"):
        load_backbone(str(tmp_path))


def test_a_folder_that_is_not_whole_is_named_before_and_while_it_loads(tmp_path):
    from transformers import ViTConfig

    _tiny("dinov2").save_pretrained(tmp_path)
    name, file = str(tmp_path), tmp_path / "model.safetensors"
    check_backbone(name)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is cut short.*download it again"):
        check_backbone(name)
    with pytest.raises(UserError, match=r"cannot be loaded.*download it again"):
        load_backbone(name)
    file.unlink()
    for call in (check_backbone, load_backbone):
        with pytest.raises(UserError, match=r"model\.safetensors"):
            call(name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))
    with pytest.raises(UserError, match=r"part-1\.safetensors is missing"):
        check_backbone(name)
    index.write_text("[]")
    with pytest.raises(UserError, match="no index of weight files"):
        check_backbone(name)
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no AutoBackbone of the kind 'vit'"):
        check_backbone(name)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"is unknown .*not a valid JSON"):
        check_backbone(name)


def test_the_check_finds_what_loading_would_and_loads_nothing(tmp_path, monkeypatch):
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:300])
    torch.save(torch.zeros(3), tmp_path / "alone.pth")
    for name, weights, message in (
        ("embedded", tmp_path / "none.pth", "does not exist"),
        ("embedded", tmp_path / "other.pth", "tensors are missing"),
        ("embedded", tmp_path / "cut.pth", "cut short"),
        ("embedded", tmp_path / "alone.pth", "holds a Tensor"),
        ("resnet50", "imagenet", "two sets.*expected imagenet-v1 or imagenet-v2"),
        ("resnet50-deep", "imagenet-v1", r"torchvision's, which has none.*resnet50_v2\.pth"),
        ("some/hub-name", tmp_path / "other.pth", "carries its own"),
        ("resnet-50", "none", "no such folder.*'resnet50'"),
    ):
        for call in (check_backbone, load_backbone):
            with pytest.raises(UserError, match=message):
                call(name, str(weights))
    for name in ("no_such_module:x", "my_checked_nets:x"):
        trust(name)
    with pytest.raises(UserError, match="no module 'no_such_module'"):
        check_backbone("no_such_module:x")
    (tmp_path / "my_checked_nets.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_backbone("my_checked_nets:x")
    with pytest.raises(UserError, match="do not exist"):
        check_backbone("my_checked_nets:x", str(tmp_path / "none.pth"))
    for name, weights in (("embedded", "none"), ("resnet101", "imagenet-v2"), ("resnet101-deep", "none")):
        check_backbone(name, weights)


def test_a_canvas_smaller_than_two_cells_is_refused_by_its_key(tmp_path):
    _tiny("convnext").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"stride 32.*segmenter\.size=63.*to 64 or more"):
        check_backbone(str(tmp_path), size=63)


def test_an_unknown_name_lists_what_is_known(tmp_path):
    with pytest.raises(UserError, match=r"expected 'embedded', 'resnet50'.*package\.module:factory"):
        load_backbone(str(tmp_path / "nothing"))


def test_a_residual_block_is_torchvisions():
    from torchvision.models.resnet import BasicBlock

    from syn4seg.segmenter.backbones import _Residual

    for inner, outer, stride in ((8, 16, 2), (8, 8, 1)):
        changes = torch.nn.Sequential(torch.nn.Conv2d(inner, outer, 1, stride, bias=False), torch.nn.BatchNorm2d(outer))
        theirs = BasicBlock(inner, outer, stride, changes if stride == 2 else None).eval()
        ours = _Residual(inner, outer, stride).eval()
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, inner, 9, 9, generator=torch.Generator().manual_seed(0))
        assert torch.equal(ours(x), theirs(x))
