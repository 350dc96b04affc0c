"""The device on which a model runs: a GPU where there is one and it is allowed, else the CPU."""

from __future__ import annotations


def resolve_device(device: str) -> str:
    """Return the device that a name stands for: "auto" is "cuda" where torch sees a GPU and "cpu" elsewhere; other names stay."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def free_gpu() -> None:
    """Give back the GPU memory that this process no longer uses, for the actors that come next."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
