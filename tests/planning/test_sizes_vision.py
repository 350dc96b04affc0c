"""SAM and the segmenter counted against published numbers, torch's counter and a checkpoint file."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from syn4seg.errors import UserError
from syn4seg.planning import sizes_vision


@pytest.mark.parametrize(
    ("name", "millions", "encode"), [("vit-b", 93.7, 0.972e12), ("vit-l", 312.3, 2.986e12), ("vit-h", 641.1, 5.961e12)]
)
def test_published_sams_count_as_published(name, millions, encode):
    size = sizes_vision.sam_size(name)
    assert size.part.parameters / 1e6 == pytest.approx(millions, abs=0.05)
    assert size.encode_flops == pytest.approx(encode, rel=0.001) and size.tokens == 64 * 64


@pytest.mark.parametrize(("name", "millions"), [("resnet50", 23.5), ("resnet101", 42.5)])
def test_backbones_count_as_torchvision_without_the_classifier(name, millions):
    size = sizes_vision.segmenter_size(name, 16, 512, (1, 2, 3, 6), 417)
    assert size.backbone.parameters / 1e6 == pytest.approx(millions, abs=0.05)
    assert size.features == (512, 53, 53) and size.trunk == 4096 * 53 * 53


def test_a_training_step_of_the_segmenter_costs_three_forward_passes_and_keeps_what_is_planned():
    from syn4seg.segmenter.backbones import load_backbone
    from syn4seg.segmenter.network import Segmenter

    size, net = (
        sizes_vision.segmenter_size("resnet50", 16, 64, (1, 2), 65),
        Segmenter(load_backbone("resnet50", "none"), 16, 64, (1, 2)),
    )
    own, kept = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = net.train()(torch.randn(2, 3, 65, 65))
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * size.flops
    assert counter.get_total_flops() == pytest.approx(3 * forward, rel=0.02)
    assert sum(n for place, n in kept.items() if place not in own) / 2 == pytest.approx(4 * size.kept, rel=0.35)


def test_a_sam_checkpoint_is_told_by_its_header(tmp_path):
    from segment_anything import build_sam_vit_b

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build_sam_vit_b().state_dict().items()}
    path = tmp_path / "sam.pth"  # all tensors are views of one number, so the file is small
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, path)
    assert path.stat().st_size < 2**20 and sizes_vision.sam_size(str(path)) == sizes_vision.sam_size("vit-b")


def test_a_sam_of_transformers_counts_from_its_configuration_as_segment_anythings(tmp_path):
    import transformers

    (tmp_path / "config.json").write_text(transformers.SamConfig(vision_config={"hidden_size": 768}).to_json_string())
    size, plain = sizes_vision.sam_size(str(tmp_path)), sizes_vision.sam_size("vit-b")
    assert size.part.bytes(4) == plain.part.bytes(4) and (size.tokens, size.heads) == (plain.tokens, plain.heads)
    assert size.encode_flops == plain.encode_flops
    assert size.box_flops == pytest.approx(plain.box_flops, rel=0.02)


@pytest.mark.parametrize(("start", "millions", "tokens"), [("Sam2", 31.4, 64 * 64), ("Sam3Tracker", 460, 72 * 72)])
def test_the_image_parts_of_sam_2_and_sam_3_count_as_published(start, millions, tokens, tmp_path):
    """SAM 2.1 tiny without its memory, and SAM 3's encoder of 0.45 billion with the tracker's decoder."""
    import transformers

    (tmp_path / "config.json").write_text(getattr(transformers, f"{start}Config")().to_json_string())
    size = sizes_vision.sam_size(str(tmp_path))
    assert size.part.parameters / 1e6 == pytest.approx(millions, rel=0.03) and size.tokens == tokens
    assert size.encode_flops > 50 * size.box_flops > 0


def test_a_configuration_of_transformers_that_does_not_fit_together_is_one_sentence(tmp_path):
    import transformers

    config = transformers.Sam2Config(vision_config={"backbone_feature_sizes": [[3, 3], [2, 2], [1, 1]]})
    (tmp_path / "config.json").write_text(config.to_json_string())
    with pytest.raises(UserError, match=r"config\.json of .*: its numbers do not fit together"):
        sizes_vision.sam_size(str(tmp_path))


def test_a_network_of_other_features_counts_by_hand(tmp_path):
    from transformers import Dinov2Backbone, Dinov2Config

    from tests.shared_features import tiny_clip, tiny_dinov2

    name = tiny_dinov2(tmp_path / "dino")
    size, net = sizes_vision.feature_size(name, 50), Dinov2Backbone(Dinov2Config.from_pretrained(name))
    assert size.part.parameters == sum(p.numel() for p in net.parameters())
    tokens, width, inner = 1 + 6 * 6, 16, 64  # 50 pixels are brought to 48
    block = 2 * tokens * (4 * width**2 + 2 * width * inner + 2 * tokens * width)
    assert size.flops == 2 * block + 2 * 36 * (3 * 8 * 8) * width, "two blocks, and the patches"
    assert size.largest == tokens * inner, "the hidden layer of a block"
    whole, tower = (tiny_clip(tmp_path / str(both), whole=both) for both in (True, False))
    assert sizes_vision.feature_size(whole, 32) == sizes_vision.feature_size(tower, 32), "the text tower is left alone"
