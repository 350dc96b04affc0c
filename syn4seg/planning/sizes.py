"""Parameters, bytes and FLOPs of the models that a config names, without loading a weight.

Known names are built from their published architectures on torch's meta device, folders and files are read by their
headers. One multiplication and one addition are two FLOPs; biases, norms and activations are not counted (as in torch's
`FlopCounterMode`, against which the formulas are tested). Heavy libraries are imported inside the functions.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

from syn4seg.errors import UserError

if TYPE_CHECKING:
    from torch import nn

COUNTED = Path(__file__).with_name("counted.json")
"""Function and arguments -> what it counted, of published and packaged models (`docs/make_sizes.py`; a test counts again)."""
WORD_BAG = 16 * 64 + 64
"""Stored numbers of a prompt of a generator without a text encoder: 16 words of 64, and one more."""
BUFFERS = ("pos_embed.pos_embed", "running_mean", "running_var", "positional_encoding_gaussian_matrix")
"""Ends of the names of stored floating-point tensors that are no parameters."""


_Count = TypeVar("_Count", bound=Callable[..., Any])


def counted(count: _Count) -> _Count:
    """Return `count` with a memory: what stands in `counted.json` is read there, since building a network takes seconds.

    `count` is a function of this package whose arguments are JSON and whose result is a dataclass or a number.
    """

    @functools.cache
    def size(*args: Any) -> Any:
        from pydantic import TypeAdapter

        stored = _stored().get(call_text(count, args))
        if stored is None:
            return count(*args)
        return TypeAdapter(get_type_hints(count)["return"]).validate_python(stored)

    return cast(_Count, functools.update_wrapper(size, count))


def call_text(count: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """Return the key of a call in `counted.json`."""
    return f"{count.__name__} {json.dumps(args)}"


@functools.cache
def _stored() -> dict[str, Any]:
    return read_json(COUNTED)


@dataclass(frozen=True)
class ModelPart:
    """One network.

    Attributes:
        name: of the component.
        parameters: trained numbers, shared ones once.
        buffers: further floating-point numbers that are kept with them.
        integers: bytes of stored integer tensors, the same in every precision.
    """

    name: str
    parameters: int
    buffers: int = 0
    integers: int = 0

    def bytes(self, width: float) -> int:
        """Return bytes in memory with `width` bytes per floating-point number (4 float32, 2 bfloat16, less if quantised)."""
        return round((self.parameters + self.buffers) * width) + self.integers


def part_of(name: str, module: nn.Module) -> ModelPart:
    """Return a module's own count; buffers that no checkpoint stores are left out."""
    stored = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    buffers = [b for b in module.buffers() if id(b) in stored]
    return ModelPart(
        name,
        sum(p.numel() for p in module.parameters()),
        sum(b.numel() for b in buffers if b.is_floating_point()),
        sum(b.numel() * b.element_size() for b in buffers if not b.is_floating_point()),
    )


def flops_of(call: Callable[..., Any], *inputs: Any) -> int:
    """Count the FLOPs of one call without gradients with torch; on the meta device nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(*inputs)
    return counter.get_total_flops()


def tensor_shapes(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return name -> (dtype such as "F16", shape) of a safetensors file, from its header alone.

    Raises:
        UserError: it is missing, cut short or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy or download this file again") from error


def part_in_folder(folder: Path) -> ModelPart:
    """Return a component of a diffusers folder, from the headers of its safetensors files (all shards, no fp16 variant).

    Raises:
        UserError: there is no such file, or one is damaged.
    """
    files = sorted(p for p in folder.glob("*.safetensors") if ".fp16" not in p.name)
    if not files:
        raise UserError(f"{folder} has no .safetensors file; expected a component as diffusers' save_pretrained writes it")
    parameters = buffers = integers = 0
    for name, (dtype, shape) in (item for path in files for item in tensor_shapes(path).items()):
        count = functools.reduce(int.__mul__, shape, 1)
        if dtype.startswith(("I", "U", "BOOL")):
            integers += count * max(1, int("".join(c for c in dtype if c.isdigit()) or 8) // 8)
        elif name.endswith(BUFFERS):
            buffers += count
        else:
            parameters += count
    return ModelPart(folder.name, parameters, buffers, integers)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        UserError: it is missing or something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); copy or download the model again") from error
