"""Networks of `labeling.features`: their maps are the library's own, of the image alone, at their own stride."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from syn4seg.errors import UserError
from syn4seg.segmenter.backbones import check_backbone, load_backbone
from syn4seg.segmenter.feature_networks import FeatureNetwork, check_network, empty_network, fit, fitted_shape
from tests.shared_features import tiny_clip, tiny_dinov2

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)


def _pixels(image, mean, std):
    return torch.from_numpy(((image / 255 - np.array(mean)) / np.array(std)).astype(np.float32)).permute(2, 0, 1)[None]


def test_dinov2_gives_the_library_s_own_map_of_the_resized_image(tmp_path):
    from transformers import Dinov2Backbone

    name = tiny_dinov2(tmp_path)
    check_network(name, None, 64)
    network = FeatureNetwork.load(name, None, 64, "cpu")
    found = network(IMAGE)
    assert found.shape == (16, 4, 8) and found.dtype == np.float32  # 64 pixels are 8 patches, 35.6 pixels nearly 4 and a half
    small = cv2.resize(IMAGE, (64, 32), interpolation=cv2.INTER_AREA)
    with torch.no_grad():
        wanted = Dinov2Backbone.from_pretrained(name).eval()(_pixels(small, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert np.allclose(found, wanted.feature_maps[-1][0], atol=1e-5)


def test_dinov3_gives_patches_without_its_registers(tmp_path):
    from transformers import AutoBackbone, DINOv3ViTConfig

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
    net = AutoBackbone.from_config(DINOv3ViTConfig(**shape, image_size=64, num_register_tokens=4)).eval()
    net.save_pretrained(tmp_path)
    found = FeatureNetwork.load(str(tmp_path), None, 96, "cpu")(IMAGE)
    small = cv2.resize(IMAGE, (96, 48), interpolation=cv2.INTER_LINEAR)
    with torch.no_grad():
        wanted = net(_pixels(small, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))).feature_maps[-1][0]
    assert found.shape == (16, 3, 6) and np.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_clip_gives_the_patch_tokens_of_its_last_layer_as_a_map(tmp_path, whole):
    from transformers import CLIPModel, CLIPVisionModel

    name = tiny_clip(tmp_path, whole=whole)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}')
    found = FeatureNetwork.load(name, None, 48, "cpu")(IMAGE)
    tower = CLIPModel.from_pretrained(name).vision_model if whole else CLIPVisionModel.from_pretrained(name)
    small = cv2.resize(IMAGE, (48, 24), interpolation=cv2.INTER_AREA)
    with torch.no_grad():
        pixels = _pixels(small, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
        tokens = tower.eval()(pixels, interpolate_pos_encoding=True).last_hidden_state[0, 1:]
    assert found.shape == (16, 3, 6)
    for row in range(3):
        for column in range(6):
            assert np.allclose(found[:, row, column], tokens[row * 6 + column], atol=1e-5)


def test_clip_is_a_backbone_of_the_segmenter_too_and_needs_no_folder_afterwards(tmp_path):
    from syn4seg.segmenter.network import Segmenter, read_segmenter, save_segmenter

    name = tiny_clip(tmp_path / "clip", whole=True)
    check_backbone(name, size=64)
    torch.manual_seed(1)
    segmenter = Segmenter(load_backbone(name), 3, 4, ()).eval()
    save_segmenter(segmenter, tmp_path / "net.safetensors", backbone=name, facts={}, whole=True)
    for file in (tmp_path / "clip").iterdir():
        file.unlink()
    again = read_segmenter(tmp_path / "net.safetensors")[0]
    x = torch.randn(1, 3, 40, 64)
    with torch.no_grad():
        assert torch.equal(again(x), segmenter(x)) and segmenter(x).shape == (1, 3, 5, 8)


def test_an_image_is_brought_to_whole_cells_of_about_the_size_asked_for():
    assert fitted_shape((300, 200, 3), 320, 14) == (322, 210) and fitted_shape((10, 1000), 64, 16) == (16, 64)
    assert fit(IMAGE, 90, 10) is IMAGE
    shrunk, enlarged = fit(IMAGE, 45, 5), fit(IMAGE, 180, 10)
    assert np.array_equal(shrunk, cv2.resize(IMAGE, (45, 25), interpolation=cv2.INTER_AREA))
    assert np.array_equal(enlarged, cv2.resize(IMAGE, (180, 100), interpolation=cv2.INTER_LINEAR))


def test_an_empty_network_has_the_parts_of_the_real_one(tmp_path):
    names = (tiny_dinov2(tmp_path / "d"), tiny_clip(tmp_path / "c", whole=True), "efficientnet-lite0")
    for name, stride in zip(names, (8, 8, 16), strict=True):
        empty, real = empty_network(name), load_backbone(name)
        shapes = [{k: v.shape for k, v in part.module.state_dict().items()} for part in (empty, real)]
        assert shapes[0] == shapes[1] and (empty.channels, empty.stride) == (real.channels, real.stride) and real.stride == stride
        assert all(tensor.is_meta for tensor in empty.module.state_dict().values())


def test_what_cannot_work_is_refused_before_it_is_loaded(tmp_path):
    name = tiny_dinov2(tmp_path)
    for network, weights, size, said in (
        ("resnet50", None, 64, "its weights would be random numbers; set labeling.feature_weights"),
        ("resnet50", str(tmp_path / "none.pth"), 64, "does not exist"),
        (name, "imagenet", 64, "carries its own; leave it empty"),
        (name, None, 15, "set labeling.feature_size to 16 or more"),
        ("nothing", None, 64, "'nothing' is unknown"),
        ("os:system", None, 64, "--trust"),
    ):
        with pytest.raises(UserError, match=said):
            check_network(network, weights, size)
