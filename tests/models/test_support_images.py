"""Image-to-image from support images: the plain pipeline of diffusers with the same image and noise gives the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from syn4seg.errors import UserError
from syn4seg.models.generators import EMBEDDED_SD3, load_generator, load_text_encoder
from syn4seg.models.protocols import SupportedGenerator
from syn4seg.models.support_images import SupportImageGenerator, SupportPicture, check_support_images, square_around
from tests.shared_pipelines import saved

PROMPTS, SEEDS, TARGETS = ["a small red star on sand", "two blue moons on sea", "a blue star"], [2**62 - 1, 5, 6], [2, 3, 2]
STEPS, SIZE, GUIDANCE, STRENGTH = 3, 32, 3.0, 0.5
PLAIN = {
    "embedded-sd3": "StableDiffusion3Img2ImgPipeline",
    "stable_diffusion": "StableDiffusionImg2ImgPipeline",
    "latent_consistency": "LatentConsistencyModelImg2ImgPipeline",
    "stable_diffusion_xl": "StableDiffusionXLImg2ImgPipeline",
    "flux": "FluxImg2ImgPipeline",
    "qwen_image": "QwenImageImg2ImgPipeline",
    "z_image": "ZImageImg2ImgPipeline",
}
"""Pipeline -> diffusers' class that makes an image of an image, written down independently of the code."""


def pictures(side: int = SIZE) -> dict[int, list[SupportPicture]]:
    """Two support images of class 2 and one of class 3."""
    random = np.random.default_rng(0)
    return {
        target: [SupportPicture(f"{target}-{i}", random.integers(0, 256, (side, side, 3), np.uint8)) for i in range(count)]
        for target, count in ((2, 2), (3, 1))
    }


def load(model: str, strength: float = STRENGTH) -> SupportImageGenerator:
    inner = load_generator(model, steps=STEPS, guidance=GUIDANCE, size=SIZE, device="cpu")
    return SupportImageGenerator(inner, pictures(), strength)


@pytest.fixture(scope="module")
def embedded():
    return load("embedded-sd3"), load_text_encoder("embedded-sd3", device="cpu").encode(PROMPTS)


@pytest.mark.parametrize("name", PLAIN)
def test_images_are_those_of_the_plain_pipeline_with_the_same_image_and_noise(name, tmp_path):
    import diffusers
    from PIL import Image

    path = str(EMBEDDED_SD3 if name == "embedded-sd3" else saved(name, tmp_path))
    check_support_images(path)
    generator, encoded = load(path), load_text_encoder(path, device="cpu").encode(PROMPTS)
    made = generator.make_for(TARGETS, PROMPTS, encoded, SEEDS)
    named = [f"{target}-{seed % 2 if target == 2 else 0}" for target, seed in zip(TARGETS, SEEDS, strict=True)]
    assert made.faults == [""] * 3 and made.audit == [{"started_from": name} for name in named]
    pixels = {picture.image_id: picture.pixels for same in pictures().values() for picture in same}
    absent = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor") if name == "embedded-sd3" else ()
    plain = getattr(diffusers, PLAIN[name]).from_pretrained(
        path, local_files_only=True, dtype=torch.float32, **dict.fromkeys(absent)
    )
    plain.set_progress_bar_config(disable=True)
    options = {"true_cfg_scale": GUIDANCE, "negative_prompt": [""] * 3} if name == "qwen_image" else {"guidance_scale": GUIDANCE}
    if name == "embedded-sd3":
        options["max_sequence_length"] = 0
    if name in ("flux", "qwen_image", "embedded-sd3"):
        options |= {"height": SIZE, "width": SIZE}
    expected = plain(
        PROMPTS,
        image=[Image.fromarray(pixels[name]) for name in named],
        strength=STRENGTH,
        num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
        **options,
    ).images
    difference = np.abs(made.images.astype(int) - np.rint(expected * 255))
    assert difference.max() <= 1 and (difference == 0).mean() > 0.99


