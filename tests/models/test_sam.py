"""The batched mask refiner against `SamPredictor` image by image, the loading of weights, and the packaged SAM."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from segment_anything import SamPredictor, build_sam_vit_b
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.models import sam as sam_module
from syn4seg.models.refiners import Hints
from syn4seg.models.sam import ARCHITECTURES, SamRefiner, build_sam, encoder_shape, load_sam
from syn4seg.models.sam_files import PUBLISHED, WEIGHTS
from tools import sam as build
from tools.checkpoint import Journal
from tools.shapes import LIKENESS, likeness, random_outline


@pytest.fixture(scope="module")
def packaged() -> Sam:
    return load_sam("embedded-sam")


def _images(count: int, height: int, width: int) -> np.ndarray:
    """Drawn scenes, cut or repeated to any size."""
    drawn = [embedded.draw(embedded.sample_scene(embedded.seeded("t", i)), 96)[0] for i in range(count)]
    return np.stack([np.tile(i, (2, 2, 1))[:height, :width] for i in drawn])


def _boxes(rng: np.random.Generator, counts: list[int], height: int, width: int) -> list[np.ndarray]:
    side = np.array([width, height])
    low = [rng.uniform(0, 0.5, (c, 2)) * side for c in counts]
    return [np.concatenate([xy, xy + rng.uniform(0.1, 0.45, xy.shape) * side], 1).astype(np.float32) for xy in low]


def _one_by_one(sam: Sam, image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (R, H, W) and IoU (R,) of segment_anything's own predictor."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    hints = predictor.transform.apply_boxes_torch(torch.from_numpy(boxes), image.shape[:2])
    logits, iou, _ = predictor.predict_torch(None, None, hints, multimask_output=False, return_logits=True)
    return logits[:, 0].numpy(), iou[:, 0].numpy()


# ----------------------------------------------------------------------------------------------- refinement
@pytest.mark.parametrize("size", [(64, 64), (48, 64), (64, 40), (96, 96), (75, 131), (33, 20)])
def test_batched_masks_equal_those_of_sam_predictor(packaged: Sam, size: tuple[int, int]):
    counts = [2, 0, 1, 3, 0]
    images, boxes = _images(5, *size), _boxes(embedded.seeded("boxes", size), counts, *size)
    found = SamRefiner(packaged).masks(images, boxes)
    assert [len(m) for m, _ in found] == counts
    for image, box, (masks, iou) in zip(images, boxes, found, strict=True):
        assert masks.dtype == bool and masks.shape == (len(box), *size) and iou.dtype == np.float32
        if len(box):
            logits, quality = _one_by_one(packaged, image, box)
            assert ((masks == (logits > 0)) | (np.abs(logits) < 1e-3)).all()
            np.testing.assert_allclose(iou, quality, atol=1e-4)


@pytest.mark.parametrize("told", [("points",), ("boxes", "points"), ("boxes", "masks"), ("boxes", "points", "masks")])
def test_points_and_masks_are_hints_as_sam_predictor_takes_them(packaged: Sam, told: tuple[str, ...]):
    size, side = (48, 64), 4 * packaged.prompt_encoder.image_embedding_size[0]
    image, boxes = _images(1, *size)[0], _boxes(embedded.seeded("hinted"), [3], *size)[0]
    masks = np.zeros((3, *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    hints = {"boxes": boxes, "points": boxes.reshape(-1, 2, 2).mean(1), "masks": masks}
    found, quality = SamRefiner(packaged).masks([image], [Hints(**{name: hints[name] for name in told})])[0]
    predictor = SamPredictor(packaged)
    predictor.set_image(image)
    shape = predictor.transform.get_preprocess_shape(*size, side)
    low = torch.full((3, 1, side, side), -10.0)
    sure = torch.from_numpy(np.where(masks, np.float32(10), np.float32(-10)))[:, None]
    low[..., : shape[0], : shape[1]] = torch.nn.functional.interpolate(sure, shape, mode="bilinear", antialias=True)
    points = predictor.transform.apply_coords_torch(torch.from_numpy(hints["points"])[:, None], size)
    logits, iou, _ = predictor.predict_torch(
        points if "points" in told else None,
        torch.ones(3, 1) if "points" in told else None,
        predictor.transform.apply_boxes_torch(torch.from_numpy(boxes), size) if "boxes" in told else None,
        low if "masks" in told else None,
        multimask_output=False,
        return_logits=True,
    )
    assert ((found == (logits[:, 0] > 0).numpy()) | (logits[:, 0].abs() < 1e-3).numpy()).all()
    np.testing.assert_allclose(quality, iou[:, 0].numpy(), atol=1e-4)
    assert not np.allclose(quality, SamRefiner(packaged).masks([image], [boxes])[0][1], atol=1e-4)


SIZES = ((64, 64), (48, 64), (33, 20), (96, 70), (75, 131), (64, 64), (50, 50))


def _mixed() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Seven images of six sizes with 1 to 4 boxes each."""
    images = [_images(len(SIZES), 192, 192)[i][:h, :w] for i, (h, w) in enumerate(SIZES)]
    counts = (1, 3, 2, 1, 4, 2, 1)
    return images, [_boxes(embedded.seeded("mixed", i), [counts[i]], *size)[0] for i, size in enumerate(SIZES)]


