"""The class table of a folder (`classes.json`, `classes.yaml`): names, ids and folds, validated and never taken on trust.

    {"classes": ["road", "building"], "folds_novel": {"fold0": ["road"], "fold1": ["building"]}}

`classes` may also be an object, name -> id or id -> name, with the ids 1..N. A background at id 0, as other tools list it, is
no class of its own. A fold is found by its name or by the number in its name; a list of folds is numbered from 0.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syn4seg.config.yaml_text import MAX_BYTES, decode_text, parse_yaml
from syn4seg.errors import UserError
from syn4seg.schema import UNLABELED

EXPECTED = '{"classes": [names], "folds_novel": {"fold0": [names], ...}}'
EXPECTED_NEW = '{"classes": [names of the new classes]}'
ALL = "all"
"""Name of the fold of a table without folds: every class is novel."""
LONGEST = 200
"""Characters of the longest class name."""
_BACKGROUND = {"background", "bg"}
_RESERVED = _BACKGROUND | {"ignore", "ignored", "unlabeled", "unlabelled", "void", "255"}


@dataclass(frozen=True)
class ClassTable:
    """Names by dataset id (`names[id - 1]`), and per fold its name and the ascending ids of its novel classes."""

    names: tuple[str, ...]
    fold_names: tuple[str, ...]
    folds: tuple[tuple[int, ...], ...]


def read_text(path: Path) -> str:
    """Return the text of a list or a table: UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one.

    Raises:
        UserError: it is no regular file, too large, or of another encoding; the file is named.
    """
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: expected a text file of at most {MAX_BYTES:,} bytes")
    try:
        return decode_text(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {error}") from None


def read_class_table(path: Path, *, all_new: bool = False) -> ClassTable:
    """Read and validate a class table.

    Args:
        all_new: it needs no folds: without, the one fold `all` holds every class (an extension: base classes are a model's).

    Raises:
        UserError: not readable, or of another form; the file, the value and the form expected are named.
    """
    text = read_text(path)
    try:
        table = json.loads(text, object_pairs_hook=_without_repeats) if path.suffix == ".json" else parse_yaml(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a class table ({' '.join(str(error).split())[:200]}); expected {EXPECTED}") from None
    needed = {"classes"} if all_new else {"classes", "folds_novel"}
    if not isinstance(table, dict) or not needed <= table.keys():
        raise UserError(f"{path} is not a class table ({_show(table)}); expected {EXPECTED_NEW if all_new else EXPECTED}")
    names = _names(path, table["classes"])
    if "folds_novel" not in table:
        return ClassTable(names, (ALL,), (tuple(range(1, 1 + len(names))),))
    keys, folds = _folds(path, table["folds_novel"])
    ids = {name: k for k, name in enumerate(names, 1)}
    for key, fold in zip(keys, folds, strict=True):
        unknown = [n for n in fold if n not in ids]
        if unknown or not fold or len(set(fold)) != len(fold) or len(fold) == len(names):
            raise UserError(
                f"{path}: {key!r} of 'folds_novel' is {_show(fold)}; expected different names out of 'classes', "
                f"neither none nor all of them{f' ({unknown[0]!r} is unknown)' if unknown else ''}"
            )
    return ClassTable(names, keys, tuple(tuple(sorted(ids[n] for n in fold)) for fold in folds))


def fold_number(name: str) -> int | None:
    """Return the number that a fold's name ends with: 2 for "fold2", "fold_02" and "2"; None if there is none."""
    found = re.search(r"(\d{1,9})\s*$", name)
    return int(found[1]) if found else None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return dict(pairs)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _names(path: Path, classes: Any) -> tuple[str, ...]:
    """Return the names by id, from a list or from an object with ids."""
    if isinstance(classes, dict):
        classes = _ordered(path, classes)
    if not isinstance(classes, list):
        raise UserError(f"{path}: 'classes' is {_show(classes)}; expected a list of names, or an object of names and ids 1..N")
    for name in classes:
        if not isinstance(name, str):
            raise UserError(f"{path}: 'classes' holds {_show(name)}, which is no text; expected names, in quotes where needed")
    names = list(classes)
    while names and _plain(names[0]) == "ignore" and len(names) > 1 and _plain(names[1]) in _BACKGROUND:
        names = names[1:]  # labelme's __ignore__ stands before its _background_
    if names and _plain(names[0]) in _BACKGROUND:
        names = names[1:]  # other tools list the background at index 0, as masks have it
    for number, name in enumerate(names, 1):
        if not 0 < len(name) <= LONGEST or name != name.strip() or not name.isprintable():
            raise UserError(f"{path}: the class name {_show(name)} is not usable; expected 1 to {LONGEST} printable characters")
        if _plain(name) in _RESERVED:
            raise UserError(
                f"{path}: 'classes' lists {name!r} as class {number}; background is id 0, unlabeled pixels are 255, neither is a "
                "class: list the classes alone (a background may stand first), or give the class another name"
            )
    if not 0 < len(names) < UNLABELED:
        raise UserError(f"{path}: 'classes' has {len(names)} entries; expected 1..254 different names")
    known: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if (same := known.get(key)) is not None:
            why = "stands there twice" if same == name else f"and {same!r} differ only in case or accents' encoding"
            raise UserError(f"{path}: the class name {name!r} {why}; expected 1..254 different names")
        known[key] = name
    return tuple(names)


def _plain(name: str) -> str:
    return name.strip().strip("_").casefold()


def _ordered(path: Path, classes: dict[Any, Any]) -> list[Any]:
    """Return the names in the order of their ids, of an object name -> id or id -> name; id 0 must be the background."""
    pairs = []
    for key, value in classes.items():
        if isinstance(value, str) and ((isinstance(key, int) and not isinstance(key, bool)) or re.fullmatch(r"\d{1,3}", str(key))):
            pairs.append((int(key), value))
        elif isinstance(key, str) and isinstance(value, int) and not isinstance(value, bool):
            pairs.append((value, key))
        else:
            raise UserError(
                f"{path}: 'classes' has {_show(key)}: {_show(value)}; expected names with whole numbers as ids, or ids with names"
            )
    ids = [(number, name) for number, name in sorted(pairs) if not (number == UNLABELED and _plain(name) in _RESERVED)]
    ids = [(number, name) for number, name in ids if not (number == 0 and _plain(name) in _BACKGROUND)]
    if [number for number, _ in ids] != list(range(1, 1 + len(ids))):
        raise UserError(
            f"{path}: 'classes' has the ids {_show([number for number, _ in ids])}; expected 1..{len(ids)} without a gap (0 for "
            "the background alone): renumber them, and the masks"
        )
    return [name for _, name in ids]


def _folds(path: Path, folds: Any) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the name and the class names of every fold."""
    if isinstance(folds, list):
        folds = {f"fold{i}": fold for i, fold in enumerate(folds)}
    if not isinstance(folds, dict) or not folds:
        raise UserError(f"{path}: 'folds_novel' is {_show(folds)}; expected at least one list of novel class names")
    for name, fold in folds.items():
        if not isinstance(fold, list) or not all(isinstance(n, str) for n in fold):
            raise UserError(f"{path}: {name!r} of 'folds_novel' is {_show(fold)}; expected a list of names out of 'classes'")
    names = tuple(str(name) for name in folds)
    numbers = [n for n in map(fold_number, names) if n is not None]
    if len(set(numbers)) < len(numbers) or len(set(names)) < len(names):
        raise UserError(f"{path}: 'folds_novel' has two folds of one number ({', '.join(names)}); number them 0, 1, 2, ...")
    return names, list(folds.values())
