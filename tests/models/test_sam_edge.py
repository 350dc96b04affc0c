"""EdgeSAM from its own file: the encoder against one that is written from the names of that file's tensors alone."""

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
from syn4seg.models.sam_edge import build_edge_sam, translated
from syn4seg.planning.sizes_vision import sam_size
from tests.shared_sams import EDGE_WIDTHS, edge_sam_state

SIDE = 128


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return edge_sam_state(SIDE)


class Written:
    """RepViT-M1 with fused stages as EdgeSAM's file describes it, without a module."""

    def __init__(self, state: dict[str, Tensor]):
        self.state = {name.removeprefix("image_encoder."): t for name, t in state.items() if name.startswith("image_encoder.")}

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, norm = (
            self.state[f"{name}.c.weight"],
            [self.state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")],
        )
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
        return F.batch_norm(x, *norm)

    def plain(self, name: str, x: Tensor) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def layer(self, number: int, x: Tensor) -> Tensor:
        name = f"features.{number}"
        if f"{name}.token_mixer.2.c.weight" in self.state:
            x = self.conv(f"{name}.token_mixer.2", self.conv(f"{name}.token_mixer.0", x, 2))
        else:
            x = x + self.conv(f"{name}.token_mixer.0.conv", x) + self.conv(f"{name}.token_mixer.0.conv1", x)
        if f"{name}.token_mixer.1.fc1.weight" in self.state:
            inner = self.plain(f"{name}.token_mixer.1.fc1", x.mean((2, 3), keepdim=True)).relu()
            x = x * self.plain(f"{name}.token_mixer.1.fc2", inner).sigmoid()
        return x + self.conv(f"{name}.channel_mixer.m.2", F.gelu(self.conv(f"{name}.channel_mixer.m.0", x)))

    def __call__(self, x: Tensor) -> Tensor:
        x, ends = self.conv("features.0.2", F.gelu(self.conv("features.0.0", x, 2)), 2), {}
        for number, width in enumerate(EDGE_WIDTHS, 1):
            x = ends[width] = self.layer(number, x)
        coarse = self.plain("fuse_stage3.op_list.0", ends[384])
        size = [2 * side for side in coarse.shape[2:]]
        x = self.plain("fuse_stage2", ends[192]) + F.interpolate(coarse, size, mode="bicubic", align_corners=False)
        for conv, norm in ((0, 1), (2, 3)):
            x = self.plain(f"neck.{conv}", x).permute(0, 2, 3, 1)
            x = F.layer_norm(x, x.shape[-1:], self.state[f"neck.{norm}.weight"], self.state[f"neck.{norm}.bias"], 1e-6)
            x = x.permute(0, 3, 1, 2)
        return x


def test_the_encoder_is_what_its_file_describes(state: dict[str, Tensor]):
    sam = build_edge_sam(SIDE).eval()
    check_tensors(sam, translated(state), Path("edge_sam.pth"))
    cut = {name: t for name, t in state.items() if name != "image_encoder.features.23.token_mixer.0.conv.c.weight"}
    with pytest.raises(UserError, match=r"edge_sam\.pth do not fit .*pre_block\.token_mixer\.conv\.c\.weight is missing"):
        check_tensors(sam, translated(cut), Path("edge_sam.pth"))
    sam.load_state_dict(translated(state))
    x = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        found, want = sam.image_encoder(x), Written(state)(x)
    assert found.shape == (2, 256, 8, 8) and want.std() > 0.5
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)


def test_masks_are_those_of_sam_predictor_in_a_pass_of_two(state: dict[str, Tensor]):
    sam = build_edge_sam(SIDE).eval()
    sam.load_state_dict(translated(state))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in ((75, 100), (96, 64))]
    boxes = [np.array([[10, 10, 60, 50], [3, 3, 90, 70]], np.float32), np.array([[5, 20, 40, 80]], np.float32)]
    for image, hints, (masks, _) in zip(images, boxes, SamRefiner(sam, images_per_pass=2).masks(images, boxes), strict=True):
        predictor = SamPredictor(sam)
        predictor.set_image(image)
        scaled = predictor.transform.apply_boxes_torch(torch.from_numpy(hints), image.shape[:2])
        logits = predictor.predict_torch(None, None, scaled, multimask_output=False, return_logits=True)[0][:, 0]
        far = logits.abs().numpy() > 1e-3 * float(logits.abs().max())
        assert (masks == (logits.numpy() > 0))[far].all() and far.mean() > 0.9


def test_a_file_in_segment_anythings_format_is_told_by_its_tensors_and_counted_by_its_header(tmp_path: Path):
    full = {name: t.flatten()[:1].expand(t.shape) if t.ndim else t for name, t in edge_sam_state(1024).items()}  # a small file
    torch.save(full, tmp_path / "edge_sam.pth")
    sam = load_sam(tmp_path / "edge_sam.pth")
    assert sam.image_encoder.img_size == 1024 and not sam.training
    for name, tensor in translated(full).items():
        assert torch.equal(sam.state_dict()[name], tensor)
    size = sam_size(str(tmp_path / "edge_sam.pth"))
    assert size.part.parameters == sum(p.numel() for p in sam.parameters()) and round(size.part.parameters / 1e6, 1) == 9.6
    assert 21.8 < (size.encode_flops + size.box_flops) / 2e9 < 22.1, "the authors publish 22.1; norms are not counted here"


def test_without_timm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without_timm(name: str, *args, **kwargs):
        if name.startswith("timm"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(UserError, match=r"EdgeSAM needs timm.*syn4seg-ray\[timm\]"):
        build_edge_sam(SIDE)
