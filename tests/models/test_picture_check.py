"""The picture check: the library's own scores, one rule, and one sentence for every folder that is no such model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from syn4seg.errors import UserError
from syn4seg.models.picture_check import NOT_SHOWN, PictureCheck, check_picture_model
from tests.shared_clip import save_clip, save_siglip
from tests.shared_endpoint import picture

NAMES = ("ball", "moon", "star")


@pytest.fixture(scope="module", params=[save_clip, save_siglip])
def made(request, tmp_path_factory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("made") / request.param.__name__
    return folder, request.param(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    save_clip(tmp_path_factory.mktemp("clip"))
    return tmp_path_factory.getbasetemp() / "clip0"


def test_similarities_are_those_that_the_librarys_own_model_gives(made):
    folder, model = made
    check = PictureCheck(str(folder), NAMES)
    how = {"padding": True} if model.config.model_type == "clip" else {"padding": "max_length", "max_length": 48}
    tokens = transformers.AutoTokenizer.from_pretrained(folder)([f"a photo of a {n}" for n in NAMES], return_tensors="pt", **how)
    if model.config.model_type == "siglip":
        tokens = {"input_ids": tokens["input_ids"]}
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    for seed, size in enumerate(((64, 64), (40, 70), (3, 90))):
        image = picture(size, seed)
        pixels = processor(images=image, return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            logits = model(**tokens, **pixels).logits_per_image[0]
            logits = logits - (model.logit_bias if model.config.model_type == "siglip" else 0)
            expected = (logits / model.logit_scale.exp()).numpy()
        np.testing.assert_allclose(check.similarities(image), expected, atol=1e-6)
        assert np.ptp(expected) > 1e-4, "the test tells classes apart"


def test_an_image_passes_if_its_class_is_ahead_of_all_others_by_the_margin(folder):
    image = picture()
    plain = PictureCheck(str(folder), NAMES)
    cosines = plain.similarities(image)
    order = np.argsort(-cosines)
    first, second, last = (NAMES[i] for i in order)
    ahead = float(cosines[order[0]] - cosines[order[1]])
    reason, figures = plain(image, first)
    assert reason == "" and figures == {"similarity": round(float(cosines[order[0]]), 5), "ahead": round(ahead, 5), "other": second}
    assert [plain(image, name)[0] for name in (second, last)] == [NOT_SHOWN] * 2
    assert plain(image, second)[1]["ahead"] == round(-ahead, 5) and plain(image, second)[1]["other"] == first
    for margin, expected in ((ahead * 0.9, ["", NOT_SHOWN]), (ahead * 1.1, [NOT_SHOWN] * 2), (-ahead * 1.1, ["", ""])):
        plain.margin = margin
        assert [plain(image, name)[0] for name in (first, second)] == expected
    assert PictureCheck(str(folder), ["ball"])(image, "ball")[0] == "", "a class without rivals is always ahead"


def test_an_answer_that_is_not_finite_is_no_verdict(folder):
    check = PictureCheck(str(folder), NAMES)
    check.texts[1] = torch.nan
    with pytest.raises(FloatingPointError, match="picture check"):
        check(picture(), "ball")


def damaged(folder: Path, target: Path, how: str) -> Path:
    shutil.copytree(folder, target)
    weights = target / "model.safetensors"
    if how == "kind":
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    elif how == "json":
        (target / "config.json").write_text("[")
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif how == "pickle":
        weights.rename(target / "pytorch_model.bin")
    elif how == "lacking":
        tensors = load_file(weights)
        tensors.pop("visual_projection.weight")
        save_file(tensors, weights, {"format": "pt"})
    elif how == "tokenizer":
        (target / "tokenizer.json").unlink()
        (target / "tokenizer_config.json").unlink()
    elif how == "processor":
        (target / "preprocessor_config.json").unlink()
    return target


@pytest.mark.parametrize(
    ("how", "said", "early"),
    [
        ("kind", "its model_type is 'bert'; expected a CLIP or SigLIP model", True),
        ("json", r"config\.json has no model_type", True),
        ("cut", r"model\.safetensors is cut short or damaged", True),
        ("pickle", r"no \.safetensors file in this folder", True),
        ("lacking", r"1 tensors are missing or have another shape, such as visual_projection\.weight", False),
        ("tokenizer", "the tokenizer does not tell the classes apart", False),
        ("processor", "cannot be loaded", False),
    ],
)
def test_a_folder_that_is_no_such_model_is_one_sentence(folder, tmp_path, how, said, early):
    target = damaged(folder, tmp_path / "model", how)
    with pytest.raises(UserError, match=rf"synthesis\.check=.*({said})") as caught:
        PictureCheck(str(target), NAMES)
    assert "\n" not in str(caught.value)
    if early:
        with pytest.raises(UserError, match=said):
            check_picture_model(str(target))
    else:
        assert check_picture_model(str(target)) == target


def test_a_name_that_is_nowhere_is_one_sentence_and_a_hub_id_is_not_fetched_to_be_looked_at(tmp_path):
    with pytest.raises(UserError, match=r"synthesis\.check=/no/such: neither a folder nor a hub id such as openai/clip"):
        check_picture_model("/no/such")
    assert check_picture_model("someone/a-model") is None
    with pytest.raises(UserError, match=r"synthesis\.check=someone/a-model: .*leave synthesis\.check empty"):
        check_picture_model("someone/a-model", fetch=True)
    with pytest.raises(UserError, match=r"no config\.json in this folder"):
        check_picture_model(str(tmp_path))
