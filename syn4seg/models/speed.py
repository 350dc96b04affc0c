"""What makes Stable Diffusion 3 faster or smaller and changes pixels: attention backends, compilation, small weights.

diffusers' `set_attention_backend` does nothing here: SD3's attention processor is fixed to torch's own attention. The
processor below is the same arithmetic with the backend left open.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syn4seg.errors import UserError

if TYPE_CHECKING:
    from syn4seg.models.protocols import Speed

BLOCK = "JointTransformerBlock"


class JointAttention:
    """Attention over image and text tokens together (SD3, section 4), through one of diffusers' backends."""

    def __init__(self, backend: str):
        self.backend: Any = backend

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any):
        """Return (B, S, C) image tokens, or those and (B, T, C) text tokens if they came in, after attention and projection."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        def heads(layer: Any, tokens: Tensor, norm: Any = None) -> Tensor:
            split = layer(tokens).unflatten(2, (attn.heads, -1))
            return split if norm is None else norm(split)

        query = heads(attn.to_q, hidden_states, attn.norm_q)
        key, value = heads(attn.to_k, hidden_states, attn.norm_k), heads(attn.to_v, hidden_states)
        if encoder_hidden_states is not None:
            text = encoder_hidden_states
            query = torch.cat([query, heads(attn.add_q_proj, text, attn.norm_added_q)], 1)
            key = torch.cat([key, heads(attn.add_k_proj, text, attn.norm_added_k)], 1)
            value = torch.cat([value, heads(attn.add_v_proj, text)], 1)
        joint = dispatch_attention_fn(query, key, value, backend=self.backend).flatten(2).to(query.dtype)
        image = attn.to_out[1](attn.to_out[0](joint[:, : hidden_states.shape[1]]))
        if encoder_hidden_states is None:
            return image
        rest = joint[:, hidden_states.shape[1] :]
        return image, rest if attn.context_pre_only else attn.to_add_out(rest)


def attention_backends(device: torch.device, dtype: torch.dtype, width: int) -> list[str]:
    """Return the names of the attention backends that run here on heads of `width` channels; kernels of the hub are left out."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    names = [backend.value for backend in AttentionBackendName if not backend.value.endswith("_hub")]
    return [name for name in names if not unavailable_reason(name, device, dtype, width)]


def unavailable_reason(backend: str, device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Return "" if the backend runs on a few tokens on this device, else what it says."""
    from diffusers.models import attention_dispatch as dispatch

    try:
        name: Any = dispatch.AttentionBackendName(backend)
        dispatch._check_attention_backend_requirements(name)
        dispatch._maybe_download_kernel_for_backend(name)
        tokens = torch.ones(1, 128, 2, width, dtype=dtype, device=device)
        with torch.no_grad():
            result = dispatch.dispatch_attention_fn(tokens, tokens, tokens, backend=name)
        return "" if torch.allclose(result.float(), tokens.float(), atol=0.05) else "its result is wrong"
    except Exception as error:  # noqa: BLE001 - whatever a third-party kernel raises, it cannot be used
        return " ".join(str(error).split()) or type(error).__name__


def check(speed: Speed, device: torch.device) -> None:
    """Refuse what cannot work, before anything loads.

    Raises:
        UserError: small weights without a GPU, without their package, or compiled.
    """
    if speed.weights == "full":
        return
    if device.type != "cuda":
        raise UserError(
            f"synthesis.weights={speed.weights}: needs an NVIDIA GPU, this is a {device.type}; set it to "
            "full, or give the generator a GPU (placement.synthesis.gpus=1)"
        )
    if speed.weights == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "synthesis.weights=nf4: the package bitsandbytes is not installed; `pip install bitsandbytes`, or set "
            "synthesis.weights=fp8, which needs no package"
        )


def quantisation(speed: Speed) -> dict[str, Any]:
    """Return arguments with which the transformer must be loaded."""
    if speed.weights != "nf4":
        return {}
    from diffusers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    }


def apply(speed: Speed, transformer: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Apply the weights, attention and compilation of `speed` to a loaded transformer; the default changes nothing.

    Raises:
        UserError: an attention backend that is unknown or does not run here.
    """
    if speed.weights == "fp8":  # stored in 8 bits, computed in `dtype`; the norms and embeddings stay as they are
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    if speed.attention != "default":
        width = transformer.config.attention_head_dim
        if reason := unavailable_reason(speed.attention, device, dtype, width):
            raise UserError(
                f"synthesis.attention={speed.attention}: does not run here ({reason}); here run default, "
                f"{', '.join(attention_backends(device, dtype, width))}"
            )
        transformer.set_attn_processor(JointAttention(speed.attention))
    if speed.compile:
        transformer._repeated_blocks = [BLOCK]  # SD3 declares none; one compiled block then serves all of them
        transformer.compile_repeated_blocks(fullgraph=speed.weights == "full")


@contextlib.contextmanager
def in_float32(modules: list[nn.Module]) -> Iterator[None]:
    """Let `modules` compute in float32 inside the block: attention is torch's plain one and nothing is compiled; afterwards
    every tensor
    is what it was, bit for bit (a bfloat16 number is a float32 number)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
    before = [t.dtype for t in tensors]
    fast: list[tuple[Any, Any]] = [
        (layer, layer.processor)
        for m in modules
        for layer in m.modules()
        if isinstance(getattr(layer, "processor", None), JointAttention)
    ]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        for layer, _ in fast:
            layer.processor = JointAttention("native")
        with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for layer, processor in fast:
            layer.processor = processor
        for tensor, dtype in zip(tensors, before, strict=True):
            tensor.data = tensor.data.to(dtype)
