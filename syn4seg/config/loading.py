"""Load a configuration: a YAML file, then `section.key=value` overrides; errors name the key and the remedy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from syn4seg.config.protocols import preset
from syn4seg.config.tree import Config, keys
from syn4seg.config.yaml_text import MAX_BYTES, decode_text, parse_yaml
from syn4seg.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from upath import UPath

    AnyPath = Path | UPath


def load(path: AnyPath | None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Return the configuration of a YAML file and `section.key=value` overrides.

    Raises:
        UserError: with one line per wrong key: the key, the value, what was expected, the remedy.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read(path)
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"override {text!r}: expected section.key=value, for example labeling.beta=0.3")
        _set(tree, key.strip(), _parse(key, value))
    _apply_protocol(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(explained(e) for e in error.errors())) from None


def _apply_protocol(tree: dict[str, Any]) -> None:
    """Put the values of the tree's protocol under every key that is not set."""
    data = tree.get("data")
    source = data.get("source", "embedded") if isinstance(data, dict) else "embedded"
    protocol = tree.get("protocol", "none")
    if protocol not in ("diam", "pop"):
        return
    for key, value in preset(protocol, source).items():
        section, _, name = key.partition(".")
        values = tree.setdefault(section, {})
        if isinstance(values, dict):
            values.setdefault(name, value)


def _read(path: AnyPath) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"config {path}: no such file; expected a YAML file, or key=value overrides alone")
    try:
        tree = parse_yaml(decode_text(path.read_bytes() if path.stat().st_size <= MAX_BYTES else b"\x00"))
    except (ValueError, OSError) as error:
        raise UserError(f"config {path}: not readable as YAML: {error}") from None
    if tree is None:
        return {}
    if isinstance(tree, dict) and tree.get("placement") == "auto":
        tree["placement"] = {"sizes": "auto"}
    if not isinstance(tree, dict):
        raise UserError(f"config {path}: expected `section: {{key: value}}`, got {type(tree).__name__}")
    return tree


def _parse(key: str, value: str) -> Any:
    try:
        parsed = parse_yaml(value) if value.strip() else None
    except ValueError as error:
        shown = value if len(value) <= 60 else f"{value[:57]}..."
        raise UserError(f"{key}={shown}: the value is not readable ({error}); quote it, for example {key}='\"text\"'") from None
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(parsed)
        except ValueError:
            return parsed
    return parsed


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    if key == "placement" and value == "auto":
        key = "placement.sizes"
    *sections, last = key.split(".")
    for section in sections:
        nested = tree.setdefault(section, {})
        if not isinstance(nested, dict):
            raise UserError(f"override {key}: {section!r} is a value, not a section")
        tree = nested
    tree[last] = value


def explained(error: Any) -> str:
    """Return one line about an error of pydantic: the key, the value, what was expected, the key's documentation."""
    key = ".".join(str(part) for part in error["loc"] if not (isinstance(part, str) and "[" in part))
    if error["type"] == "extra_forbidden":
        known = [*{k.partition(".")[0]: None for k in keys()}, *keys()]
        return f"{key}: unknown key{did_you_mean(key, known)} `syn4seg config` lists all keys"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    known = keys()
    base = next((key[:i] for i in range(len(key), 0, -1) if key[:i] in known), key)
    doc = f" ({' '.join(known[base].description.split())})" if base in known and known[base].description else ""
    near = did_you_mean(error["input"], _choices(error)) if isinstance(error["input"], str) else ""
    shown = repr(error["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{base}={shown}: {error['msg'][0].lower()}{error['msg'][1:]}{near}{doc}"


def _choices(error: Any) -> list[str]:
    """Return the texts that a key allows, where it allows some texts only."""
    return re.findall(r"'([^']*)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else []
