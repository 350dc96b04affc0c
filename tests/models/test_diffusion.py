"""The two halves of a Stable Diffusion 3 pipeline against the whole one, on a small pipeline with random weights.

Importing diffusers and transformers takes most of the time of this file, so one random pipeline serves all tests.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.models.diffusion import ENCODE_BATCH, T5_TOKENS, DiffusionGenerator, DiffusionTextEncoder
from syn4seg.models.embeddings import Encoded
from syn4seg.models.generators import EMBEDDED_SD3, load_generator, load_text_encoder
from syn4seg.models.images import to_uint8
from syn4seg.models.protocols import Speed
from syn4seg.prompts.grammar import GrammarAgent

PROMPTS = [
    "a big red star on sand",
    "two small blue moons on fog",
    "a big green fish on sea",
    "a donut",
    "a heart on night",
    "a small pink kite on brick",
    "two arrows on sand",
    "a crown",
]
SEEDS = [2**62 - 1, 1, 2, 3, 4, 5, 6, 7]
STEPS, SIZE = 2, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline saved without T5, as the embedded one; layers that start at zero are made random: words matter."""
    from tools import flow, generator

    net = flow.Denoiser(generator.clip_tokenizer(embedded.vocabulary()))
    torch.manual_seed(0)
    for values in net.net.parameters():
        if not values.any():
            torch.nn.init.normal_(values, std=0.1)
    path = tmp_path_factory.mktemp("models") / "small-sd3"
    generator.export(net.net, net.texts, generator.autoencoder(), path, {"weights": "random"})
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

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def called_whole(pipeline, guidance: float, t5_tokens: int = 0) -> np.ndarray:
    images = pipeline(
        prompt=PROMPTS,
        generator=[torch.Generator().manual_seed(s) for s in SEEDS],
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        height=SIZE,
        width=SIZE,
        output_type="np",
        max_sequence_length=t5_tokens,
    ).images
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
    assert nothing.pooled.shape == (0, 128) and nothing.sequence.shape == (0, *encoded.sequence.shape[1:])
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


def test_a_pipeline_with_t5_keeps_its_tokens(folder, encoder, tmp_path):
    from diffusers import StableDiffusion3Pipeline
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [(c, -6.0) for c in "abcdefghijklmnopqrstuvwxyz"]
    words = [("\u2581" + w, -1.0) for w in embedded.vocabulary()]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0), *words, *letters], extra_ids=0)
    torch.manual_seed(1)
    config = T5Config(vocab_size=len(tokenizer), d_model=128, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    with_t5 = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=T5EncoderModel(config).eval(), tokenizer_3=tokenizer, dtype=torch.float32
    )
    with_t5.save_pretrained(tmp_path / "t5")
    with_t5.set_progress_bar_config(disable=True)
    encoded = DiffusionTextEncoder(str(tmp_path / "t5"), device="cpu").encode(PROMPTS)
    assert encoded.sequence.shape == (8, encoder.encode([""]).sequence.shape[1] + T5_TOKENS, 128)
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
    with pytest.raises(UserError, match="8 prompts, 8 embeddings and 3 noise seeds"):
        generator.generate(PROMPTS, encoded, [1, 2, 3])


@pytest.mark.parametrize("size", [36, 0, 256])
def test_an_impossible_size_is_an_error_that_names_the_possible_ones(folder, size):
    with pytest.raises(UserError, match=rf"synthesis\.size is {size}; .*sides of 8, 16, 24\.\.\. to 128"):
        load(folder, size=size)


def test_no_steps_are_an_error(folder):
    with pytest.raises(UserError, match=r"synthesis\.steps is 0"):
        load(folder, steps=0)


def test_a_file_cut_short_is_an_error_that_names_the_file(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "cut")
    for part, half in (("vae", load), ("text_encoder", DiffusionTextEncoder)):
        path = next((tmp_path / "cut" / part).glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UserError, match=rf"{part}/\w+.*\.safetensors is cut short or damaged.*download"):
            half(str(tmp_path / "cut"))


