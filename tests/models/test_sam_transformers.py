"""SAMs of transformers against the library's own processor and forward pass, image by image."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from transformers.utils import logging

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.labeling.components import find_components
from syn4seg.models.refiners import Hints
from syn4seg.models.sam_transformers import TransformersRefiner, TransformersSam, empty_network, load_transformers_sam
from syn4seg.stages.labels import BoundaryRefiner
from tests.shared_sams import KINDS, LIBRARY, saved_sam

SIZES = ((40, 60), (96, 64), (56, 56))
HINTS = (("box",), ("point",), ("box", "point"), ("box", "mask"), ("point", "mask"), ("box", "point", "mask"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per kind, named after it."""
    logging.set_verbosity_error()
    root = tmp_path_factory.mktemp("sams")
    for kind in KINDS:
        saved_sam(root / kind, kind)
    return root


@pytest.fixture(scope="module")
def sams(folders: Path) -> dict[str, TransformersSam]:
    return {kind: load_transformers_sam(str(folders / kind)) for kind in KINDS}


def _images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        np.kron(rng.integers(0, 255, (h // 8 + 1, w // 8 + 1, 3)), np.ones((8, 8, 1)))[:h, :w].astype(np.uint8) for h, w in SIZES
    ]


def _labels() -> list[np.ndarray]:
    labels = [np.zeros(size, np.uint8) for size in SIZES]
    labels[0][5:30, 10:40], labels[0][20:38, 45:58] = 1, 2
    labels[1][10:80, 5:30] = 3
    labels[2][8:20, 8:20], labels[2][30:50, 4:50], labels[2][2:5, 30:50] = 1, 2, 2
    return labels


def _hints(told: tuple[str, ...], sam: Any = None) -> list[Hints]:
    refiner = BoundaryRefiner(sam, load(None, [f"refinement.hints=[{','.join(told)}]"]).refinement)
    return [refiner.hints(find_components(label)) for label in _labels()]


def hq_masks(decoder: Any, **given: Any) -> Any:
    """Return what the authors of HQ-SAM publish, with the library's layers (one image and one hint).

    The library's own `forward` gives the upscaling the image's embedding from before the transformer, see below.
    """
    image, dense, inner = given["image_embeddings"], given["dense_prompt_embeddings"], given["intermediate_embeddings"][0]
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight])[None, None]
    tokens = torch.cat([tokens, given["sparse_prompt_embeddings"]], 2)
    positions = {"image_positional_embeddings": given["image_positional_embeddings"], "attention_similarity": None}
    answers, cells = decoder.transformer(point_embeddings=tokens, image_embeddings=image + dense, **positions)
    gelu = torch.nn.functional.gelu
    fine = decoder.upscale_conv1(cells[:, 0].mT.reshape(image.shape))
    fine = gelu(decoder.upscale_conv2(gelu(decoder.upscale_layer_norm(fine))))
    early = decoder.compress_vit_conv2(gelu(decoder.compress_vit_norm(decoder.compress_vit_conv1(inner.permute(0, 3, 1, 2)))))
    late = decoder.encoder_conv2(gelu(decoder.encoder_norm(decoder.encoder_conv1(image))))
    detailed = decoder.mask_conv2(gelu(decoder.mask_norm(decoder.mask_conv1(fine)))) + early + late
    plain = torch.einsum("bpc,bchw->bphw", decoder.output_hypernetworks_mlps[0](answers[:, :, 1]), fine)
    high = torch.einsum("bpc,bchw->bphw", decoder.hq_mask_mlp(answers[:, :, 1 + len(decoder.mask_tokens.weight)]), detailed)
    return (plain + high)[:, :, None], decoder.iou_prediction_head(answers[:, :, 0])[:, :, :1]


