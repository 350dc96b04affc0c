"""Syn4Seg: generalized few-shot segmentation that makes up its missing data. This package is the method, free of Ray.

The names of `__all__` are imported at their first use, so `import syn4seg` costs nothing; `syn4seg.library` has the rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syn4seg.intake.making import init
    from syn4seg.library.labels import filter_regions, refine_boundary, relabel
    from syn4seg.library.prompts import PromptBank
    from syn4seg.library.runs import load_run
    from syn4seg.library.scores import evaluate
    from syn4seg.report.picture import show
    from syn4seg.session import run, sweep
    from syn4seg.trained.model import load

__all__ = [
    "PromptBank",
    "evaluate",
    "filter_regions",
    "init",
    "load",
    "load_run",
    "refine_boundary",
    "relabel",
    "run",
    "show",
    "sweep",
]

_MODULES = {
    "PromptBank": "library.prompts",
    "evaluate": "library.scores",
    "init": "intake.making",
    "load": "trained.model",
    "load_run": "library.runs",
    "run": "session",
    "show": "report.picture",
    "sweep": "session",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'library.labels')}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
