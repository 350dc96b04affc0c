"""Code that a configuration names (`segmenter.backbone=package.module:factory`): run only if the person named it.

Named is what stands on this command line or in a file that the person gave. A run directory is data: what its config.yaml or the
header of a checkpoint names is refused without `--trust`. The processes that a command starts inherit its decision.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from syn4seg.errors import UserError

VARIABLE = "SYN4SEG_TRUSTED_CODE"
"""Environment variable that holds the trusted names, separated by commas."""


def trust(name: str) -> None:
    """Allow the code `package.module:attribute` in this process and in those that it starts."""
    names = {*filter(None, os.environ.get(VARIABLE, "").split(",")), name}
    os.environ[VARIABLE] = ",".join(sorted(names))


def check_trusted(name: str) -> None:
    """Check that code may be run.

    Raises:
        UserError: nobody has named it.
    """
    if name not in os.environ.get(VARIABLE, "").split(","):
        raise UserError(
            f"segmenter.backbone={name}: a stored file names this code, and a run is data, never code; if you know it and want it "
            f"to run, add --trust, or name it yourself: segmenter.backbone={name}, or labeling.features (from Python: "
            "`syn4seg.trust.trust`)"
        )


def import_trusted(name: str) -> Any:
    """Return the attribute of `package.module:attribute`; its module is also looked for in the current directory, last of all.

    Raises:
        UserError: nobody has named it.
        ImportError, AttributeError: there is no such module or attribute.
    """
    check_trusted(name)
    search_current_folder()
    package, _, attribute = name.partition(":")
    return getattr(importlib.import_module(package), attribute)


def search_current_folder() -> None:
    """Let imports look into the current directory after every other place, so that no file in it stands for a package."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
