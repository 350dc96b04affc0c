"""What the verbs of the command line share: the options that name a configuration and a run, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from syn4seg.errors import UserError
from syn4seg.trust import trust

if TYPE_CHECKING:
    from syn4seg.config.tree import Config
    from syn4seg.store.rundir import RunDir

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE ...]",
        show_default=False,
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
        path, packaged = as_path(words.pop(0)), Path(__file__).parent / "configs"
        stored = (path.parent / "inputs.json").is_file()
        if (path / "config.yaml").is_file():
            path, stored = path / "config.yaml", True
        elif not path.is_file():
            names = sorted(p.stem for p in packaged.glob("*.yaml"))
            if str(path) not in names:
                raise UserError(f"config {path}: no such file or run; expected a YAML file, a run, or {', '.join(names)}")
            path = packaged / f"{path}.yaml"
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
