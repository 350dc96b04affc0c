"""Parameters, bytes and FLOPs of any text-to-image pipeline of diffusers, from its configuration files alone.

The pipeline itself runs, with networks that hold no numbers: each call of one goes to torch's meta device, where shapes are known
and nothing is computed, and comes back as zeros. So a family needs no formula of its own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from syn4seg.errors import UserError
from syn4seg.models.families import FAMILIES, LEFT_OUT, PipelineFamily, has_weights, part_names
from syn4seg.models.hub import locate_configs
from syn4seg.models.pipelines import call_options, encode_texts, network_class, pipeline_class
from syn4seg.planning.sizes import WORD_BAG, flops_of, part_of

if TYPE_CHECKING:
    from torch import nn

PROMPT = "a photo of a cat"
LAYERS = ("mm", "addmm", "convolution", "baddbmm")
"""Operations whose output is held in memory; attention's products are not, in the kernels that are used."""
HELD = 4
"""Outputs of the widest layer that are held at once; of the embedded pipelines and Stable Diffusion 3.5, what was measured."""


class PipelineSize:
    """A pipeline of a family other than Stable Diffusion 3, in its two halves; the interface of `sizes.GeneratorSize`.

    Attributes:
        text: networks that encode prompts; empty where the pipeline is called whole.
        image: networks that make images.
    """

    def __init__(self, model: str):
        """Read the configuration files of a folder or hub id, of which only those are fetched.

        Raises:
            UserError: it is not there, of no known class, or cannot be counted.
        """
        import diffusers

        diffusers.utils.logging.disable_progress_bar()
        folder, index = locate_configs(model)
        self.model, self.family = model, FAMILIES.get(index["_class_name"])
        text, _ = part_names(index)
        names = [name for name, entry in index.items() if has_weights(index, name) and name not in LEFT_OUT and entry[0]]
        with self._explained():
            nets = {name: _network(folder / name, index[name]) for name in names}
            self.counts = {name: _Counted(net) for name, net in nets.items()}
            left_out = {name: None for name in LEFT_OUT if name in index}
            self.pipeline = _on_cpu(pipeline_class(index["_class_name"], folder.name)).from_pretrained(
                folder, local_files_only=True, **nets, **left_out
            )
        self.pipeline.set_progress_bar_config(disable=True)
        parts = {name: part_of(name, net) for name, net in nets.items()}
        apart = text if self.family else ()
        self.text = tuple(part for name, part in parts.items() if name in apart)
        self.image = tuple(part for name, part in parts.items() if name not in apart)
        self.is_network = True

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of a pipeline that cannot run without numbers (or has unreadable files) how its cost is found instead."""
        try:
            yield
        except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(
                f"synthesis.model={self.model!r}: its cost cannot be counted ({' '.join(str(error).split())[:200]}); measure it: "
                "`syn4seg plan --measure 4`, or `syn4seg run` with a small synthesis.images_per_class"
            ) from error

    @functools.cached_property
    def _encoded(self) -> tuple[int, tuple[int, ...], int]:
        """FLOPs of one prompt, the shape (T, C) of its sequence, and the length of its pooled vector."""
        if self.family is None:
            return 0, (1, 0), WORD_BAG
        family: PipelineFamily = self.family
        before = self._spent()
        with self._explained():
            found = encode_texts(self.pipeline, family, torch.device("cpu"), [PROMPT])
        calls = 2 if "empty_sequence" in found else 1  # the empty prompt, beside it
        return (self._spent() - before) // calls, found["sequence"].shape[1:], found["pooled"].shape[-1]

    def _spent(self) -> int:
        return sum(count.spent for count in self.counts.values())

    @property
    def text_tokens(self) -> int:
        """Rows of a prompt's sequence."""
        return self._encoded[1][0]

    @property
    def embedding_numbers(self) -> int:
        """Stored numbers of a prompt: its sequence and its pooled vector."""
        _, (rows, channels), pooled = self._encoded
        return rows * channels + pooled

    def text_flops(self) -> float:
        """Return FLOPs to encode one prompt."""
        return float(self._encoded[0])

    def image_flops(self, size: int, steps: int, guidance: float) -> float:
        """Return the FLOPs of one image of `size` pixels a side: every step, with guidance, and the decoding."""
        return float(sum(count.spent for count in self._made(size, steps, guidance)))

    def activations(self, size: int, batch: int, guidance: float, *, sliced: bool) -> int:
        """Return numbers that are held beside the weights while `batch` images are made."""
        made = self._made(size, 1, guidance)
        return HELD * max((1 if sliced and count.decodes else batch) * count.widest for count in made)

    def _made(self, size: int, steps: int, guidance: float) -> list[_Counted]:
        """Return the image networks after one image; the text encoders too, where the pipeline is called whole."""
        counts = [self.counts[part.name] for part in self.image]
        for count in self.counts.values():
            count.spent = count.widest = 0
        options = call_options(self.pipeline, self.family, steps=steps, guidance=guidance, size=size)
        if self.family and guidance > 1 and "negative_prompt" in inspect.signature(type(self.pipeline).__call__).parameters:
            options["negative_prompt"] = [""]
        with self._explained():
            self.pipeline(prompt=[PROMPT], generator=[torch.Generator().manual_seed(0)], **options)
        return counts

    def image_bytes(self, width: float, transformer_width: float | None = None) -> int:
        """Return the bytes of a generator actor's weights; `transformer_width` where the denoiser is quantised."""
        special = ("transformer", "unet")
        return sum(part.bytes((transformer_width or width) if part.name in special else width) for part in self.image)

    def text_bytes(self, width: float) -> int:
        """Return the bytes of the encoding actor's weights."""
        return sum(part.bytes(width) for part in self.text)


