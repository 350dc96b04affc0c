"""What a pipeline is planned to cost is what it costs when it really runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from syn4seg.errors import UserError
from syn4seg.models import families
from syn4seg.models.pipelines import PipelineGenerator, PipelineTextEncoder
from syn4seg.planning.sizes_generators import generator_size
from syn4seg.planning.sizes_pipelines import PROMPT
from tests.planning.test_sizes import counted_bytes
from tests.shared_pipelines import FAMILIES, saved


def without_weights(folder):
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_bytes_and_flops_of_a_family_are_those_of_the_loaded_halves(name, tmp_path):
    folder = saved(name, tmp_path)
    encoder = PipelineTextEncoder(str(folder), device="cpu")
    encoded = encoder.encode([PROMPT])
    texts = [m for m in encoder.pipeline.components.values() if isinstance(m, torch.nn.Module)]
    spent, held = {}, 0
    for guidance in (1.0, 3.0):
        generator = PipelineGenerator(str(folder), steps=2, guidance=guidance, size=32, device="cpu")
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the counter sees no flash attention on CPUs
            generator.generate([PROMPT], encoded, [1])
        spent[guidance] = counter.get_total_flops()
        held = counted_bytes(*(m for m in generator.pipeline.components.values() if isinstance(m, torch.nn.Module)))
    size = generator_size(str(without_weights(folder)))
    assert {g: size.image_flops(32, 2, g) for g in spent} == spent
    assert (size.text_bytes(4), size.image_bytes(4)) == (counted_bytes(*texts), held)
    assert size.embedding_numbers == encoded.sequence[0].size + encoded.pooled[0].size
    assert size.text_tokens == encoded.sequence.shape[1] and size.text_flops() > 0
    assert size.activations(32, 4, 3.0, sliced=False) >= size.activations(32, 1, 1.0, sliced=False) > 0


def test_a_pipeline_that_is_called_whole_has_its_texts_among_its_images(tmp_path, monkeypatch):
    folder = saved("stable_diffusion", tmp_path)
    apart = generator_size(str(folder))
    generator_size.cache_clear()
    monkeypatch.delitem(families.FAMILIES, "StableDiffusionPipeline")
    size = generator_size(str(folder))
    generator_size.cache_clear()
    assert size.text == () and size.text_flops() == 0
    assert size.image_bytes(2) == apart.image_bytes(2) + apart.text_bytes(2)
    assert size.image_flops(32, 2, 1.0) == apart.image_flops(32, 2, 1.0) + apart.text_flops()


def test_a_network_of_an_unknown_class_is_refused_in_a_sentence(tmp_path):
    index = saved("stable_diffusion", tmp_path) / "model_index.json"
    index.write_text(index.read_text().replace("UNet2DConditionModel", "UNetOfTomorrow"))
    with pytest.raises(UserError, match="UNetOfTomorrow; expected a class of diffusers"):
        generator_size(str(index.parent))
