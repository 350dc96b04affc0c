"""The step cache against a plain loop over blocks written here; on the true architecture it attaches on the meta device.

Several images are denoised together, in another order and alone: their numbers must be the same, bit for bit.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from syn4seg.models.speed import BLOCK
from syn4seg.models.step_cache import Memory, StepCache, relative_change
from syn4seg.planning import sizes_generators

IMAGES, STEPS, BLOCKS, THRESHOLD = 4, 7, 4, 0.2


def transformer(**changes) -> Any:
    """A random SD3 transformer; the gates that start at zero are made random, so that every block does something."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    net: Any = SD3Transformer2DModel(
        **{
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": BLOCKS,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 12,
            "pos_embed_max_size": 8,
            "qk_norm": "rms_norm",
        }
        | changes
    )
    for values in net.parameters():
        torch.nn.init.normal_(values, std=0.15)
    return net.eval()


@pytest.fixture(scope="module")
def inputs() -> list[dict[str, Tensor]]:
    """One image per entry: 7 steps of latents, and both rows of its embeddings; images drift at different speeds."""
    random = torch.Generator().manual_seed(1)
    made = []
    for i in range(IMAGES):
        start, drift = torch.randn(2, 1, 4, 8, 8, generator=random)
        steps = torch.stack([start + 0.03 * (i + 0.3) * s * drift for s in range(STEPS)])
        text, pooled = torch.randn(2, 5, 24, generator=random), torch.randn(2, 12, generator=random)
        made.append({"steps": steps, "text": text, "pooled": pooled})
    return made


def denoised(net: Any, cache: StepCache | None, images: list[dict[str, Tensor]], guided: bool, threshold: float) -> Tensor:
    """(images, steps, rows, 4, 8, 8): the transformer called as the pipeline calls it, unguided rows first."""
    rows = 2 if guided else 1
    if cache:
        cache.start(len(images), threshold)
    out = []
    for step in range(STEPS):
        latents = torch.cat([image["steps"][step] for image in images] * rows)
        text = torch.stack([image["text"][r] for r in range(rows) for image in images])
        pooled = torch.stack([image["pooled"][r] for r in range(rows) for image in images])
        time = torch.tensor(900.0 - 0.5 * step).expand(len(latents))
        with torch.no_grad():
            made = net(
                hidden_states=latents,
                timestep=time,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                joint_attention_kwargs=None,
                return_dict=False,
            )[0]
        out.append(made.unflatten(0, (rows, len(images))).transpose(0, 1))
    return torch.stack(out, 1)


def by_hand(net: Any, image: dict[str, Tensor], guided: bool, threshold: float) -> tuple[list[Tensor], int]:
    """One image, block by block, with the rule spelled out; also how many blocks were skipped."""
    rows = 2 if guided else 1
    out: list[Tensor] = []
    skipped = 0
    last: dict[str, Tensor] = {}
    for step in range(STEPS):
        time = torch.tensor(900.0 - 0.5 * step).expand(rows)
        with torch.no_grad():
            x = net.pos_embed(torch.cat([image["steps"][step]] * rows)).contiguous()
            temb = net.time_text_embed(time, image["pooled"][:rows])
            text = net.context_embedder(image["text"][:rows])
            text, first = net.transformer_blocks[0](hidden_states=x, encoder_hidden_states=text, temb=temb)
            added, y = first - x, first
            if last and (added - last["added"]).abs().mean() / last["added"].abs().mean() < threshold:
                y = first + last["rest"]
                skipped += BLOCKS - 1
            else:
                for block in list(net.transformer_blocks)[1:]:
                    text, y = block(hidden_states=y, encoder_hidden_states=text, temb=temb)
                last = {"added": added, "rest": y - first}
                assert text is None, "the last block has no text to remember"
            y = net.proj_out(net.norm_out(y, temb)).unflatten(1, (4, 4)).unflatten(-1, (2, 2, 4))
            out.append(torch.einsum("nhwpqc->nchpwq", y).reshape(rows, 4, 8, 8))
    return out, skipped


@pytest.mark.parametrize("guided", [True, False])
def test_the_cache_does_what_the_rule_says_and_counts_it(inputs, guided):
    plain, net = transformer(), transformer()
    cache = StepCache(net)
    made = denoised(net, cache, inputs, guided, THRESHOLD)
    counts = []
    for i, image in enumerate(inputs):
        expected, skipped = by_hand(plain, image, guided, THRESHOLD)
        assert torch.equal(made[i], torch.stack(expected))
        memory = cache.memories[i]
        assert (memory.skipped, memory.ran + memory.skipped) == (skipped, STEPS * BLOCKS)
        counts.append(skipped)
    assert len(set(counts)) > 1 and max(counts) > 0, "images must decide differently, or the test shows nothing"


