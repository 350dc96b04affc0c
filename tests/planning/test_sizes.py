"""Counts of the published models against published numbers, formulas against torch's counter, memory planned against counted."""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.planning import sizes, sizes_vision
from syn4seg.planning import sizes_generators as generators
from syn4seg.planning.sizes import COUNTED
from syn4seg.planning.sizes_generators import STABILITY, generator_size
from syn4seg.planning.sizes_vision import SamSize, sam_size

ROOT = Path(__file__).parents[2]

GIB = 2**30


# -------------------------------------------------------------------------------------------- published numbers
def test_sd35_large_counts_as_published():
    size = generator_size(f"{STABILITY}large")
    billions = {part.name: round(part.parameters / 1e9, 3) for part in (*size.text, *size.image)}
    assert billions == {"text_encoder": 0.124, "text_encoder_2": 0.695, "text_encoder_3": 4.762, "transformer": 8.057, "vae": 0.084}
    transformer, vae = size.image
    assert transformer.parameters * 2 / GIB == pytest.approx(15.01, abs=0.005)
    assert (transformer.parameters + vae.parameters) * 2 / GIB == pytest.approx(15.2, abs=0.05)
    assert transformer.buffers == 192 * 192 * 2432  # the table of positions, stored and kept beside the parameters
    assert size.text_bytes(2) / GIB == pytest.approx(8.87 + 1.29 + 0.23, abs=0.02)
    assert size.image_bytes(2) / GIB == pytest.approx(15.01 + 0.16 + 0.17, abs=0.02)
    assert size.image_bytes(2, generators.WEIGHT_BYTES["nf4"]) / GIB == pytest.approx(4.4, abs=0.1)
    assert size.text_tokens == 77 + 256 and size.embedding_numbers == 333 * 4096 + 2048
    assert generator_size(f"{STABILITY}large-turbo") == size


def test_sd35_medium_is_smaller_and_has_a_larger_table_of_positions():
    transformer, vae = generator_size(f"{STABILITY}medium").image
    assert transformer.parameters / 1e9 == pytest.approx(2.243, abs=0.001)
    assert transformer.buffers == 384 * 384 * 1536
    assert vae == generator_size(f"{STABILITY}large").image[1]