def _bytes(answer: tuple[np.ndarray, np.ndarray]) -> tuple[bytes, bytes]:
    return answer[0].tobytes(), answer[1].tobytes()


@pytest.mark.parametrize("per_pass", [1, 2, 3])
def test_masks_are_the_same_bytes_at_any_place_of_a_pass_with_any_companions(packaged: Sam, per_pass: int):
    images, boxes = _mixed()
    refiner = SamRefiner(packaged, images_per_pass=per_pass)
    alone = [_bytes(refiner.masks([image], [box])[0]) for image, box in zip(images, boxes, strict=True)]  # a padded pass
    for number in range(6):
        order = embedded.seeded("order", number).permutation(len(images))[: 7 - number]
        found = refiner.masks([images[i] for i in order], [boxes[i] for i in order])
        assert [_bytes(answer) for answer in found] == [alone[i] for i in order]


def test_every_pass_of_the_encoder_has_the_same_number_of_rows(packaged: Sam):
    seen = []
    hook = packaged.image_encoder.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    SamRefiner(packaged, images_per_pass=3).masks(*_mixed())
    hook.remove()
    assert seen == [(3, 3, 64, 64)] * 3


def test_boxes_of_an_image_may_be_decoded_in_pieces(packaged: Sam):
    images, boxes = _mixed()
    whole, pieces = SamRefiner(packaged), SamRefiner(packaged)
    pieces.boxes_per_pass = 2
    for (a, p), (b, q) in zip(whole.masks(images, boxes), pieces.masks(images, boxes), strict=True):
        assert (a != b).sum() <= 1e-3 * a.size
        np.testing.assert_allclose(p, q, atol=1e-4)


@pytest.mark.parametrize("per_pass", [1, 2])
def test_images_without_any_box_are_never_encoded(packaged: Sam, per_pass: int):
    seen, refiner = [], SamRefiner(packaged, images_per_pass=per_pass)
    hook = packaged.image_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    none = np.zeros((0, 4), np.float32)
    found = refiner.masks(_images(3, 64, 64), [none, none, none])
    assert seen == [] and all(m.shape == (0, 64, 64) and q.shape == (0,) for m, q in found)
    assert refiner.masks([], []) == []
    refiner.masks(_images(3, 64, 64), [none, np.array([[5, 5, 40, 40]], np.float32), none])
    hook.remove()
    assert seen == [per_pass]


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([64, 1024]))
@settings(max_examples=50, deadline=None)
def test_images_are_resized_to_the_size_sam_resizes_them_to(height: int, width: int, longest: int):
    from segment_anything.utils.transforms import ResizeLongestSide

    assert sam_module.resized_shape(height, width, longest) == ResizeLongestSide.get_preprocess_shape(height, width, longest)