class _Widest(TorchDispatchMode):
    """Notes the largest output of a layer, in numbers."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in LAYERS:
            self.numbers = max(self.numbers, out.numel())
        return out


class _Counted:
    """Counts the calls of a network on the meta device, and answers them with zeros on the CPU; each shape is counted once."""

    def __init__(self, net: nn.Module):
        self.spent = self.widest = 0
        self.known: dict[Any, tuple[int, int, Any]] = {}
        self.decodes, self.reads = hasattr(net, "decode"), type(net).__module__.startswith("transformers.")
        name = "decode" if self.decodes else "forward"
        setattr(net, name, self._of(getattr(net, name)))

    def _of(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            flat, shape = tree_flatten((args, kwargs))
            key = (str(shape), *(tuple(v.shape) if isinstance(v, torch.Tensor) else str(v) for v in flat))
            if key not in self.known:
                given, named = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
                if self.reads:
                    named.pop("attention_mask", None)  # libraries look into it, and no FLOP depends on it
                answers: list[Any] = []
                with _Widest() as widest:
                    flops = flops_of(lambda: answers.append(method(*given, **named)))
                self.known[key] = flops, widest.numbers, answers[0]
            flops, numbers, answer = self.known[key]
            self.spent, self.widest = self.spent + flops, max(self.widest, numbers)
            return tree_map_only(torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), answer)

        return call


def _network(folder: Path, entry: list[str]) -> nn.Module:
    """Return a part with weights on the meta device, from its config.json."""
    kind = network_class(folder, entry)
    with torch.device("meta"):
        if entry[0] == "diffusers":
            return kind.from_config(kind.load_config(folder)).eval()
        return kind(kind.config_class.from_pretrained(folder)).eval()


def _on_cpu(kind: type) -> Any:
    """Return a pipeline's class whose own tensors are on the CPU, wherever its networks are."""
    here = property(lambda self: torch.device("cpu"))
    return type(kind.__name__, (kind,), {"_execution_device": here, "device": here, "__module__": kind.__module__})
