"""The forms of the JSON files of a run, in one place: what is read back is checked before anybody relies on it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from syn4seg.errors import DamagedError
from syn4seg.store.files import read_json

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath


class _Form(BaseModel):
    """Keys that must be there, with their types; others may be there too."""

    model_config = ConfigDict(strict=True, extra="allow")


class Spread(_Form):
    """Mean and standard deviation of a figure over draws; null where there is none."""

    mean: float | None
    std: float | None
    n: int


class DrawCounts(_Form):
    """What became of the samples of a draw."""

    accepted: int
    rejected: dict[str, int]


class Funnel(_Form):
    """What became of the samples of a run."""

    planned: int
    draws: dict[str, DrawCounts]


class BaselineResult(_Form):
    """A baseline beside ours."""

    metrics: dict[str, Spread]


class Results(_Form):
    """results.json."""

    rows: dict[str, dict[str, Spread]]
    per_class: dict[str, dict[str, Spread]]
    baselines: dict[str, BaselineResult]
    classes: list[str]
    config_digest: str
    protocol: dict[str, Any]
    funnel: Funnel


class ClassNames(_Form):
    """results.json, as far as the names of the classes go."""

    classes: list[str]


class Provenance(_Form):
    """provenance.json."""

    versions: dict[str, str | None]
    fingerprints: dict[str, str]


class BaseFacts(_Form):
    """checkpoints/base.json."""

    origin: str
    images: list[str] | None


class SupportFacts(_Form):
    """draws/K/support.json."""

    support: dict[str, list[str]]
    replayed: list[str]
    base_prototypes_from: list[str]


Inputs = dict[str, str]
"""inputs.json."""
Counts = dict[str, int]
"""requests/ID.json."""
Names = list[str]
"""draws/K/queries.json."""
Facts = dict[str, Any]
"""generators/HASH.json, a note in quarantined/, export.json."""


def read_checked(path: AnyPath, form: Any) -> Any:
    """Return the value of a JSON file of the given form, as plain values.

    Raises:
        FileNotFoundError: it does not exist.
        DamagedError: it is no JSON, or of another form.
    """
    value = read_json(path)
    try:
        _adapter(form).validate_python(value, strict=True)
    except (ValidationError, RecursionError) as error:
        where = "too deep" if isinstance(error, RecursionError) else _first(error)
        raise DamagedError(f"{path}: {where}; put the old file back, or delete it and run again") from None
    return value


@functools.cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def _first(error: ValidationError) -> str:
    facts = error.errors()[0]
    place = ".".join(str(part) for part in facts["loc"]) or "the file"
    message = facts["msg"][:1].lower() + facts["msg"][1:]
    return f"{place[:100]}: {message[:200]}"
