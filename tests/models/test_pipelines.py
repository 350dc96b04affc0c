"""Text-to-image pipelines of many families: two halves make what the whole pipeline makes with the same noise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from syn4seg.errors import UserError
from syn4seg.models import families
from syn4seg.models.generators import check_model, load_generator, load_text_encoder
from syn4seg.models.protocols import Speed
from tests.shared_pipelines import FAMILIES, saved

PROMPTS = ["a red star on sand", "two moon in the sand", "blue"]
SEEDS = [2**62 - 1, 5, 6]
STEPS, SIZE, GUIDANCE = 2, 32, 3.0


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp("pipelines"))


def whole(folder) -> np.ndarray:
    """The plain pipeline's images."""
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    family = families.FAMILIES[type(pipeline).__name__]
    options: dict = {family.guidance: GUIDANCE} | ({"negative_prompt": [""] * 3} if family.guidance != "guidance_scale" else {})
    if type(pipeline).__name__.startswith(("PixArt", "Sana")):
        options["use_resolution_binning"] = False
    random = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return pipeline(
        PROMPTS, height=SIZE, width=SIZE, num_inference_steps=STEPS, generator=random, output_type="np", **options
    ).images


def test_embeddings_then_images_are_those_of_the_whole_pipeline(folder, tmp_path):
    check_model(str(folder))
    encoded = load_text_encoder(str(folder), device="cpu").encode([*PROMPTS, *PROMPTS[:1]])
    assert len(encoded) == 4 and np.isfinite(encoded.pooled).all() and len(np.unique(encoded.pooled, axis=0)) == 3
    generator = load_generator(str(folder), steps=STEPS, guidance=GUIDANCE, size=SIZE, device="cpu")
    images, faults = generator.generate(PROMPTS, encoded.rows([0, 1, 2]), SEEDS)
    assert images.dtype == np.uint8 and images.shape == (3, SIZE, SIZE, 3) and faults == [""] * 3
    difference = np.abs(images.astype(int) - np.rint(whole(folder) * 255))
    assert difference.max() <= 1 and (difference == 0).mean() > 0.99
    other, _ = generator.generate(PROMPTS, encoded.rows([1, 0, 2]), SEEDS)
    assert (other[0] != images[0]).any(), "the prompt counts"
    plain = load_generator(str(folder), steps=STEPS, guidance=1.0, size=SIZE, device="cpu")
    assert plain.generate(PROMPTS, encoded.rows([0, 1, 2]), SEEDS)[1] == [""] * 3, "without guidance"
    facts = generator.facts()
    assert facts["pipeline"] in families.FAMILIES and facts["scheduler"].endswith("Scheduler") and str(folder) not in str(facts)


def test_a_pipeline_of_no_known_family_is_called_whole(tmp_path, monkeypatch):
    path = saved("stable_diffusion", tmp_path)
    expected = whole(path)
    monkeypatch.delitem(families.FAMILIES, "StableDiffusionPipeline")
    encoded = load_text_encoder(str(path), device="cpu").encode(PROMPTS)
    generator = load_generator(str(path), steps=STEPS, guidance=GUIDANCE, size=SIZE, device="cpu")
    images, _ = generator.generate(PROMPTS, encoded, SEEDS)
    assert np.abs(images.astype(int) - np.rint(expected * 255)).max() <= 1


def test_what_cannot_be_is_said_before_anything_loads(tmp_path):
    path = str(saved("stable_diffusion", tmp_path))
    arguments = {"steps": STEPS, "guidance": GUIDANCE, "device": "cpu"}
    with pytest.raises(UserError, match=r"synthesis.size is 33.*multiples of 2 pixels"):
        load_generator(path, size=33, **arguments)
    with pytest.raises(UserError, match=r"synthesis.step_cache=0.1: is for Stable Diffusion 3 alone"):
        load_generator(path, size=SIZE, speed=Speed(step_cache=0.1), **arguments)
    (tmp_path / "stable_diffusion" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"unet/ has no weights"):
        check_model(path)
    index = tmp_path / "stable_diffusion" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusionInpaintPipeline"}))
    with pytest.raises(UserError, match="expected a text-to-image pipeline"):
        check_model(path)
