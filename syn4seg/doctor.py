"""`syn4seg doctor`: which packages are installed, what is missing, and the remedy."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil

from rich.console import Console

PACKAGES = ("ray", "torch", "torchvision", "diffusers", "transformers", "segment-anything", "numpy", "pyarrow", "optuna")
SMALL_PACKAGES = ("scipy", "opencv-python-headless", "pillow", "safetensors", "pydantic", "pyyaml", "typer", "rich", "matplotlib")


def versions() -> dict[str, str]:
    """Versions of this project, of Python and of the packages that may change a result."""
    found = {"syn4seg-ray": "source", "python": platform.python_version()}
    for name in ("syn4seg-ray", *PACKAGES, *SMALL_PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def diagnose() -> bool:
    """Prints what is installed and what is missing with the remedy; returns whether the main job can run."""
    import os

    console, well = Console(highlight=False), True
    for name, version in versions().items():
        console.print(f"[green]ok[/green]      {name} {version}")
    for name in sorted({*PACKAGES, *SMALL_PACKAGES} - set(versions())):
        console.print(f"[red]missing[/red] {name}: pip install {name}")
        well = False
    if not well:
        return False
    import torch

    from syn4seg.stages.setup import shipped_base, weights_folder

    gpus = torch.cuda.device_count()
    console.print(
        f"[green]ok[/green]      {os.cpu_count()} CPU cores, {gpus} GPUs" + ("" if gpus else " (the main job needs none)")
    )
    for path, what in (
        (shipped_base(0), "base checkpoints"),
        (weights_folder() / "embedded-sam", "small SAM"),
        (weights_folder() / "embedded-sd3", "small Stable Diffusion 3"),
    ):
        there = path.exists()
        well &= there or "Diffusion" in what
        remedy = "reinstall the package, or build it with python -m syn4seg.models.build"
        console.print(f"[green]ok[/green]      {what}" if there else f"[red]missing[/red] {what}: {remedy}")
    token = any(os.environ.get(k) for k in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    unset = "[yellow]note[/yellow]    HF_TOKEN is not set: needed only to download gated weights (Stable Diffusion 3.5)"
    console.print("[green]ok[/green]      HF_TOKEN is set" if token else unset)
    free = shutil.disk_usage(".").free / 2**30
    console.print(f"{'[green]ok[/green]     ' if free > 2 else '[red]low[/red]    '} {free:.1f} GiB free here")
    return well
