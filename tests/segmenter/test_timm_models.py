"""timm's models by name."""

from __future__ import annotations

import sys

import pytest
import torch

from syn4seg.errors import UserError
from syn4seg.segmenter.backbones import check_backbone, load_backbone


def test_a_missing_timm_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm.*syn4seg-ray\[timm\]"):
        check_backbone("timm:resnet18")


def test_a_model_is_the_plain_one_with_its_maps_joined(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = load_backbone("timm:resnet18")
    assert (backbone.channels, backbone.stride) == (128 + 256 + 512, 16)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        joined = backbone.module.eval()(x)
        plain = timm.create_model("resnet18", features_only=True).eval()
        state = backbone.module.state_dict()
        plain.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        middle = plain(x)[3]
    assert joined.shape == (1, 896, 4, 6)
    assert torch.allclose(joined[:, 128:384], middle / middle.square().mean().sqrt(), atol=1e-5)
    torch.save(state, tmp_path / "weights.pth")
    again = load_backbone("timm:resnet18", str(tmp_path / "weights.pth")).module.state_dict()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_unknown_and_unfit_models_are_refused_by_name():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="timm has no such model"):
        check_backbone("timm:resnet19")
    with pytest.raises(UserError, match="expected 8, 16 and 32"):
        load_backbone("timm:vit_tiny_patch16_224")
