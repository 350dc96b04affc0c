"""Fingerprints: a hash of everything that the result of a stage depends on, derived from the sections of the configuration.

A stage of a run (prompts, images, base, labels, scores) depends on whole sections, minus a short list of keys that it does not
read. A key that is added to a section counts from then on; nobody has to list it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from syn4seg.config.tree import OF_SUPPORT, Config

UPSTREAM = {"prompts": (), "images": ("prompts",), "base": (), "labels": ("images", "base"), "scores": ("labels",)}
"""Stage -> the stages whose results it reads."""
SECTIONS = {
    "prompts": ("seed", "data", "prompts", "synthesis"),
    "images": ("synthesis",),
    "base": ("seed", "data", "segmenter", "base"),
    "labels": ("data", "synthesis", "labeling", "refinement", "novel"),
    "scores": ("joint", "evaluation", "protocol"),
}
"""Stage -> the sections and top-level keys that it reads itself."""
SUPPORT_KEYS = (
    "data.shots",
    "data.val_images",
    "data.support_from",
    "data.support_draw",
    "data.min_support_area",
    "data.min_support_pixels",
    "data.base_in_support",
    "data.only_one_novel",
    "data.first_draw",
)
"""What is drawn and scored; prompts and base training see neither support nor query images."""
CHECKING = ("synthesis.check", "synthesis.check_margin")
"""Which images are rejected, which labels read: an image itself stays what it is."""
NOT_READ = {
    "prompts": {
        *SUPPORT_KEYS,
        *(
            "data.train_list",
            "data.masks",
            "data.exif",
            "data.train_images",
            "data.support_reserve",
        ),  # the plan needs class names alone
        *("synthesis.steps", "synthesis.guidance", "synthesis.size", "synthesis.step_cache", "synthesis.request_size"),  # of images
        *(*CHECKING, *OF_SUPPORT),
        *("synthesis.compile", "synthesis.attention", "synthesis.vae_slicing", "synthesis.weights"),
    },
    "images": set(CHECKING),
    "base": set(SUPPORT_KEYS),
}
"""Stage -> keys of its sections that it does not read."""
FROM_SUPPORT = ("seed", "data")
"""What the stage images reads too where images are made from support images (`synthesis.support`)."""


def dependencies(config: Config, stage: str) -> dict[str, Any]:
    """Return the keys that a stage reads itself, with their values as plain JSON."""
    values: dict[str, Any] = {}
    science = config.science()
    drawn = FROM_SUPPORT if stage == "images" and config.synthesis.support != "none" else ()
    for section in (*SECTIONS[stage], *drawn):
        value = science[section]
        values |= {f"{section}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {section: value}
    return {key: value for key, value in values.items() if key not in NOT_READ.get(stage, ())}


def fingerprint(config: Config, stage: str) -> str:
    """Return a hash (16 hex digits) of every key that the result of `stage` depends on, upstream stages included."""
    parts = dependencies(config, stage) | {up: fingerprint(config, up) for up in UPSTREAM[stage]}
    return _hash(json.dumps(parts, sort_keys=True).encode())


def config_digest(config: Config) -> str:
    """Return a hash (16 hex digits) of all science keys."""
    return _hash(json.dumps(config.science(), sort_keys=True).encode())


def section_values(section: Any, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Return the keys and values of one section as plain JSON, for a key of a cache.

    Args:
        section: such as `config.labeling`.
        without: keys that do not count.

    Raises:
        AssertionError: a name in `without` is no key of the section, so the list is stale.
    """
    values = section.model_dump(mode="json")
    assert set(without) <= set(values), set(without) - set(values)
    return {key: value for key, value in values.items() if key not in set(without)}


def source_digest(*modules: str) -> str:
    """Return a hash (16 hex digits) of the source code of modules and packages, so that an entry of a cache ends with its code.

    Args:
        modules: dotted names; a package stands for all modules in it. They are found without being imported. Comments,
            docstrings and formatting do not count.
    """
    return _hash("".join(_source_of(module) for module in modules).encode())


@functools.cache
def _source_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"there is no module {module}"
    path = Path(spec.origin)
    files: Sequence[Path] = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return "".join(f"{file.name}\x1f{_hash(_code_of(file).encode())}\x1e" for file in files)


def _code_of(file: Path) -> str:
    """Return the syntax tree of a file as text, without docstrings."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
