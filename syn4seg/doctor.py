"""`syn4seg doctor`: which packages are installed, what is missing, and the remedy."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil

import typer

PACKAGES = ("ray", "torch", "torchvision", "diffusers", "transformers", "segment-anything", "numpy", "pyarrow", "optuna")
SMALL_PACKAGES = ("scipy", "opencv-python-headless", "pillow", "safetensors", "pydantic", "pyyaml", "typer", "rich", "matplotlib")


def own_version() -> str:
    """Return the version of this project; "source" where it is not installed."""
    try:
        return importlib.metadata.version("syn4seg-ray")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def versions() -> dict[str, str]:
    """Return the versions of this project, of Python and of the packages that may change a result."""
    versions = {"syn4seg-ray": own_version(), "python": platform.python_version()}
    for name in (*PACKAGES, *SMALL_PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def doctor() -> None:
    """Say what is installed, what is missing, and what to do about it."""
    if not diagnose():
        raise typer.Exit(1)


def diagnose() -> bool:
    """Print what is installed and what is missing with the remedy; return whether the main job can run."""
    from rich.console import Console

    console, installed = Console(highlight=False), versions()
    ok, missing = "[green]ok[/green]     ", "[red]missing[/red]"
    for name, version in installed.items():
        console.print(f"{ok} {name} {version}")
    absent = sorted({*PACKAGES, *SMALL_PACKAGES} - set(installed))
    for name in absent:
        console.print(f"{missing} {name}: pip install {name}")
    if absent:
        return False
    import torch

    from syn4seg.stages.setup import WEIGHTS, shipped_base

    gpus, healthy = torch.cuda.device_count(), True
    console.print(f"{ok} {os.cpu_count()} CPU cores, {gpus} GPUs" + ("" if gpus else " (the main job needs none)"))
    for path, title, needed in (
        (shipped_base(0), "base checkpoints", True),
        (WEIGHTS / "embedded-sam", "small SAM", True),
        (WEIGHTS / "embedded-sd3", "small Stable Diffusion 3", False),
    ):
        healthy &= path.exists() or not needed
        remedy = "reinstall the package, or build it in a checkout with python -m tools"
        console.print(f"{ok} {title}" if path.exists() else f"{missing} {title}: {remedy}")
    token = any(os.environ.get(key) for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    unset = "[yellow]note[/yellow]    HF_TOKEN is not set: needed only to download gated weights (Stable Diffusion 3.5)"
    console.print(f"{ok} HF_TOKEN is set" if token else unset)
    free = shutil.disk_usage(".").free / 2**30
    console.print(f"{ok if free > 2 else '[red]low[/red]    '} {free:.1f} GiB free here")
    return healthy