def test_a_prompt_beyond_the_tokens_that_are_read_is_said_to_be_cut(encoder):
    limit = encoder.pipeline.tokenizer.model_max_length
    short, long = "a star", "a star " * limit
    other = f"{long} on sand"
    assert encoder.cut_at([short, long, other]) == [0, limit, limit]
    assert np.array_equal(encoder.encode([long]).pooled, encoder.encode([other]).pooled)  # what is cut is not read


@pytest.mark.parametrize(("part", "half"), [("vae", load), ("transformer", load), ("text_encoder", DiffusionTextEncoder)])
def test_weights_that_lack_are_an_error_and_never_invented(folder, tmp_path, part, half):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "less")
    path = next((tmp_path / "less" / part).glob("*.safetensors"))
    tensors = load_file(path)
    lost = sorted(tensors)[3]
    save_file({name: values for name, values in tensors.items() if name != lost}, path, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{part} lacks 1 of its weights, such as {lost}") as caught:
        half(str(tmp_path / "less"))
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_an_error_in_one_line(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    config = tmp_path / "other" / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 7}))
    with pytest.raises(UserError, match=r"cannot be loaded: .*; expected transformer, vae, scheduler") as caught:
        load(tmp_path / "other")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_set(folder):
    for half in (lambda: load(folder, device="cuda"), lambda: DiffusionTextEncoder(str(folder), device="cuda")):
        with pytest.raises(UserError, match=r"no usable GPU here; set placement\.device=cpu"):
            half()


# ------------------------------------------------------------------------------------- a second try after a fault
class InHalf(DiffusionGenerator):
    """A generator in bfloat16, as on a GPU, whose transformer or decoder breaks in that precision: nan in one row."""

    def __init__(self, folder, broken: str, row: int = 1, **options):
        super().__init__(str(folder), steps=STEPS, size=SIZE, device="cpu", **{"guidance": 3.0} | options)
        self.pipeline.to(torch.bfloat16)
        self.dtype, self.row, self.too_large, self.kept = torch.bfloat16, row, False, []
        module = {"transformer": self.pipeline.transformer, "decoder": self.pipeline.vae.decoder, "none": torch.nn.Identity()}
        module[broken].register_forward_hook(self.spoil)

    def spoil(self, module, given, out):
        values = out[0] if isinstance(out, tuple) else out
        if values.dtype == torch.bfloat16:
            values = values.clone()
            values[self.row :: 3] = torch.nan
        elif self.too_large:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 30 GiB")
        self.kept.append(values.dtype)
        return (values,) if isinstance(out, tuple) else values

    def state(self) -> list[tuple[str, torch.dtype, bytes]]:
        modules = self.pipeline.transformer, self.pipeline.vae
        every = [(n, t) for m in modules for n, t in (*m.named_parameters(), *m.named_buffers())]
        return [(n, t.dtype, t.detach().float().numpy().tobytes()) for n, t in every]


@pytest.mark.parametrize(
    ("broken", "tried", "precision"),
    [("decoder", "float32 decoder", "float32 decoder"), ("transformer", "float32 decoder, float32", "float32")],
)
def test_an_image_broken_in_bfloat16_is_made_again_in_float32_and_its_neighbours_stay(folder, encoded, broken, tried, precision):
    three = PROMPTS[:3], encoded.rows([0, 1, 2]), SEEDS[:3]
    sound = InHalf(folder, "none").make(*three)
    half = InHalf(folder, broken)
    before = half.state()
    made = half.make(*three)
    assert sound.faults == made.faults == ["", "", ""] and sound.audit == [{}, {}, {}]
    assert made.audit == [{}, {"first_fault": "nan", "retried": tried, "precision": precision}, {}]
    np.testing.assert_array_equal(made.images[[0, 2]], sound.images[[0, 2]])
    assert half.state() == before, "dtypes or bits of the weights changed"
    np.testing.assert_array_equal(half.make(*three).images, made.images)
    assert np.abs(made.images[1].astype(int) - sound.images[1]).mean() < 4, "another picture"
    if precision == "float32":  # what a generator makes that is float32 throughout, from the same weights and noise
        noise = half._noise([SEEDS[1]]).float()
        half.pipeline.to(torch.float32)
        expected, _ = to_uint8(half._decoded(half._denoised(encoded.rows([1]), noise, 0)))
        assert np.abs(made.images[1].astype(int) - expected[0]).max() <= 1