def test_decode_gives_every_mask_of_the_decoder_and_a_gradient(packaged: Sam):
    embedding = packaged.image_encoder(packaged.preprocess(torch.rand(1, 3, 64, 64) * 255))
    boxes = torch.tensor([[3.0, 4, 30, 40], [20, 20, 60, 50]])
    logits, iou = sam_module.decode(packaged, embedding.expand(2, -1, -1, -1), boxes)
    sparse, dense = packaged.prompt_encoder(None, boxes, None)
    want = packaged.mask_decoder.predict_masks(embedding, packaged.prompt_encoder.get_dense_pe(), sparse, dense)
    torch.testing.assert_close(logits, want[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(iou, want[1], atol=1e-4, rtol=1e-4)
    logits.sum().backward()
    gradient = packaged.image_encoder.patch_embed.proj.weight.grad
    packaged.zero_grad()
    assert gradient is not None and gradient.abs().sum() > 0


def _vit_b(side: int) -> Sam:
    """ViT-B as published (12 blocks of width 768, windows of 14, global attention in four) for a smaller input; random numbers."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        depth=12,
        embed_dim=768,
        img_size=side,
        mlp_ratio=4,
        num_heads=12,
        patch_size=16,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=(2, 5, 8, 11),
        window_size=14,
        out_chans=256,
    )
    prompts = PromptEncoder(256, (side // 16, side // 16), (side, side), 16)
    decoder = MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048))
    sam = Sam(encoder, prompts, decoder)
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name or name == "pos_embed":  # zero at the start
            torch.nn.init.normal_(parameter, std=0.1)
    return sam.eval()


def test_a_vit_b_gives_the_masks_of_sam_predictor_in_a_pass_of_two():
    sam = _vit_b(224)
    small = {name: tuple(t.shape) for name, t in sam.state_dict().items() if "pos" not in name}
    assert small == {name: tuple(t.shape) for name, t in _shapes_of(build_sam_vit_b).items() if "pos" not in name}
    images, boxes = ([_images(2, 150, 180)[0], _images(2, 150, 180)[1][:, :100]], _boxes(embedded.seeded("b"), [2, 1], 150, 100))
    want = [_one_by_one(sam, image, box) for image, box in zip(images, boxes, strict=True)]
    cut = float(np.median(np.concatenate([logits.ravel() for logits, _ in want])))
    sam.mask_threshold, spread = cut, float(want[0][0].std())  # random weights give no sensible level
    refiner = SamRefiner(sam, images_per_pass=2)
    found = refiner.masks(images, boxes)
    for (masks, iou), (logits, quality) in zip(found, want, strict=True):
        assert ((masks == (logits > cut)) | (np.abs(logits - cut) < 1e-3 * spread)).all() and 0.02 < masks.mean() < 0.98
        np.testing.assert_allclose(iou, quality, atol=1e-4)
    assert [_bytes(answer) for answer in refiner.masks(images[::-1], boxes[::-1])] == [_bytes(a) for a in found[::-1]]


# ------------------------------------------------------------------------------------------------ embedded SAM
def test_packaged_sam_segments_classes_it_has_never_seen(packaged: Sam):
    scores = build.evaluate(packaged, range(5000, 5040), jitter=2.0)
    assert scores["iou"] > 0.85 > build.baselines(range(5000, 5040))["ellipse"]


def test_no_training_shape_is_a_near_copy_of_a_class():
    assert all(likeness(random_outline(i)) < LIKENESS for i in range(12))


@pytest.mark.parametrize("name", embedded.CLASSES)
def test_every_class_would_be_refused_as_a_training_shape(name: str):
    rng = embedded.seeded("likeness", name)
    for mirror in (-1, 1):
        angle, aspect, variant = rng.uniform(0, 7), rng.uniform(0.85, 1.2), float(rng.random())
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        stretch = 0.7 * np.array([mirror * np.sqrt(aspect), 1 / np.sqrt(aspect)])
        assert likeness([(contour * stretch) @ turn for contour in embedded.silhouette(name, variant)]) >= LIKENESS


def test_training_examples_are_the_same_in_any_order_and_boxes_stay_near_their_masks():
    outlines = [random_outline(i) for i in range(6)]
    first = [build.training_example(i, outlines) for i in (3, 4)]
    again = [build.training_example(i, outlines) for i in (4, 3)][::-1]
    for (image, masks, boxes), other in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip((image, masks, boxes), other, strict=True))
        for mask, box in zip(masks, boxes, strict=True):
            tight = build.tight_box(mask)
            sides = np.tile(tight[2:] - tight[:2] + 1, 2)
            assert (np.abs(box - tight) <= np.maximum(0.2 * sides, 2)).all()


def test_training_resumed_from_its_checkpoint_equals_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "SHAPES", 3)
    monkeypatch.setattr(build, "CONFIG", build.CONFIG | {"depth": 1, "embed_dim": 24})
    monkeypatch.setattr(build, "Journal", partial(Journal, every=0))  # a checkpoint after every step
    whole, _ = build.train(tmp_path / "whole", 2, batch=2)
    real = build.training_example

    def example_of_a_process_killed_in_step_two(name: int, outlines: list):
        if name >= 2:
            raise KeyboardInterrupt
        return real(name, outlines)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(build, "training_example", example_of_a_process_killed_in_step_two)
        build.train(tmp_path / "cut", 2, batch=2)
    resumed, facts = build.train(tmp_path / "cut", 2, batch=2)
    assert facts["images seen"] == 4
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


# --------------------------------------------------------------------------------------------------- loading
def test_packaged_folder_copied_elsewhere_loads_the_same(packaged: Sam, tmp_path: Path):
    copy = shutil.copytree(WEIGHTS, tmp_path / "copy")
    for a, b in zip(packaged.state_dict().values(), load_sam(copy).state_dict().values(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_loaded_sam_is_what_upstream_builds_from_the_same_weights(packaged: Sam):
    """Nothing stays on the meta device, and the normalisation that no checkpoint holds is Sam's own."""
    upstream = Sam(packaged.image_encoder, packaged.prompt_encoder, packaged.mask_decoder)
    torch.testing.assert_close(packaged.pixel_mean, upstream.pixel_mean)
    torch.testing.assert_close(packaged.pixel_std, upstream.pixel_std)
    tensors = [*packaged.parameters(), *packaged.buffers()]
    assert {t.device.type for t in tensors} == {"cpu"} and not packaged.training


def _shapes_of(builder) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return builder().state_dict()


def _published_state(builder) -> dict[str, torch.Tensor]:
    """Every name and shape of a published checkpoint; one number per tensor, so that its file is small."""
    return {name: torch.full((1,), i / 1000).expand(t.shape) for i, (name, t) in enumerate(_shapes_of(builder).items())}


MILLIONS = {"vit-b": 93.735472, "vit-l": 312.342832, "vit-h": 641.090608}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_are_told_apart_by_their_tensors_and_load_with_their_published_sizes(name: str, tmp_path: Path):
    builder = ARCHITECTURES[PUBLISHED[name].encoder]
    state = _published_state(builder)
    torch.save(state, tmp_path / "sam.pth")
    assert encoder_shape(state, Path("sam.pth")) == PUBLISHED[name].encoder
    sam = load_sam(tmp_path / "sam.pth")
    assert sum(p.numel() for p in sam.parameters()) == round(MILLIONS[name] * 1e6)
    for key, tensor in sam.state_dict().items():
        assert tensor.shape == state[key].shape and tensor.flatten()[0] == state[key].flatten()[0]


def test_a_published_name_is_loaded_from_the_cache_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    file = tmp_path / "hub" / "checkpoints" / PUBLISHED["vit-b"].file
    file.parent.mkdir(parents=True)
    torch.save(_published_state(build_sam_vit_b), file)
    assert len(load_sam("vit-b").image_encoder.blocks) == 12
    torch.save(_published_state(ARCHITECTURES[1280, 32]), file)
    with pytest.raises(UserError, match=r"sam_vit_b_01ec64.pth .*width 1280 and 32 blocks.*vit-b has width 768 and 12 blocks"):
        load_sam("vit-b")


def test_a_checkpoint_with_missing_or_misshapen_tensors_is_refused_by_name():
    state = _shapes_of(build_sam_vit_b)
    with torch.device("meta"):
        sam = build_sam_vit_b()
        state["extra"] = torch.zeros(1)
        state["mask_decoder.iou_token.weight"] = torch.zeros(1, 7)
    del state["image_encoder.neck.0.weight"]
    with pytest.raises(UserError, match=r"neck\.0\.weight is missing.*extra is unknown.*\(1, 7\), expected \(1, 256\)"):
        sam_module.check_tensors(sam, state, Path("sam.pth"))
    cut = {k: v for k, v in state.items() if "blocks.11." not in k}
    with pytest.raises(UserError, match=r"width 768 and 11 blocks.*768 x 12"):
        encoder_shape(cut, Path("sam.pth"))


def test_a_published_checkpoint_is_loaded_from_both_file_formats(packaged: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ARCHITECTURES, (96, 3), lambda: build_sam(build.CONFIG))  # a small "published" model
    state = {k: v.clone() for k, v in packaged.state_dict().items()}
    torch.save(state, tmp_path / "sam.pth")
    save_file(state, tmp_path / "sam.safetensors")
    for name in ("sam.pth", "sam.safetensors"):
        for a, b in zip(state.values(), load_sam(tmp_path / name).state_dict().values(), strict=True):
            assert torch.equal(a, b)


class _Code:
    """Pickles as a call of a function that leaves a folder behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_files_that_are_no_sam_are_refused_with_the_remedy(tmp_path: Path):
    whole = (WEIGHTS / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.zeros(10_000)}, tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:9000])
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    torch.save({"image_encoder.patch_embed.proj.weight": _Code(tmp_path / "trace")}, tmp_path / "code.pth")
    sam2 = {"model": {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(144, 3, 7, 7)}}
    torch.save(sam2, tmp_path / "sam2.pt")
    torch.save({"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "mobile.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.save({1: torch.zeros(3)}, tmp_path / "numbered.pth")
    torch.save({"image_encoder.patch_embed.proj.weight": torch.tensor(1.0)}, tmp_path / "scalar.pth")
    named = {
        "cut.safetensors": "cannot be read",
        "cut.pth": "cannot be read",
        "page.pth": "no file of torch.save",
        "empty.pth": "cannot be read",
        "other.pth": "no SAM checkpoint: it has no .* but weight",
        "absent": "no SAM weights",
        "folder": "has no config.json",
        "code.pth": "holds [a-z]+.mkdir, which is not weights and was not run",
        "sam2.pt": "not a plain table of tensors but holds model",
        "list.pth": "holds list",
        "numbered.pth": "not a plain table of tensors but holds 1",
        "scalar.pth": "width 0 and 0 blocks",
        "mobile.pt": r"do not fit their architecture: image_encoder\.body\.patch_embed\.conv1\.bn\.weight is missing",
    }
    for name, why in named.items():
        with pytest.raises(UserError, match=f"{why}.*embedded-sam"):
            load_sam(tmp_path / name)
    assert not (tmp_path / "trace").exists()


def test_a_folder_whose_config_contradicts_its_tensors_is_refused(tmp_path: Path):
    copy = shutil.copytree(WEIGHTS, tmp_path / "copy")
    numbers = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(numbers | {"depth": 4}))
    with pytest.raises(UserError, match=r"blocks\.3\.norm1\.weight is missing"):
        load_sam(copy)
    del numbers["depth"]
    (copy / "config.json").write_text(json.dumps(numbers))
    with pytest.raises(UserError, match="lacks depth"):
        load_sam(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        load_sam(copy)
    (copy / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="holds a list; expected the numbers img_size"):
        load_sam(copy)


@pytest.mark.parametrize(
    "change, why",
    [
        ({"img_size": "64"}, "img_size='64'; expected a whole number above 0"),
        ({"patch_size": 0}, "patch_size=0; expected"),
        ({"depth": 2.5}, r"depth=2\.5; expected a whole number"),
        ({"depth": True}, "depth=True"),
        ({"out_chans": None}, "=None"),
        ({"img_size": 10**12}, "at most 16384"),
        ({"mlp_ratio": "3"}, "mlp_ratio='3'; expected a number above 0"),
        ({"num_heads": 5}, r"embed_dim=96 is no multiple of num_heads \(num_heads=5\)"),
        ({"decoder_heads": 7}, r"out_chans=64 is no multiple of 2 x decoder_heads"),
        ({"patch_size": 5}, "img_size=64 is no multiple"),
    ],
)
def test_a_config_with_numbers_that_no_network_has_is_refused(change: dict, why: str):
    with pytest.raises(UserError, match=rf"config\.json of a SAM: .*{why}"):
        build_sam(build.CONFIG | change)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_file_with_any_bytes_damaged_is_refused_by_name(tmp_path: Path, legacy: bool):
    state = {"image_encoder.patch_embed.proj.weight": torch.zeros(4, 4), "b": torch.ones(3)}
    torch.save(state, tmp_path / "whole.pth", _use_new_zipfile_serialization=not legacy)
    whole, rng = (tmp_path / "whole.pth").read_bytes(), embedded.seeded("damage", legacy)
    for _ in range(150):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for _ in range(3):
            damaged[rng.integers(min(len(damaged), 600))] = rng.integers(256)
        (tmp_path / "damaged.pth").write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged\.pth .*embedded-sam"):
            load_sam(tmp_path / "damaged.pth")