# ------------------------------------------------------------------------------- formulas against torch's counter
@pytest.mark.parametrize(
    ("layers", "dual", "side", "tokens", "change"),
    [
        (1, (), 8, 5, {}),
        (3, (), 16, 33, {"joint_attention_dim": 48}),
        (3, (0, 1), 12, 7, {"pooled_projection_dim": 40}),
        (
            2,
            (0,),
            8,
            1,
            {"in_channels": 8, "out_channels": 8, "attention_head_dim": 16, "num_attention_heads": 3, "caption_projection_dim": 48},
        ),
    ],
)
def test_the_transformers_formula_is_what_torch_counts(layers, dual, side, tokens, change):
    config = (
        generators.SD35_LARGE
        | {
            "num_layers": layers,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "caption_projection_dim": 64,
            "joint_attention_dim": 64,
            "pooled_projection_dim": 32,
            "pos_embed_max_size": 16,
            "dual_attention_layers": dual,
        }
        | change
    )
    net = generators.build_transformer(config).eval()
    inputs = {
        "hidden_states": torch.randn(1, config["in_channels"], side, side),
        "timestep": torch.ones(1),
        "encoder_hidden_states": torch.randn(1, tokens, config["joint_attention_dim"]),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"]),
    }
    # as plain matrix products: which kernel a CPU takes for attention is its own affair, and not all of them are counted
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net.requires_grad_(False)(**inputs)
    assert generators.mmdit_flops(config, (side // 2) ** 2, tokens) == counter.get_total_flops()


def test_an_image_is_its_steps_twice_with_guidance_and_one_decoding():
    size = generator_size(f"{STABILITY}large")
    decode = generators.decode_flops(size.vae, 512)
    forward = generators.mmdit_flops(size.transformer, 32 * 32, 333)
    assert size.latent_cell == 16
    assert size.image_flops(512, 7, 1.0) == pytest.approx(7 * forward + decode)
    assert size.image_flops(512, 7, 4.5) == pytest.approx(14 * forward + decode)
    assert generator_size("renderer").image_flops(64, 16, 3.0) == 0


def test_decoding_costs_what_its_convolutions_cost():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    small = {"latent_channels": 4, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    vae = generators.SD3_VAE | blocks | small
    net, counted = generators.build_vae(vae).eval(), []
    for layer in net.decoder.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):

            def count(module: Any, _: Any, y: Any) -> None:
                places = y.shape[2] * y.shape[3] if isinstance(module, nn.Conv2d) else y.shape[1]
                counted.append(2 * dict(module.named_parameters())["weight"].numel() * places)

            layer.register_forward_hook(count)
    with torch.no_grad():
        net.decode(torch.randn(1, 4, 8, 8))
    attention = 4 * 64 * 64 * 16  # one head over the 64 latent pixels, in the middle
    assert generators.decode_flops(vae, 16) == sum(counted) + attention


# ---------------------------------------------------------------------------- memory planned against memory counted
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small pipeline in the true format, with T5, its transformer in several shards."""
    from diffusers import StableDiffusion3Pipeline
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    from tools import flow, generator

    path = tmp_path_factory.mktemp("sizes") / "sd3"
    net = flow.Denoiser(generator.clip_tokenizer(embedded.vocabulary()))
    generator.export(net.net, net.texts, generator.autoencoder(), path, {})
    letters = [(c, -6.0) for c in "abcdefghijklmnopqrstuvwxyz"]
    words = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0), *letters], extra_ids=0)
    config = T5Config(vocab_size=len(words), d_model=128, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    whole = StableDiffusion3Pipeline.from_pretrained(path, text_encoder_3=T5EncoderModel(config), tokenizer_3=words)
    shutil.rmtree(path)
    whole.save_pretrained(path, max_shard_size="4MB")
    shards = list((path / "transformer").glob("*.safetensors"))
    assert len(shards) > 1
    shutil.copy(shards[0], path / "transformer" / "diffusion_pytorch_model.fp16.safetensors")  # must not be counted
    return path


def counted_bytes(*modules: nn.Module) -> int:
    """Bytes of every tensor that a module stores, shared ones once."""
    tensors = {t.data_ptr(): t for m in modules for t in m.state_dict().values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_planned_memory_is_the_memory_of_the_loaded_halves(folder, dtype, width):
    from diffusers import StableDiffusion3Pipeline

    whole, size = StableDiffusion3Pipeline.from_pretrained(folder, dtype=dtype), generator_size(str(folder))
    text = whole.text_encoder, whole.text_encoder_2, whole.text_encoder_3
    assert size.text_bytes(width) == counted_bytes(*text)
    assert size.image_bytes(width) == counted_bytes(whole.transformer, whole.vae)
    held = sum(t.numel() * t.element_size() for m in (whole.transformer, whole.vae) for t in (*m.parameters(), *m.buffers()))
    assert size.image_bytes(width) == held
    assert size.embedding_numbers == size.text_tokens * 128 + 128 and size.text_tokens == size.tokens[0] + 256


def test_our_own_halves_hold_the_planned_bytes(folder):
    from syn4seg.models.diffusion import DiffusionGenerator, DiffusionTextEncoder

    size = generator_size(str(folder))
    made = DiffusionGenerator(str(folder), steps=1, guidance=1.0, size=32, device="cpu").pipeline
    assert size.image_bytes(4) == counted_bytes(made.transformer, made.vae) and made.text_encoder is None
    read = DiffusionTextEncoder(str(folder), device="cpu").pipeline
    assert size.text_bytes(4) == counted_bytes(read.text_encoder, read.text_encoder_2, read.text_encoder_3)


def test_the_architecture_on_the_meta_device_counts_as_its_file(folder):
    transformer, vae = generator_size(str(folder)).image
    with torch.device("meta"):
        assert sizes.part_of("transformer", generators.build_transformer(generator_size(str(folder)).transformer)) == transformer
        assert sizes.part_of("vae", generators.build_vae(generator_size(str(folder)).vae)) == vae


def test_the_packaged_models_are_counted_from_their_files():
    small = generator_size("embedded-sd3")
    assert [p.name for p in small.text] == ["text_encoder", "text_encoder_2"] and small.text_tokens == small.tokens[0]
    state = load_file(Path(__file__).parents[2] / "syn4seg/weights/embedded-sam/model.safetensors")
    part = sizes_vision.sam_size("embedded-sam").part
    assert part.parameters + part.buffers == sum(t.numel() for t in state.values())


# ---------------------------------------------------------------------------------------------- errors
def test_what_is_no_model_is_an_error_that_names_the_models(folder, tmp_path):
    with pytest.raises(UserError, match=r"model 'someone/else'.*without any download: .*embedded-sd3"):
        generator_size("someone/else")
    with pytest.raises(UserError, match="did you mean vit-h"):
        sizes_vision.sam_size("vit-hh")
    (tmp_path / "no.pth").write_bytes(b"nonsense")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("no.pth", "list.pth"):
        with pytest.raises(UserError, match=name):
            sizes_vision.sam_size(str(tmp_path / name))
    with pytest.raises(UserError, match="FluxVae"):
        generators.build_vae({"_class_name": "FluxVae"})


def test_a_damaged_or_empty_part_is_an_error_that_names_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "cut")
    path = next((tmp_path / "cut" / "vae").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"vae/\S+\.safetensors cannot be read"):
        generator_size(str(tmp_path / "cut"))
    path.unlink()
    with pytest.raises(UserError, match=r"vae has no \.safetensors"):
        generator_size(str(tmp_path / "cut"))
    (tmp_path / "cut" / "transformer" / "config.json").write_text("{")
    shutil.copytree(folder / "vae", tmp_path / "cut" / "vae", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"transformer/config\.json cannot be read as JSON"):
        generator_size(str(tmp_path / "cut"))


def test_integers_keep_their_size_in_every_precision(tmp_path):
    tensors = {
        "a.weight": torch.zeros(3, 5),
        "a.running_var": torch.zeros(7),
        "ids": torch.zeros(2, 3, dtype=torch.int64),
        "flags": torch.zeros(4, dtype=torch.bool),
        "bytes": torch.zeros(6, dtype=torch.uint8),
    }
    (tmp_path / "part").mkdir()
    save_file(tensors, tmp_path / "part" / "model.safetensors")
    part = sizes.part_in_folder(tmp_path / "part")
    assert (part.parameters, part.buffers, part.integers) == (15, 7, 6 * 8 + 4 + 6)
    assert part.bytes(2) == 22 * 2 + 58 and part.bytes(4) == 22 * 4 + 58
    assert json.dumps(vars(part))


def test_the_table_of_counted_sizes_is_what_counting_gives():
    made = runpy.run_path(str(ROOT / "docs" / "make_sizes.py"))
    assert json.loads(COUNTED.read_text()) == json.loads(json.dumps(made["count"]())), "after a change: python docs/make_sizes.py"
    read = sam_size("vit-b")
    assert type(read) is SamSize and json.loads(COUNTED.read_text())['sam_size ["vit-b"]'] == asdict(read)


@pytest.mark.parametrize("name", ["pascal5i", "coco20i", "embedded"])
def test_the_packaged_configurations_are_planned_without_building_a_network(name):
    code = "import sys; from syn4seg import cli\ntry: cli.main()\nfinally: assert 'torch' not in sys.modules, 'a network was built'"
    words = ["plan", name, "data.root=nowhere", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout), done.stderr