def test_a_second_try_that_does_not_fit_in_memory_leaves_the_image_faulty_and_everything_else_alone(folder, encoded):
    half = InHalf(folder, "transformer")
    half.too_large, before = True, half.state()
    made = half.make(PROMPTS[:3], encoded.rows([0, 1, 2]), SEEDS[:3])
    assert made.faults == ["", "nan", ""] and "precision" not in made.audit[1]
    assert made.audit[1]["retried"] == "float32 decoder, float32: CUDA out of memory. Tried to allocate 30 GiB"
    assert half.state() == before


def test_what_is_faulty_in_float32_too_is_tried_once_and_stays_faulty(generator, encoded):
    broken = Encoded(encoded.pooled * np.nan, encoded.sequence, encoded.empty_pooled, encoded.empty_sequence)
    made = generator.make(PROMPTS[:2], broken.rows([0, 1]), SEEDS[:2])
    assert made.faults == ["nan", "nan"]
    assert made.audit == [{"first_fault": "nan", "retried": "float32"}] * 2


# ------------------------------------------------------------------------------------------------- speed
def fast(folder, **speed):
    guidance = speed.pop("guidance", 3.0)
    return DiffusionGenerator(str(folder), steps=6, guidance=guidance, size=SIZE, device="cpu", speed=Speed(**speed))


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_with_a_step_cache_an_image_is_the_same_alone_in_a_batch_and_elsewhere_in_it(folder, encoded, guidance):
    cached = fast(folder, step_cache=0.6, guidance=guidance)
    images = cached.make(PROMPTS[:4], encoded.rows(range(4)), SEEDS[:4])
    blocks = 6 * cached.pipeline.transformer.config.num_layers
    assert all(a["blocks_run"] + a["blocks_skipped"] == blocks and a["blocks_skipped"] > 0 for a in images.audit)
    for order in ([0], [1], [2], [3], [3, 1], [2, 3, 0, 1, 2]):
        made = cached.make([PROMPTS[i] for i in order], encoded.rows(order), [SEEDS[i] for i in order])
        np.testing.assert_array_equal(made.images, images.images[order])
        assert made.audit == [images.audit[i] for i in order]


def test_no_step_cache_is_bit_identical_to_a_generator_that_knows_of_none(folder, encoded, whole):
    plain, sliced = fast(folder), fast(folder, vae_slicing=True)
    assert plain.cache is None
    full = whole(
        prompt=PROMPTS,
        generator=[torch.Generator().manual_seed(s) for s in SEEDS],
        num_inference_steps=6,
        guidance_scale=3.0,
        height=SIZE,
        width=SIZE,
        output_type="np",
        max_sequence_length=0,
    ).images
    images, _ = plain.generate(PROMPTS, encoded, SEEDS)
    np.testing.assert_array_equal(images, np.rint(full * 255).astype(np.uint8))
    never = fast(folder, step_cache=1e-9)
    alone = np.concatenate([sliced.generate([p], encoded.rows([i]), [SEEDS[i]])[0] for i, p in enumerate(PROMPTS)])
    np.testing.assert_array_equal(never.generate(PROMPTS, encoded, SEEDS)[0], alone)
    assert np.abs(sliced.generate(PROMPTS, encoded, SEEDS)[0].astype(int) - images).max() <= 1


def test_with_a_step_cache_a_second_try_uses_none(folder, encoded):
    half = InHalf(folder, "transformer", row=0, speed=Speed(step_cache=1e9))
    made = half.make(PROMPTS[:1], encoded.rows([0]), SEEDS[:1])
    assert made.faults == [""] and made.audit[0]["precision"] == "float32"
    assert [(m.ran, m.skipped) for m in half.cache.memories] == [(10, 0)]