def test_an_image_depends_on_its_seed_and_support_image_and_not_on_its_place(embedded):
    generator, encoded = embedded
    made, turned = [2, 0, 1], generator.make_for(TARGETS, PROMPTS, encoded, SEEDS)
    again = generator.make_for(
        *([values[i] for i in made] for values in (TARGETS, PROMPTS)), encoded.rows(made), [SEEDS[i] for i in made]
    )
    assert np.abs(again.images.astype(int) - turned.images[made]).max() <= 1
    assert again.audit == [turned.audit[i] for i in made]
    other = generator.make_for([3, 3, 3], PROMPTS, encoded, SEEDS)
    assert (other.images[0] != turned.images[0]).any() and (other.images[1] == turned.images[1]).all()


def test_the_weaker_the_noise_the_nearer_the_support_image_and_no_network_is_copied(embedded):
    generator, encoded = embedded
    far = []
    for strength in (0.4, 1.0):
        made = SupportImageGenerator(generator.inner, pictures(), strength).make_for(TARGETS, PROMPTS, encoded, SEEDS)
        starts = np.stack([generator.chosen(*which).pixels for which in zip(TARGETS, SEEDS, strict=True)])
        far.append(np.abs(made.images.astype(int) - starts).mean())
    assert far[0] < far[1] - 5
    assert generator.pipeline.transformer is generator.inner.pipeline.transformer
    facts = generator.facts()
    assert facts == generator.inner.facts() | {"support": "StableDiffusion3Img2ImgPipeline", "support_strength": STRENGTH}
    assert isinstance(generator, SupportedGenerator)


def test_a_faulty_image_is_made_again_alone_and_says_so(embedded):
    generator, encoded = embedded
    pooled = encoded.pooled.copy()
    pooled[1] = np.nan
    broken = type(encoded)(pooled, encoded.sequence, encoded.empty_pooled, encoded.empty_sequence)
    made = generator.make_for(TARGETS, PROMPTS, broken, SEEDS)
    assert made.faults == ["", "nan", ""] and made.audit[1] == {"started_from": "3-0", "first_fault": "nan", "retried": "float32"}
    sound = generator.make_for(TARGETS, PROMPTS, encoded, SEEDS).images
    assert (made.images[[0, 2]] == sound[[0, 2]]).all()
    with pytest.raises(UserError, match="2 classes, 3 prompts, 3 embeddings and 3 noise seeds"):
        generator.make_for([2, 3], PROMPTS, encoded, SEEDS)


def test_the_square_is_as_near_to_the_object_as_the_image_allows():
    image = np.arange(20 * 50 * 3, dtype=np.uint16).reshape(20, 50, 3).astype(np.uint8)
    for columns, left in (((20, 30), 15), ((0, 4), 0), ((45, 50), 30), ((0, 0), 15)):
        shown = np.zeros((20, 50), bool)
        shown[3:9, slice(*columns)] = True
        np.testing.assert_array_equal(square_around(image, shown, 20), image[:, left : left + 20])
        tall = square_around(image.transpose(1, 0, 2), shown.T, 20)
        np.testing.assert_array_equal(tall, image.transpose(1, 0, 2)[left : left + 20])
    flat = np.full((20, 50, 3), 7, np.uint8)
    assert (square_around(flat, np.zeros((20, 50), bool), 64) == 7).all() and square_around(flat, shown, 8).shape == (8, 8, 3)


def test_models_that_cannot_start_from_an_image_are_refused_before_they_load(tmp_path):
    with pytest.raises(UserError, match=r"synthesis\.model=renderer: it draws what the prompt says.*expected embedded-sd3"):
        check_support_images("renderer")
    path = str(saved("sana", tmp_path))
    with pytest.raises(UserError, match=r"diffusers has no image-to-image class for .*a SanaPipeline.*synthesis\.support=none"):
        check_support_images(path)
