"""Attention backends, compilation and small weights on a small random transformer: the same arithmetic, or a clear refusal.

The small transformer is of Medium's kind (dual attention in its first blocks), so both of SD3.5's kinds of block are met.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from syn4seg.errors import UserError
from syn4seg.models import speed
from syn4seg.models.protocols import Speed
from syn4seg.models.speed import BLOCK, JointAttention, attention_backends, in_float32, unavailable_reason

CPU, FLOAT = torch.device("cpu"), torch.float32


def transformer() -> Any:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    net: Any = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=12,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0, 1),
    )
    for values in net.parameters():
        torch.nn.init.normal_(values, std=0.15)
    return net.eval()


def called(net: Any) -> Tensor:
    random = torch.Generator().manual_seed(1)
    dtype = next(p.dtype for n, p in net.named_parameters() if n.startswith("transformer_blocks.0.norm1"))
    latents, text, pooled = (torch.randn(shape, generator=random) for shape in ((2, 4, 8, 8), (2, 5, 24), (2, 12)))
    with torch.no_grad():
        return net(
            hidden_states=latents.to(dtype),
            encoder_hidden_states=text.to(dtype),
            return_dict=False,
            pooled_projections=pooled.to(dtype),
            timestep=torch.full((2,), 500.0),
        )[0]


def test_the_default_touches_nothing():
    net = transformer()
    before = {name: id(module) for name, module in net.named_modules()}
    speed.apply(Speed(), net, CPU, FLOAT)
    assert {name: id(module) for name, module in net.named_modules()} == before
    assert all(module._compiled_call_impl is None for module in net.modules())
    assert {type(p).__name__ for p in net.attn_processors.values()} == {"JointAttnProcessor2_0"}
    assert torch.equal(called(net), called(transformer()))


def test_every_backend_that_runs_here_gives_the_same_image_within_rounding():
    names, expected = attention_backends(CPU, FLOAT, 16), called(transformer())
    assert {"native", "_native_math"} <= set(names) and "flash_hub" not in names
    for name in names:
        net = transformer()
        speed.apply(Speed(attention=name), net, CPU, FLOAT)
        assert {type(p) for p in net.attn_processors.values()} == {JointAttention}
        torch.testing.assert_close(called(net), expected, atol=2e-5, rtol=1e-4)
    net.set_attn_processor(JointAttention("native"))
    assert torch.equal(called(net), expected)


def test_diffusers_own_switch_does_nothing_for_this_architecture():
    net = transformer()
    net.set_attention_backend("_native_math")
    assert not any(hasattr(p, "_attention_backend") for p in net.attn_processors.values()), "it does now: drop ours"
    net.reset_attention_backend()


@pytest.mark.parametrize("name", ["nonsense", "flash", "_native_cudnn", "sage"])
def test_a_backend_that_is_unknown_or_does_not_run_here_is_an_error_that_lists_those_that_do(name):
    if not unavailable_reason(name, CPU, FLOAT, 16):
        pytest.skip(f"{name} runs here")
    with pytest.raises(UserError, match=rf"synthesis\.attention={name}: does not run here \(.*\); here run default, .*native"):
        speed.apply(Speed(attention=name), transformer(), CPU, FLOAT)


def test_compilation_takes_the_blocks_and_only_them_and_captures_each_in_one_graph():
    net = transformer()
    net.set_attn_processor(JointAttention("native"))
    speed.apply(Speed(compile=True), net, CPU, FLOAT)
    compiled = [module for module in net.modules() if module._compiled_call_impl is not None]
    assert [type(module).__name__ for module in compiled] == [BLOCK] * 3
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(called(net), called(transformer()))
    for attention in (None, "native"):  # whole graphs, captured but not turned into machine code
        plain = transformer()
        if attention:
            plain.set_attn_processor(JointAttention(attention))
        for block in plain.transformer_blocks:
            block.compile(backend="eager", fullgraph=True)
        assert torch.equal(called(plain), called(transformer()))


def test_weights_in_8_bits_are_stored_so_and_computed_in_full():
    net, expected = transformer(), called(transformer())
    speed.apply(Speed(weights="fp8"), net, CPU, FLOAT)
    small = {name for name, p in net.named_parameters() if p.dtype == torch.float8_e4m3fn}
    assert "transformer_blocks.0.attn.to_q.weight" in small and not any("norm" in name for name in small)
    assert sum(net.get_parameter(name).numel() for name in small) > 0.6 * sum(p.numel() for p in net.parameters())
    made = called(net)
    assert made.dtype == FLOAT and not torch.equal(made, expected)
    assert (made - expected).abs().mean() < 0.3 * expected.abs().mean()


def test_small_weights_need_a_gpu_and_their_package_and_are_not_compiled():
    speed.check(Speed(compile=True, step_cache=0.1), CPU)
    for weights in ("nf4", "fp8"):
        with pytest.raises(UserError, match=rf"synthesis\.weights={weights}: needs an NVIDIA GPU.*placement\.synthesis\.gpus=1"):
            speed.check(Speed(weights=weights), CPU)
    gpu = torch.device("cuda")
    speed.check(Speed(weights="fp8"), gpu)
    if speed.importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(UserError, match=r"weights=nf4: the package bitsandbytes is not installed; `pip install"):
            speed.check(Speed(weights="nf4"), gpu)
    with pytest.raises(UserError, match=r"synthesis\.compile=True with synthesis\.weights=fp8"):
        Speed(compile=True, weights="fp8")


def test_only_nf4_changes_how_the_transformer_is_loaded():
    assert speed.quantisation(Speed()) == speed.quantisation(Speed(weights="fp8")) == {}


def test_float32_lasts_as_long_as_the_block_and_leaves_every_bit_as_it_was():
    net = transformer().to(torch.bfloat16)
    net.pos_embed.pos_embed.data = net.pos_embed.pos_embed.data.float()  # a tensor that was in float32 all along
    net.set_attn_processor(JointAttention("native"))
    processors = dict(net.attn_processors)

    def state():
        return {name: (t.dtype, t.detach().clone()) for name, t in (*net.named_parameters(), *net.named_buffers())}

    before = state()
    with in_float32([net]):
        assert {t.dtype for t in net.parameters()} == {FLOAT} and called(net).dtype == FLOAT
    with pytest.raises(MemoryError), in_float32([net]):
        raise MemoryError
    after = state()
    assert all(after[n][0] == dtype and torch.equal(after[n][1], t) for n, (dtype, t) in before.items())
    assert net.attn_processors == processors