class Official:
    """The library's own model and processor of a folder, for one image."""

    def __init__(self, folder: Path, kind: str):
        import transformers

        network, images, processor = (getattr(transformers, name) for name in LIBRARY[kind])
        self.network = network.from_pretrained(folder).eval()
        if kind == "sam_hq":
            self.network.mask_decoder.forward = partial(hq_masks, self.network.mask_decoder)
        side = self.network.prompt_encoder.input_image_size
        square = {"height": side, "width": side}
        self.first = images is transformers.SamImageProcessor
        sizes = {"size": {"longest_edge": side}, "pad_size": square} if self.first else {"size": square}
        self.processor = processor(images(**sizes))
        self.low = 4 * self.network.prompt_encoder.image_embedding_size[0]

    @torch.no_grad()
    def __call__(self, image: np.ndarray, hints: Hints) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (R, H, W) and IoU (R,)."""
        found = [self._one(image, hints, row) for row in range(len(hints))]
        return np.stack([logits for logits, _ in found]), np.array([iou for _, iou in found], np.float32)

    def _one(self, image: np.ndarray, hints: Hints, row: int) -> tuple[np.ndarray, float]:
        given: dict[str, Any] = {}
        if hints.boxes is not None:
            given["input_boxes"] = [[hints.boxes[row].tolist()]]
        if hints.points is not None:
            given |= {"input_points": [[[hints.points[row].tolist()]]], "input_labels": [[[1]]]}
        inputs = self.processor(images=image, return_tensors="pt", **given)
        sizes = [inputs.pop("original_sizes"), *([inputs.pop("reshaped_input_sizes")] if self.first else [])]
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
        if hints.masks is not None:
            inputs["input_masks"] = self._mask(hints.masks[row])
        out = self.network(**inputs, multimask_output=False)
        full = self.processor.post_process_masks(out.pred_masks[0][None], *sizes, binarize=False)[0]
        return full[0, 0].numpy(), float(out.iou_scores[0, 0, 0])

    def _mask(self, mask: np.ndarray) -> torch.Tensor:
        """Return the mask as logits: SAM 2 and SAM 3 bring it to their grid themselves, the first SAM takes its own grid alone."""
        logits = torch.from_numpy(np.where(mask, 10, -10).astype(np.float32))[None, None]
        if not self.first:
            return logits
        inside = self.processor.image_processor._get_preprocess_shape(mask.shape, longest_edge=self.low)
        low = torch.full((1, 1, self.low, self.low), -10.0)
        low[..., : inside[0], : inside[1]] = interpolate(logits, inside, mode="bilinear", antialias=True)
        return low


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_librarys_own_processor_and_forward_pass(kind: str, folders: Path, sams: dict[str, Any]):
    official, refiner = Official(folders / kind, kind), TransformersRefiner(sams[kind], images_per_pass=2)
    depends = set()
    for told in HINTS:
        hints = _hints(told)
        for image, given, (masks, iou) in zip(_images(), hints, refiner.masks(_images(), hints), strict=True):
            logits, quality = official(image, given)
            assert masks.dtype == bool and masks.shape == logits.shape and iou.dtype == np.float32
            spread = float(np.abs(logits).max())
            assert ((masks == (logits > 0)) | (np.abs(logits) < 1e-3 * spread)).all()
            np.testing.assert_allclose(iou, quality, atol=1e-3)
            assert 0 < masks.mean() < 1
            depends.add(iou.tobytes())
    assert len(depends) == len(HINTS) * len(SIZES)  # image and every kind of hint count


def test_the_library_still_upscales_hq_sams_embedding_from_before_the_transformer(folders: Path):
    """Once this fails, `_mended` may go, and `hq_masks` here."""
    import transformers

    network, seen = transformers.SamHQModel.from_pretrained(folders / "sam_hq").eval(), []
    network.mask_decoder.upscale_conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        image, inner = network.get_image_embeddings(torch.rand(1, 3, 64, 64))
        network(image_embeddings=image, intermediate_embeddings=inner, input_boxes=torch.tensor([[[3.0, 3, 40, 20]]]))
    plain = image + network.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    assert torch.equal(seen[0], plain.transpose(2, 3))


@pytest.mark.parametrize("kind", ["sam", "sam_hq", "sam2", "sam3_tracker"])
def test_masks_are_the_same_bytes_with_any_companions_and_from_a_kept_embedding(kind: str, sams: dict[str, Any]):
    refiner, images, hints = TransformersRefiner(sams[kind], images_per_pass=2), _images(), _hints(("box",))
    together = refiner.masks(images, hints)
    for i, (masks, iou) in enumerate(together):
        alone = refiner.masks([images[i]], [hints[i].boxes])[0]
        kept = torch.from_numpy(refiner.embed([images[i]])[:1].numpy())[0]
        decoded = refiner.decode(kept, SIZES[i], hints[i])
        for a, b in (alone, decoded):
            assert a.tobytes() == masks.tobytes() and b.tobytes() == iou.tobytes()


def test_hints_may_be_decoded_in_pieces_and_images_without_any_are_not_encoded(sams: dict[str, Any]):
    refiner, images, hints = TransformersRefiner(sams["sam2"]), _images(), _hints(("box", "point", "mask"))
    whole = refiner.masks(images, hints)
    refiner.hints_per_pass = 2
    for (a, p), (b, q) in zip(whole, refiner.masks(images, hints), strict=True):
        assert (a != b).mean() < 1e-3
        np.testing.assert_allclose(p, q, atol=1e-5)
    seen = []
    refiner.sam.network.vision_encoder.register_forward_pre_hook(lambda *_: seen.append(1))
    assert refiner.masks(images[:1], [np.zeros((0, 4), np.float32)])[0][0].shape == (0, *SIZES[0]) and seen == []


def test_the_folders_own_processor_counts(folders: Path, tmp_path: Path):
    from transformers import Sam2ImageProcessor

    folder = shutil.copytree(folders / "sam2", tmp_path / "sam2")
    plain = load_transformers_sam(str(folder))
    Sam2ImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    own = load_transformers_sam(str(folder))
    assert tuple(own.processor.image_mean) == (0.1, 0.2, 0.3) != tuple(plain.processor.image_mean)
    assert own.pixels(_images()[0]).shape == (3, 64, 64)  # the side is the network's


def test_sabr_runs_with_a_network_of_transformers(folders: Path):
    settings = load(
        None, [f"refinement.model={folders / 'sam'}", "refinement.images_per_pass=2", "refinement.min_agreement=0"]
    ).refinement
    refine = BoundaryRefiner.from_settings(settings, "cpu")
    for label, (refined, audit) in zip(_labels(), refine(_images(), _labels()), strict=True):
        assert refined.shape == label.shape and audit["sam"]["accepted"] == len(find_components(label).area)


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_alone_says_how_large_a_network_is(kind: str, folders: Path, sams: dict[str, Any]):
    empty, whole = empty_network(str(folders / kind)), sams[kind]
    count = [sum(p.numel() for p in sam.network.parameters()) for sam in (empty, whole)]
    assert count[0] == count[1] and empty.shapes == whole.shapes == [
        m.shape[1:] for m in whole.maps(torch.zeros(1, 3, whole.side, whole.side))
    ]


def test_weights_of_another_network_are_refused_in_a_sentence(folders: Path, tmp_path: Path):
    folder = shutil.copytree(folders / "sam2", tmp_path / "other")
    shutil.copy(folders / "sam" / "model.safetensors", folder)
    with pytest.raises(UserError, match=r"lacks \d+ tensors of Sam2Model.*config.json of another network"):
        load_transformers_sam(str(folder))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["backbone_config"]["embed_dim_per_stage"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))
    for call in (load_transformers_sam, empty_network):
        with pytest.raises(UserError, match=r"(cannot be loaded as|is no configuration of) Sam2Model"):
            call(str(folder))