@pytest.mark.parametrize("guided", [True, False])
def test_an_image_is_the_same_alone_in_a_batch_and_at_another_place_in_it(inputs, guided):
    net = transformer()
    cache = StepCache(net)
    together = denoised(net, cache, inputs, guided, THRESHOLD)
    order = [2, 0, 3, 1, 2]
    shuffled = denoised(net, cache, [inputs[i] for i in order], guided, THRESHOLD)
    for place, i in enumerate(order):
        assert torch.equal(shuffled[place], together[i])
    for i, image in enumerate(inputs):
        assert torch.equal(denoised(net, cache, [image], guided, THRESHOLD)[0], together[i])


@pytest.mark.parametrize("guided", [True, False])
def test_a_cache_that_never_skips_is_the_transformer_called_for_each_image_alone(inputs, guided):
    plain, net = transformer(), transformer()
    cache = StepCache(net)
    made = denoised(net, cache, inputs, guided, 0.0)
    for i, image in enumerate(inputs):
        assert torch.equal(made[i], denoised(plain, None, [image], guided, 0.0)[0])
    assert [(m.ran, m.skipped) for m in cache.memories] == [(STEPS * BLOCKS, 0)] * IMAGES


def test_new_images_know_nothing_of_those_before(inputs):
    net = transformer()
    cache = StepCache(net)
    fresh = denoised(net, cache, [inputs[1]], True, THRESHOLD)
    denoised(net, cache, [inputs[0]], True, 10.0)
    assert torch.equal(denoised(net, cache, [inputs[1]], True, THRESHOLD), fresh)
    assert cache.memories[0].ran + cache.memories[0].skipped == STEPS * BLOCKS


def test_a_larger_threshold_never_skips_less_and_a_huge_one_runs_one_full_step(inputs):
    net = transformer()
    cache, skipped = StepCache(net), []
    for threshold in (0.0, 0.1, 0.2, 0.3, 1e9):
        denoised(net, cache, inputs, True, threshold)
        skipped.append(sum(m.skipped for m in cache.memories))
    assert skipped == sorted(skipped) and skipped[0] == 0
    assert skipped[-1] == IMAGES * (STEPS - 1) * (BLOCKS - 1)


def test_what_is_not_finite_is_never_reused():
    sound, broken = torch.ones(3), torch.tensor([1.0, math.nan, 1.0])
    for now, before in ((broken, sound), (sound, broken), (torch.zeros(3), torch.zeros(3))):
        assert not relative_change(now, before) < 1e9
    assert relative_change(sound * 1.5, sound) == 0.5 and relative_change(sound, sound) == 0
    assert Memory().threshold == 0


def test_bfloat16_is_compared_in_float32():
    big = torch.full((70_000,), 1.0, dtype=torch.bfloat16)
    assert relative_change(big * 1.0078125, big) == pytest.approx(0.0078125)


# ---------------------------------------------------------------------------------- the true architecture, no weights
@pytest.fixture(scope="module")
def large() -> Any:
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        net: Any = SD3Transformer2DModel(**sizes_generators.SD35_LARGE)
    return net.to(torch.bfloat16).eval()


def test_the_published_configs_give_the_parameters_that_they_are_known_for(large):
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    vae = {k: v for k, v in sizes_generators.SD3_VAE.items() if not k.startswith("_")}
    with torch.device("meta"):
        parts = [
            large,
            AutoencoderKL(**vae),
            T5EncoderModel(T5Config(**sizes_generators.T5_XXL)),
            *(CLIPTextModelWithProjection(CLIPTextConfig(**c)) for c in (sizes_generators.CLIP_G, sizes_generators.CLIP_L)),
        ]
    billions = [round(sum(p.numel() for p in part.parameters()) / 1e9, 3) for part in parts]
    assert billions == [8.057, 0.084, 4.762, 0.695, 0.124]


def test_compilation_and_cache_find_the_blocks_of_the_true_model(large):
    from diffusers import SD3Transformer2DModel

    assert SD3Transformer2DModel._repeated_blocks == [], "diffusers declares them now: drop ours"
    assert [type(block).__name__ for block in large.transformer_blocks] == [BLOCK] * 38
    inputs = {
        "hidden_states": torch.empty(4, 16, 32, 32),
        "encoder_hidden_states": torch.empty(4, 333, 4096),
        "pooled_projections": torch.empty(4, 2048),
        "timestep": torch.empty(4),
    }
    cache = StepCache(large)
    cache.start(2, 0.1)
    with torch.no_grad():
        out = large(**{name: values.to("meta", torch.bfloat16) for name, values in inputs.items()}, return_dict=False)[0]
    assert out.shape == (4, 16, 32, 32) and out.dtype == torch.bfloat16
    assert [(m.ran, m.skipped) for m in cache.memories] == [(38, 0)] * 2
    assert cache.memories[0].rest is not None and cache.memories[0].rest.shape == (2, 256, 2432)
    large._repeated_blocks = [BLOCK]
    large.compile_repeated_blocks(fullgraph=True)
    assert sum(module._compiled_call_impl is not None for module in large.modules()) == 38
