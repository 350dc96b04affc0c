"""MobileSAM from its own file: the encoder against one that is written from the names of that file's tensors alone."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segment_anything import SamPredictor
from torch import Tensor

from syn4seg.errors import UserError
from syn4seg.models.sam import SamRefiner, check_tensors, load_sam
from syn4seg.models.sam_mobile import build_mobile_sam, translated
from syn4seg.planning.sizes_vision import sam_size
from tests.shared_sams import mobile_sam_state

SIDE = 224


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return mobile_sam_state(SIDE)


class Written:
    """TinyViT as MobileSAM's file describes it, without a module."""

    def __init__(self, state: dict[str, Tensor]):
        self.state = {name.removeprefix("image_encoder."): t for name, t in state.items() if name.startswith("image_encoder.")}

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, norm = (
            self.state[f"{name}.c.weight"],
            [self.state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")],
        )
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
        return F.batch_norm(x, *norm)

    def dense(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def attention(self, name: str, x: Tensor, window: int, heads: int) -> Tensor:
        """Attend within windows of an image (1, H, W, C), padded with zeros at the right and below."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        out = torch.empty_like(x)
        place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = (place[:, None] - place[None]).abs()
        bias = self.state[f"{name}.attention_biases"][:, apart[..., 0] * window + apart[..., 1]]
        for top in range(0, x.shape[1], window):
            for left in range(0, x.shape[2], window):
                box = np.s_[0, top : top + window, left : left + window]
                tokens = self.dense(f"{name}.qkv", self.norm(f"{name}.norm", x[box].reshape(window * window, -1)))
                q, k, v = tokens.reshape(window * window, heads, 3, -1).permute(2, 1, 0, 3)
                weights = (q @ k.mT / q.shape[-1] ** 0.5 + bias).softmax(-1)
                out[box] = self.dense(f"{name}.proj", (weights @ v).transpose(0, 1).flatten(1)).reshape(window, window, -1)
        return out[:, :height, :width]

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv("patch_embed.seq.2", F.gelu(self.conv("patch_embed.seq.0", x, 2)), 2)
        for stage, (depth, heads, window) in enumerate(zip((2, 2, 6, 2), (0, 4, 5, 10), (0, 7, 14, 7), strict=True)):
            for block in range(depth):
                name = f"layers.{stage}.blocks.{block}"
                if stage == 0:
                    inner = F.gelu(self.conv(f"{name}.conv2", F.gelu(self.conv(f"{name}.conv1", x))))
                    x = F.gelu(x + self.conv(f"{name}.conv3", inner))
                    continue
                x = x + self.attention(f"{name}.attn", x.permute(0, 2, 3, 1), window, heads).permute(0, 3, 1, 2)
                x = self.conv(f"{name}.local_conv", x)
                rows = self.norm(f"{name}.mlp.norm", x.permute(0, 2, 3, 1))
                x = x + self.dense(f"{name}.mlp.fc2", F.gelu(self.dense(f"{name}.mlp.fc1", rows))).permute(0, 3, 1, 2)
            if stage < 3:
                name = f"layers.{stage}.downsample"
                x = F.gelu(self.conv(f"{name}.conv2", F.gelu(self.conv(f"{name}.conv1", x)), 1 if stage == 2 else 2))
                x = self.conv(f"{name}.conv3", x)
        for conv, norm in ((0, 1), (2, 3)):
            weight = self.state[f"neck.{conv}.weight"]
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2).permute(0, 2, 3, 1)
            x = self.norm(f"neck.{norm}", x, 1e-6).permute(0, 3, 1, 2)
        return x


def test_the_encoder_is_what_its_file_describes(state: dict[str, Tensor]):
    sam = build_mobile_sam(SIDE).eval()
    check_tensors(sam, translated(state), Path("mobile_sam.pt"))
    sam.load_state_dict(translated(state))
    x = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        found, want = sam.image_encoder(x), Written(state)(x)
    assert found.shape == (1, 256, 14, 14) and want.std() > 0.5
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)


def test_masks_are_those_of_sam_predictor_in_a_pass_of_two(state: dict[str, Tensor]):
    sam = build_mobile_sam(SIDE).eval()
    sam.load_state_dict(translated(state))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in ((75, 100), (96, 64))]
    boxes = [np.array([[10, 10, 60, 50], [3, 3, 90, 70]], np.float32), np.array([[5, 20, 40, 80]], np.float32)]
    for image, hints, (masks, iou) in zip(images, boxes, SamRefiner(sam, images_per_pass=2).masks(images, boxes), strict=True):
        predictor = SamPredictor(sam)
        predictor.set_image(image)
        scaled = predictor.transform.apply_boxes_torch(torch.from_numpy(hints), image.shape[:2])
        logits, quality, _ = predictor.predict_torch(None, None, scaled, multimask_output=False, return_logits=True)
        far = logits[:, 0].abs().numpy() > 1e-3 * float(logits.abs().max())
        assert (masks == (logits[:, 0].numpy() > 0))[far].all() and far.mean() > 0.9
        np.testing.assert_allclose(iou, quality[:, 0].numpy(), atol=1e-4)


def test_a_file_in_segment_anythings_format_is_told_by_its_tensors_and_counted_by_its_header(tmp_path: Path):
    full = {
        name: t.flatten()[:1].expand(t.shape) if t.ndim else t for name, t in mobile_sam_state(1024).items()
    }  # so that the file is small
    torch.save(full, tmp_path / "mobile_sam.pt")
    sam = load_sam(tmp_path / "mobile_sam.pt")
    assert sam.image_encoder.img_size == 1024 and not sam.training
    for name, tensor in translated(full).items():
        assert torch.equal(sam.state_dict()[name], tensor)
    size = sam_size(str(tmp_path / "mobile_sam.pt"))
    assert size.part.parameters == sum(p.numel() for p in sam.parameters()) > 9.6e6
    assert 30e9 < size.encode_flops / 2 < 45e9 and size.tokens == 196
    del full["mask_decoder.iou_token.weight"]
    torch.save(full, tmp_path / "cut.pt")
    with pytest.raises(UserError, match=r"cut\.pt do not fit .*mask_decoder\.iou_token\.weight is missing"):
        load_sam(tmp_path / "cut.pt")


def test_without_timm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without_timm(name: str, *args, **kwargs):
        if name.startswith("timm"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(UserError, match=r"MobileSAM needs timm.*syn4seg-ray\[timm\]"):
        build_mobile_sam(SIDE)
