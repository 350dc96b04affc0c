"""The device on which a model runs: a GPU where there is one and it is allowed, else the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syn4seg.errors import UserError

if TYPE_CHECKING:
    import torch


def resolve_device(device: str) -> str:
    """Return the device that a name stands for: "auto" is "cuda" where torch sees a GPU and "cpu" elsewhere; other names stay."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def generator_device(name: str) -> torch.device:
    """Return the device of an image model or its text encoders.

    Raises:
        UserError: a GPU is asked for, and there is none.
    """
    import torch

    name = resolve_device(name)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "placement.device=cuda: there is no usable GPU here; set placement.device=cpu (or auto), or give the "
            "stage a GPU (placement.synthesis.gpus=1, placement.encoding.gpus=1)"
        )
    return torch.device(name)


def generator_dtype(device: torch.device) -> torch.dtype:
    """Return the precision in which an image model runs on a device."""
    import torch

    return torch.bfloat16 if device.type == "cuda" else torch.float32


def free_gpu() -> None:
    """Give back the GPU memory that this process no longer uses, for the actors that come next."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
