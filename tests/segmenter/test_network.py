"""The network: shapes, freezing, the classifier as tensors, and checkpoints that read themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from syn4seg.errors import UserError
from syn4seg.segmenter import network
from syn4seg.segmenter.backbones import load_backbone
from syn4seg.segmenter.network import Classifier, Segmenter, frozen_features, load_segmenter, save_segmenter, upsample


def _segmenter(**changes):
    torch.manual_seed(0)
    return Segmenter(load_backbone("embedded"), **({"classes": 5, "channels": 16, "ppm_bins": (1, 2)} | changes))


def _images(count=3, size=32):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("bins", [(), (1,), (1, 2, 3, 6)])
@pytest.mark.parametrize("cosine", [False, True])
def test_features_and_logits_have_the_promised_shapes(bins, cosine):
    net = _segmenter(ppm_bins=bins, cosine=cosine).eval()
    x = net.prepare(_images())
    assert net.features(x).shape == (3, 16, 8, 8)
    assert net(x).shape == (3, 5, 8, 8) and net.predict(x).shape == (3, 5, 32, 32)
    assert torch.equal(net.head(net.backbone(x)), net(x))
    assert torch.equal(net.bottleneck(net.trunk(x)), net.features(x))
    assert net.prepare(_images()[0]).shape == (1, 3, 32, 32)


def test_preparing_normalises_by_the_backbones_mean_and_std():
    x = _segmenter().prepare(np.full((2, 2, 3), 255, np.uint8))
    assert torch.allclose(x, torch.full((1, 3, 2, 2), (1 - 0.5) / 0.25))


def test_the_classifier_equals_a_loop_over_pixels():
    rng = torch.Generator().manual_seed(0)
    f, w, b = torch.randn(2, 6, 3, 4, generator=rng), torch.randn(5, 6, generator=rng), torch.randn(5, generator=rng)
    linear, cosine = Classifier(w, b)(f), Classifier(w, b, cosine=True)(f)
    for n, y, x, k in np.ndindex(2, 3, 4, 5):
        v = f[n, :, y, x]
        assert torch.isclose(linear[n, k, y, x], v @ w[k] + b[k], atol=1e-5)
        assert torch.isclose(cosine[n, k, y, x], 10 * (v @ w[k]) / (v.norm() * w[k].norm()), atol=1e-4)


def test_frozen_features_do_not_depend_on_the_batch_and_leave_no_trace():
    net, images = _segmenter(), _images(5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    whole, parts = frozen_features(net, images), frozen_features(net, images, batch=2)
    assert whole.dtype == torch.float16 and whole.shape == (5, 16, 8, 8)
    assert torch.allclose(whole.float(), parts.float(), atol=1e-2)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("cosine", [False, True])
def test_a_checkpoint_restores_the_same_predictions_without_being_told_the_shape(tmp_path, cosine):
    net = _segmenter(cosine=cosine).half().float().eval()
    save_segmenter(net, tmp_path / "s.safetensors", backbone="embedded", facts={"miou": 0.5})
    again, facts = load_segmenter(tmp_path / "s.safetensors")
    assert facts == {"miou": 0.5} and not again.training
    x = net.prepare(_images())
    assert torch.allclose(again(x), net(x), atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(UserError, match="does not exist"):
        load_segmenter(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_segmenter(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no segmenter checkpoint"):
        load_segmenter(tmp_path / "other.safetensors")


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (12, 16), (2, 2), (3, 4)])
@pytest.mark.parametrize("work", [0, 1000])
def test_upsampling_is_bilinear_interpolation_and_so_is_its_gradient(shape, align, work, monkeypatch):
    monkeypatch.setattr(network, "PRODUCT_WORK", work)
    monkeypatch.setattr(network, "PRODUCT_WORK_TRAINING", work)
    x = torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = upsample(x, shape, align)
    with torch.no_grad():
        assert torch.allclose(upsample(x, shape, align), found, atol=1e-6)
    expected = torch.nn.functional.interpolate(x, shape, mode="bilinear", align_corners=align)
    assert torch.allclose(found, expected, atol=1e-6)
    weight = torch.arange(found.numel()).reshape(found.shape) / 100
    (ours,) = torch.autograd.grad((found * weight).sum(), x)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.allclose(ours, theirs, atol=1e-4)
