"""SAM 3 asked by name: the library's own masks for the same prompt, and folders that cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.models.sam_named import NamedSam, check_named_sam
from syn4seg.planning.sizes_vision import named_size
from syn4seg.stages.checks import check
from tests.shared_sams import saved_named_sam, saved_sam

WORDS = ["ball", "star", "moon"]


@pytest.fixture(scope="module", params=["sam3", "sam3_video"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    saved_named_sam(path, request.param, WORDS)
    return path


def test_a_mask_is_the_librarys_own_for_the_same_prompt_whatever_was_asked_before(folder: Path):
    import transformers

    network: Any = transformers.Sam3Model.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = transformers.Sam3Processor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in ((40, 70), (64, 64), (90, 50))]
    sam, found = NamedSam(str(folder), WORDS, "cpu"), {}
    for number, image in enumerate(images):
        for name in WORDS:
            given = processor(images=image, text=name, return_tensors="pt")
            with torch.no_grad():
                answer = network(**{key: given[key] for key in ("pixel_values", "input_ids", "attention_mask")})
            masks = processor.post_process_instance_segmentation(answer, target_sizes=[image.shape[:2]])[0]["masks"]
            want = masks.sum(0).numpy() > 0 if len(masks) else np.zeros(image.shape[:2], bool)
            found[number, name] = sam.mask(image, name)
            assert found[number, name].dtype == bool and np.array_equal(found[number, name], want)
    shares = [mask.mean() for mask in found.values()]
    assert max(shares) > 0.05 and min(shares) < 0.95 and len(set(shares)) > 3, shares
    assert any((found[0, a] != found[0, b]).any() for a, b in zip(WORDS, WORDS[1:], strict=False)), "the name counts"
    assert np.array_equal(sam.mask(images[0], "ball"), found[0, "ball"])


def test_the_plan_counts_the_detector_alone(folder: Path):
    size, sam = named_size(str(folder)), NamedSam(str(folder), WORDS, "cpu")
    assert size.part.parameters == sum(p.numel() for p in sam.network.parameters())
    assert size.flops > 0 and size.largest >= 16 * 16 * 16


def _config(folder: Path, content: Any) -> None:
    (folder / "config.json").write_text(json.dumps(content))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another network": (
        lambda f: _config(f, {"model_type": "bert"}),
        r"model_type is 'bert', which takes no text; expected a SAM 3",
    ),
    "no kind": (lambda f: _config(f, []), r"config\.json has no model_type; expected a SAM 3"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no \.safetensors file in this folder"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"12345"), r"cut short or damaged .*download it again"),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        r"tokenizer (cannot be loaded .*expected a SAM 3|does not tell the classes apart)",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_folder_that_cannot_be_asked_is_refused_by_key_value_and_remedy_before_a_run(name: str, small: list[str], tmp_path: Path):
    saved_named_sam(tmp_path, "sam3", WORDS)
    config, (damage, why) = load(None, [*small, f"evaluation.by_name={tmp_path}"]), DAMAGE[name]
    check(config)
    damage(tmp_path)
    with pytest.raises(UserError, match=f"^evaluation.by_name={tmp_path}: .*{why}") as caught:
        check(config)
    assert "\n" not in str(caught.value)


def test_what_is_no_folder_no_text_model_or_no_short_name_is_refused(small: list[str], tmp_path: Path):
    with pytest.raises(UserError, match=r"^evaluation\.by_name=/nowhere: neither a folder nor a hub id such as facebook/sam3"):
        check(load(None, [*small, "evaluation.by_name=/nowhere"]))
    saved_sam(tmp_path / "tracker", "sam3_tracker")
    with pytest.raises(UserError, match=r"model_type is 'sam3_tracker', which takes no text"):
        check_named_sam(str(tmp_path / "tracker"), WORDS)
    saved_named_sam(tmp_path / "sam3", "sam3", WORDS)
    with pytest.raises(
        UserError, match=r"the name 'q{40}' has 42 tokens; expected at most 32: give a shorter one in prompts\.names"
    ):
        check_named_sam(str(tmp_path / "sam3"), ["ball", "q" * 40])


def test_weights_that_lack_a_tensor_are_refused_when_they_load(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    saved_named_sam(tmp_path, "sam3", WORDS)
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing .*text_projection\.weight; download the model again"):
        NamedSam(str(tmp_path), WORDS, "cpu")