def test_the_facts_say_what_was_really_used_and_no_path(folder, tmp_path):
    facts = fast(folder, step_cache=0.1, vae_slicing=True).facts()
    assert json.loads(json.dumps(facts)) == facts and str(folder.parent) not in json.dumps(facts)
    assert facts == {
        "model": "small-sd3",
        "revision": facts["revision"],
        "dtype": "float32",
        "device": "cpu",
        "steps": 6,
        "guidance": 3.0,
        "size": SIZE,
        "compile": False,
        "attention": "default",
        "vae_slicing": True,
        "weights": "full",
        "step_cache": 0.1,
    }
    assert facts["revision"].startswith("configs:")


@pytest.mark.parametrize("weights", ["nf4", "fp8"])
def test_small_weights_on_a_cpu_are_refused_before_anything_is_looked_for(weights):
    with pytest.raises(UserError, match=rf"synthesis\.weights={weights}: needs an NVIDIA GPU, this is a cpu; set it to full"):
        load("nowhere/at-all", speed=Speed(weights=weights))


def test_the_tokenizer_of_the_embedded_world_is_the_same_in_every_process():
    code = (
        "from tools.generator import clip_tokenizer; from syn4seg.data import embedded; "
        "print(sorted(clip_tokenizer(embedded.vocabulary()).get_vocab().items()))"
    )
    said = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(said) == 1
    from tools import generator

    words = generator.clip_tokenizer(embedded.vocabulary())
    assert all(len(words(word).input_ids) == 3 for word in embedded.vocabulary())


def test_the_prompts_of_the_product_and_of_the_training_fit_the_tokenizer():
    from tools import generator

    words = generator.clip_tokenizer(embedded.vocabulary())
    for prompt in (*generator.product_prompts(320), *generator.prompts_of("test", 0, 320)):
        assert len(words(prompt).input_ids) == 2 + len(prompt.split()) <= generator.TOKENS


def test_training_from_an_exported_folder_goes_on_with_its_weights_and_the_words_that_it_knows(folder):
    from tools import flow, generator

    known = generator.clip_tokenizer(embedded.vocabulary())
    words = generator.clip_tokenizer([word for word in embedded.vocabulary() if word != "beside"])
    assert words("star").input_ids != known("star").input_ids
    net, old = flow.Denoiser(words), load_text_encoder(str(folder), device="cpu")
    flow.load_folder(net, words, folder)
    texts = torch.cat([text(flow.tokens(words, PROMPTS)).text_embeds for text in net.texts], 1)
    np.testing.assert_allclose(texts.detach().numpy(), old.encode(PROMPTS).pooled, atol=1e-4)
    stored = DiffusionGenerator(str(folder), steps=1, guidance=1.0, size=SIZE, device="cpu").pipeline.transformer.state_dict()
    assert all((value == stored[name]).all() for name, value in net.net.state_dict().items())


@pytest.mark.parametrize("number", ["", "_2"])
def test_every_word_of_a_prompt_has_a_trained_embedding(number):
    from safetensors.torch import load_file
    from transformers import CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(EMBEDDED_SD3 / f"tokenizer{number}")
    tensors = load_file(EMBEDDED_SD3 / f"text_encoder{number}" / "model.safetensors")
    rows = next(value for name, value in tensors.items() if "token_embedding" in name).float()
    said = {w for name in embedded.CLASSES for p in GrammarAgent("embedded", 0, 40).propose(name, 0, [], []) for w in p.split()}
    assert len(said) > 50
    used = [words(word).input_ids[1] for word in sorted(said)]
    others = sorted(set(range(len(rows))) - set(used) - {words.bos_token_id, words.eos_token_id})
    assert rows[used].norm(dim=1).min() > 1.5 * rows[others].norm(dim=1).median()
