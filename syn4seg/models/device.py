"""The device on which a model runs: a GPU where there is one and it is allowed, else the CPU."""

from __future__ import annotations


def free_gpu() -> None:
    """Gives back the GPU memory that this process no longer uses, for the actors that come next."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
