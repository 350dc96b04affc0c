"""The two halves of a Stable Diffusion 3 pipeline against the whole one, on a small pipeline with random weights.

Importing diffusers and transformers takes most of the time of this file, so one random pipeline serves all tests.
"""

from __future__ import annotations

import http.server
import json
import shutil
import threading

import numpy as np
import pytest
import torch

from syn4seg.data import embedded
from syn4seg.models.diffusion import ENCODE_BATCH, T5_TOKENS, DiffusionGenerator, DiffusionTextEncoder
from syn4seg.models.generators import Encoded, load_generator, load_text_encoder

PROMPTS = ["a big red star on sand", "two small blue moons on fog", "a big green fish on sea", "a donut",
           "a heart on night", "a small pink kite on brick", "two arrows on sand", "a crown"]  # fmt: skip
SEEDS = [2**62 - 1, 1, 2, 3, 4, 5, 6, 7]
STEPS, SIZE = 2, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline saved without T5, as the embedded one; layers that start at zero are made random: words matter."""
    from syn4seg.models.build import generator

    net = generator.Denoiser(generator.clip_tokenizer(embedded.vocabulary()))
    torch.manual_seed(0)
    for values in net.net.parameters():
        if not values.any():
            torch.nn.init.normal_(values, std=0.1)
    path = tmp_path_factory.mktemp("models") / "small-sd3"
    generator.export(net, generator.autoencoder(), path, {"weights": "random"})
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return DiffusionTextEncoder(str(folder), device="cpu")


@pytest.fixture(scope="module")
def encoded(encoder):
    return encoder.encode(PROMPTS)


@pytest.fixture(scope="module")
def generator(folder):
    return DiffusionGenerator(str(folder), steps=STEPS, guidance=3.0, size=SIZE, device="cpu")


@pytest.fixture(scope="module")
def whole(folder):
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def called_whole(pipeline, guidance: float, t5_tokens: int = 0) -> np.ndarray:
    images = pipeline(
        prompt=PROMPTS, generator=[torch.Generator().manual_seed(s) for s in SEEDS], num_inference_steps=STEPS,
        guidance_scale=guidance, height=SIZE, width=SIZE, output_type="np", max_sequence_length=t5_tokens,
    ).images  # fmt: skip
    return np.rint(images * 255).astype(np.uint8)


# ----------------------------------------------------------------------------------------- the two halves
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_embeddings_then_images_are_bit_identical_to_the_whole_pipeline(folder, whole, encoded, guidance):
    assert len(PROMPTS) == ENCODE_BATCH
    half = DiffusionGenerator(str(folder), steps=STEPS, guidance=guidance, size=SIZE, device="cpu")
    images, faults = half.generate(PROMPTS, encoded, SEEDS)
    assert images.shape == (8, SIZE, SIZE, 3) and images.dtype == np.uint8 and faults == [""] * 8
    np.testing.assert_array_equal(images, called_whole(whole, guidance))


def test_the_same_batch_twice_is_bit_identical_also_after_loading_again(folder, generator, encoded):
    once, _ = generator.generate(PROMPTS[:3], encoded.rows([0, 1, 2]), SEEDS[:3])
    twice, _ = generator.generate(PROMPTS[:3], encoded.rows([0, 1, 2]), SEEDS[:3])
    fresh = load_generator(str(folder), steps=STEPS, guidance=3.0, size=SIZE, device="cpu")
    np.testing.assert_array_equal(once, twice)
    np.testing.assert_array_equal(once, fresh.generate(PROMPTS[:3], encoded.rows([0, 1, 2]), SEEDS[:3])[0])


def test_with_other_neighbours_an_image_changes_by_rounding_at_most(generator, encoded):
    some, _ = generator.generate(PROMPTS[:3], encoded.rows([0, 1, 2]), SEEDS[:3])
    other, _ = generator.generate([PROMPTS[0], *PROMPTS[4:]], encoded.rows([0, 4, 5, 6, 7]), [SEEDS[0], *SEEDS[4:]])
    assert np.abs(some[0].astype(int) - other[0]).max() <= 1


def test_prompt_seed_and_guidance_each_change_the_image(folder, generator, encoded):
    base, _ = generator.generate(["", ""], encoded.rows([0, 1]), [5, 5])
    assert (base[0] != base[1]).any(), "the prompt"
    assert (base[0] != generator.generate([""], encoded.rows([0]), [6])[0][0]).any(), "the noise seed"
    unguided = DiffusionGenerator(str(folder), steps=STEPS, guidance=1.0, size=SIZE, device="cpu")
    assert (base[0] != unguided.generate([""], encoded.rows([0]), [5])[0][0]).any(), "the guidance"


def test_an_embedding_does_not_depend_on_neighbours_order_or_repeats(encoder, encoded):
    for order in ([3], [1, 0], [7, 6, 5, 4, 3, 2, 1, 0], [2, 2, 5, 2], list(range(8)) * 2):
        part = encoder.encode([PROMPTS[i] for i in order])
        np.testing.assert_array_equal(part.pooled, encoded.pooled[order])
        np.testing.assert_array_equal(part.sequence, encoded.sequence[order])
    nothing = encoder.encode([])
    assert nothing.pooled.shape == (0, 128) and nothing.sequence.shape == (0, 12, 128)
    np.testing.assert_array_equal(nothing.empty_pooled, encoder.encode([""]).pooled)


def test_each_half_loads_from_a_folder_that_has_only_its_own_files(folder, tmp_path):
    for half in ("text", "image"):
        shutil.copytree(folder, tmp_path / half)
    for name in ("vae", "scheduler"):
        shutil.rmtree(tmp_path / "text" / name)
    for weights in (tmp_path / "text" / "transformer").glob("*.safetensors"):
        weights.unlink()
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(tmp_path / "image" / name)
    encoder = load_text_encoder(str(tmp_path / "text"), device="cpu")
    assert encoder.encode(PROMPTS[:1]).pooled.shape == (1, 128)
    assert DiffusionGenerator(str(tmp_path / "image"), steps=1, guidance=1.0, size=SIZE).pipeline.text_encoder is None


def test_a_pipeline_with_t5_keeps_its_tokens(folder, tmp_path):
    from diffusers import StableDiffusion3Pipeline
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [(c, -6.0) for c in "abcdefghijklmnopqrstuvwxyz"]
    words = [("\u2581" + w, -1.0) for w in embedded.vocabulary()]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0), *words, *letters],
                            extra_ids=0)  # fmt: skip
    torch.manual_seed(1)
    config = T5Config(vocab_size=len(tokenizer), d_model=128, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    with_t5 = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=T5EncoderModel(config).eval(), tokenizer_3=tokenizer, dtype=torch.float32
    )
    with_t5.save_pretrained(tmp_path / "t5")
    with_t5.set_progress_bar_config(disable=True)
    encoded = DiffusionTextEncoder(str(tmp_path / "t5"), device="cpu").encode(PROMPTS)
    assert encoded.sequence.shape == (8, 12 + T5_TOKENS, 128)
    half = DiffusionGenerator(str(tmp_path / "t5"), steps=STEPS, guidance=1.0, size=SIZE, device="cpu")
    images, _ = half.generate(PROMPTS, encoded, SEEDS)
    np.testing.assert_array_equal(images, called_whole(with_t5, 1.0, T5_TOKENS))


def test_one_broken_embedding_is_reported_and_leaves_the_other_images_alone(generator, encoded):
    pooled = encoded.pooled.copy()
    pooled[1] = np.nan
    broken = Encoded(pooled, encoded.sequence, encoded.empty_pooled, encoded.empty_sequence)
    sound, _ = generator.generate(PROMPTS, encoded, SEEDS)
    images, faults = generator.generate(PROMPTS, broken, SEEDS)
    assert faults == ["", "nan", "", "", "", "", "", ""]
    keep = [0, 2, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(images[keep], sound[keep])


# ------------------------------------------------------------------------------------------------- errors
def load(model, **options):
    return DiffusionGenerator(str(model), **{"steps": 1, "guidance": 1.0, "size": SIZE, "device": "cpu"} | options)


def test_lists_of_different_lengths_are_an_error(generator, encoded):
    with pytest.raises(ValueError, match="8 prompts, 8 embeddings and 3 noise seeds"):
        generator.generate(PROMPTS, encoded, [1, 2, 3])


@pytest.mark.parametrize("size", [36, 0, 256])
def test_an_impossible_size_is_an_error_that_names_the_possible_ones(folder, size):
    with pytest.raises(ValueError, match=rf"synthesis\.size is {size}; .*sides of 8, 16, 24\.\.\. to 128"):
        load(folder, size=size)


def test_no_steps_are_an_error(folder):
    with pytest.raises(ValueError, match=r"synthesis\.steps is 0"):
        load(folder, steps=0)


def test_a_folder_that_is_no_pipeline_is_an_error_that_says_what_was_found(folder, tmp_path):
    (tmp_path / "model.ckpt").write_text("x")
    for half in (load, DiffusionTextEncoder):
        with pytest.raises(ValueError, match=r"no model_index\.json \(found: model\.ckpt\).*synthesis\.model=renderer"):
            half(str(tmp_path))
    with pytest.raises(ValueError, match=r"no model_index\.json.*not the one above or below"):
        load(folder / "vae")
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load(tmp_path)


def test_another_kind_of_pipeline_is_an_error_that_names_both(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "FluxPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"is a FluxPipeline; expected a StableDiffusion3Pipeline"):
        load(tmp_path)


def test_a_file_cut_short_is_an_error_that_names_the_file(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "cut")
    for part, half in (("vae", load), ("text_encoder", DiffusionTextEncoder)):
        path = next((tmp_path / "cut" / part).glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=rf"{part}/\w+.*\.safetensors is cut short or damaged.*download"):
            half(str(tmp_path / "cut"))


def test_a_missing_part_is_an_error_that_lists_the_expected_ones(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "vae")
    with pytest.raises(ValueError, match=r"cannot be loaded.*expected transformer, vae, scheduler"):
        load(tmp_path / "part")


@pytest.mark.parametrize("name", ["sd35", "./nowhere/else", "a/b/c", ""])
def test_a_name_that_is_neither_folder_nor_hub_id_is_an_error(name):
    with pytest.raises(ValueError, match=r"neither a folder nor a hub id such as.*synthesis\.model=renderer"):
        load(name)


HELP = (
    r"accept its licence at https://huggingface\.co/some/model and set HF_TOKEN.*hf download some/model.*embedded-sd3"
)


def test_a_hub_model_on_an_offline_machine_is_an_error_with_every_way_out(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"some/model.*LocalEntryNotFoundError.*" + HELP):
        load("some/model")


def test_a_gated_hub_model_is_an_error_that_names_licence_and_token(tmp_path, monkeypatch):
    from huggingface_hub import constants

    class Gate(http.server.BaseHTTPRequestHandler):
        """A hub whose every model is gated."""

        def do_GET(self):
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_address[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        try:
            with pytest.raises(ValueError, match=r"some/model.*GatedRepoError.*" + HELP):
                DiffusionTextEncoder("some/model")
        finally:
            hub.shutdown()
            thread.join()
