"""The ResNets: true sizes, the two stems, which convolutions are dilated, and weights that belong to another one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision

from syn4seg.errors import UserError
from syn4seg.segmenter.backbones import check_backbone, load_backbone
from syn4seg.segmenter.resnet import RESNETS, dilated_resnet

STEMS = {"resnet50": 64 * 3 * 49 + 2 * 64, "resnet50-deep": 64 * 27 + 64 * 64 * 9 + 128 * 64 * 9 + 2 * 256}


def _meta(name):
    with torch.device("meta"):
        return load_backbone(name)


@pytest.mark.parametrize("name", RESNETS)
def test_maps_are_53_at_417_and_60_at_473(name):
    backbone = _meta(name)
    for side, cells in ((417, 53), (473, 60)):
        with torch.device("meta"), torch.no_grad():
            assert backbone.module(torch.zeros(2, 3, side, side)).shape == (2, 2048, cells, cells)


def test_parameters_are_those_of_the_true_architectures():
    count = {name: sum(p.numel() for p in _meta(name).module.parameters()) for name in RESNETS}
    assert count["resnet101"] == 44_549_160 - 2048 * 1000 - 1000 == 42_500_160
    assert count["resnet50"] == 25_557_032 - 2048 * 1000 - 1000 == 23_508_032
    wider = 64 * (64 + 256)  # layer1 takes 128 channels
    for layers in (50, 101):
        more = STEMS["resnet50-deep"] - STEMS["resnet50"] + wider
        assert count[f"resnet{layers}-deep"] - count[f"resnet{layers}"] == more


def _plain(state, x, dilate_first, deep):
    """A dilated ResNet-50 written out, in eval mode."""

    def norm(x, name):
        mean, var, w, b = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None] * w[:, None, None] + b[:, None, None]

    if deep:
        for i, stride in ((1, 2), (2, 1), (3, 1)):
            x = F.relu(norm(F.conv2d(x, state[f"conv{i}.weight"], None, stride, 1), f"bn{i}"))
    else:
        x = F.relu(norm(F.conv2d(x, state["conv1.weight"], None, 2, 3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks, stride, dilation in ((1, 3, 1, 1), (2, 4, 2, 1), (3, 6, 1, 2), (4, 3, 1, 4)):
        for i in range(blocks):
            name = f"layer{stage}.{i}"
            wide = dilation if i or dilate_first else max(1, dilation // 2)
            step = stride if i == 0 else 1
            y = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
            y = F.relu(norm(F.conv2d(y, state[f"{name}.conv2.weight"], None, step, wide, wide), f"{name}.bn2"))
            y = norm(F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if i == 0:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], None, step), f"{name}.downsample.1")
            x = F.relu(x + y)
    return x


@pytest.mark.parametrize("deep", [False, True])
def test_the_network_equals_one_written_out_for_both_rules_of_dilation(deep):
    torch.manual_seed(0)
    x, maps = torch.randn(1, 3, 65, 65), []
    for first in (False, True):
        net = dilated_resnet(50, deep_stem=deep, dilate_first=first).eval()
        if maps:
            net.load_state_dict(state)  # noqa: F821 (the other rule's tensors)
        state = net.state_dict()
        with torch.no_grad():
            maps.append(net(x))
            expected = _plain(state, x, first, deep)
        assert torch.allclose(maps[-1], expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    assert (maps[0] - maps[1]).abs().mean() > 0.05 * maps[0].abs().mean()  # the rules are not the same network


def test_names_choose_the_rule_that_their_weights_were_trained_with():
    for name in RESNETS:
        net, deep = _meta(name).module, name.endswith("-deep")
        for stage, dilation in (("layer3", 2), ("layer4", 4)):
            middle = [m for k, m in net.get_submodule(stage).named_modules() if k.endswith("conv2")]
            assert all(c.dilation == c.padding == (dilation, dilation) and c.stride == (1, 1) for c in middle[1:])
            first = dilation if deep else dilation // 2
            assert middle[0].dilation == middle[0].padding == (first, first) and middle[0].stride == (1, 1)


def _file(path, tensors):
    """A weights file of the true shapes that holds one number per tensor."""
    torch.save({k: torch.tensor(0.5).expand(v.shape) for k, v in tensors.items()}, path)
    return str(path)


def test_the_public_file_of_the_deep_stem_is_read(tmp_path):
    own = _meta("resnet50-deep").module.state_dict()
    names = {f"{k}{i}" for i in (1, 2, 3) for k in ("conv", "bn")} | {f"layer{i}" for i in (1, 2, 3, 4)}
    assert {k.split(".")[0] for k in own} == names
    old = {k: v for k, v in own.items() if "num_batches" not in k} | {"fc.weight": torch.zeros(1000, 2048)}
    weights = _file(tmp_path / "resnet50_v2.pth", old)
    check_backbone("resnet50-deep", weights)
    loaded = load_backbone("resnet50-deep", weights).module.state_dict()
    assert all((v == 0.5).all() for k, v in loaded.items() if "num_batches" not in k)


def test_weights_of_another_resnet_are_named(tmp_path):
    with torch.device("meta"):
        plain = {k: torchvision.models.get_model(k).state_dict() for k in ("resnet50", "resnet101")}
    seven = {k: _file(tmp_path / f"{k}.pth", v) for k, v in plain.items()}
    deep = _file(tmp_path / "deep.pth", _meta("resnet50-deep").module.state_dict())
    check_backbone("resnet50", seven["resnet50"])
    for name, weights, message in (
        ("resnet50", deep, r"\(64, 3, 3, 3\), expected \(64, 3, 7, 7\); its stem is that of 'resnet50-deep'"),
        ("resnet50-deep", seven["resnet50"], "tensors are missing.*its stem is that of 'resnet50'"),
        ("resnet101", seven["resnet50"], r"tensors are missing, the first is 'layer3\.6"),
        ("resnet50", seven["resnet101"], r"no tensor 'layer3\.6.*deeper network"),
    ):
        with pytest.raises(UserError, match=message):
            check_backbone(name, weights)
