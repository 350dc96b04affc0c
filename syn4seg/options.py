"""What the verbs of the command line share: the options that name a configuration and a run, and how they are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from syn4seg.errors import UserError, did_you_mean
from syn4seg.trust import trust

if TYPE_CHECKING:
    from syn4seg.config.tree import Config
    from syn4seg.store.rundir import RunDir

CONFIGS = Path(__file__).parent / "configs"
"""Folder of the packaged configurations; their studies are in `studies`."""
_LOUDNESS = [0]


def loudness() -> int:
    """Return -1 where the command was given `-q`, 1 where `-v`, else 0."""
    return _LOUDNESS[0]


def set_loudness(level: int) -> None:
    """Keep what `loudness` returns, for this process."""
    _LOUDNESS[0] = level


def say_first(text: str) -> None:
    """Say at a terminal what the next seconds go into; called before anything heavy is imported."""
    if loudness() >= 0 and sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def packaged(folder: str = "") -> list[str]:
    """Return the names of the packaged configurations, or with "studies" those of the studies."""
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


def complete_config(incomplete: str) -> list[str]:
    """Return the packaged configurations that a word may become, for the completion of a shell."""
    return [name for name in packaged() if name.startswith(incomplete)]


def complete_study(incomplete: str) -> list[str]:
    """Return the packaged studies that a word may become, for the completion of a shell."""
    return [name for name in packaged("studies") if name.startswith(incomplete)]


Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE ...]",
        show_default=False,
        autocompletion=complete_config,
        help="A YAML file, a run, or embedded, pascal5i, coco20i...; then keys: data.fold=1. No name: each key's default.",
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        help="Where the run is kept: a directory, s3://BUCKET/RUN or gs://BUCKET/RUN; default runs/NAME.", show_default=False
    ),
]
Reuse = Annotated[str | None, typer.Option(help="Earlier run whose fitting stages (prompts, images, base) are taken over.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run the code that the stored configuration names (segmenter.backbone).")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Directory or URL of a run.")]


def read_config(settings: list[str] | None, out: str | None = None, trusted: bool = False) -> Config:
    """Return the configuration that the words of a command describe.

    Args:
        settings: a YAML file, a run or the name of a packaged configuration, then keys; the first may be absent.
        out: a run directory, whose configuration is taken where `settings` names none.
        trusted: allow the code that a stored configuration names (`syn4seg.trust`).

    Raises:
        UserError: there is no such file or run, or it does not describe a configuration.
    """
    from syn4seg.config.loading import load
    from syn4seg.store.files import as_path, exists

    words, path, stored = list(settings or []), None, False
    if words and "=" not in words[0]:
        path = as_path(words.pop(0))
        stored = (path.parent / "inputs.json").is_file()
        if (path / "config.yaml").is_file():
            path, stored = path / "config.yaml", True
        elif not path.is_file():
            names = packaged()
            if str(path) not in names:
                raise UserError(
                    f"config {path}: no such file or run; expected a YAML file, a run, or {', '.join(names)}"
                    f"{did_you_mean(str(path), names)}"
                )
            path = CONFIGS / f"{path}.yaml"
    elif out is not None and exists(reach_run(out).config):
        path, stored = reach_run(out).config, True
    config = load(path, words)
    for key, name in (("segmenter.backbone", config.segmenter.backbone), ("labeling.features", config.labeling.features)):
        if ":" in name and (trusted or not stored or any(word.startswith(f"{key}=") for word in words)):
            trust(name)
    return config


def reach_run(address: str) -> RunDir:
    """Return the run directory at a path or URL, which may not exist yet.

    Raises:
        UserError: the address cannot be reached.
    """
    from syn4seg.store.files import check_reachable
    from syn4seg.store.rundir import RunDir

    run = RunDir(address)
    check_reachable(run.root)
    return run
