"""The configuration: one frozen tree. Defaults here, then one short YAML file, then `section.key=value`; nothing else.

Every key but `name`, `layout` and the sections `placement` and `logging` is science: it may change a result, so it is part of
the fingerprint of the stages that depend on it. The docstring under a field is its documentation (`syn4seg config` prints them).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from syn4seg.data.protocols import deviations, preset
from syn4seg.sections import (
    Base,
    Data,
    Evaluation,
    Labeling,
    Logging,
    Novel,
    Placement,
    Prompts,
    Refinement,
    Section,
    Segmenter,
    SupportQuantile,
    Synthesis,
    Whole,
)

if TYPE_CHECKING:
    from syn4seg.files import AnyPath


class Config(Section):
    name: str = "embedded"
    """Name of the run; the default of --out is runs/NAME."""
    protocol: Literal["none", "diam", "pop"] = "none"
    """A published protocol: sets every key that makes numbers comparable; deviations from it are printed in every result."""
    seed: Whole = 0
    """Every random choice is a hash of this and a name."""
    layout: Literal["files", "sharded"] = "files"
    """How samples are kept on disk: `files`, a PNG per image and label, or `sharded`, Parquet files of about 512 MB with
    the same columns, for runs of more than some 100,000 images. Chosen when a run is begun."""
    data: Data = Data()
    prompts: Prompts = Prompts()
    synthesis: Synthesis = Synthesis()
    segmenter: Segmenter = Segmenter()
    base: Base = Base()
    labeling: Labeling = Labeling()
    refinement: Refinement = Refinement()
    novel: Novel = Novel()
    evaluation: Evaluation = Evaluation()
    placement: Placement = Placement()
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _shipped_base_fits(self) -> Config:
        if self.base.checkpoint == "shipped" and self.data.source != "embedded":
            raise ValueError(f"base.checkpoint is 'shipped', but data.source is {self.data.source!r}: checkpoints are "
                             "shipped for the embedded world only; set base.checkpoint=train, or a file")  # fmt: skip
        return self

    def deviations(self) -> list[str]:
        """What this configuration does otherwise than its `protocol`."""
        return deviations(self.protocol, self.data.source, self.science(), self.data.draws)

    def science(self) -> dict[str, Any]:
        """Everything that may change a result, as plain JSON values."""
        tree = self.model_dump(mode="json")
        del tree["name"], tree["layout"], tree["placement"], tree["logging"]
        del tree["data"]["draws"], tree["data"]["first_draw"]
        for key in ("timeout", "base_url", "key_variable"):  # where and how patiently a language model is asked
            del tree["prompts"][key]
        return tree


STAGE_KEYS = {
    "prompts": ("seed", "data.source", "data.root", "data.fold", "prompts", "synthesis.source", "synthesis.root",
                "synthesis.model", "synthesis.images_per_class", "synthesis.class_name_bank", "synthesis.batch"),
    "images": ("synthesis",),
    "base": ("seed", "data.source", "data.root", "data.fold", "data.train_images", "data.train_list", "data.masks",
             "data.support_reserve", "segmenter", "base"),
    "labels": ("data", "labeling", "refinement", "novel"),
    "scores": ("evaluation", "protocol"),
}  # fmt: skip
"""Keys that each stage reads itself; `fingerprint` adds those of the stages before it."""
UPSTREAM = {"prompts": (), "images": ("prompts",), "base": (), "labels": ("images", "base"), "scores": ("labels",)}


def fingerprint(config: Config, stage: str) -> str:
    """Hash (16 hex digits) of the science keys that the result of `stage` depends on, upstream stages included."""
    science = config.science()

    def pick(key: str) -> Any:
        value: Any = science
        for part in key.split("."):
            value = value[part]
        return value

    parts = {key: pick(key) for key in STAGE_KEYS[stage]}
    parts |= {up: fingerprint(config, up) for up in UPSTREAM[stage]}
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def config_digest(config: Config) -> str:
    """Hash (16 hex digits) of all science keys."""
    return hashlib.blake2b(json.dumps(config.science(), sort_keys=True).encode(), digest_size=8).hexdigest()


# -------------------------------------------------------------------------------------------------- loading
def load(path: AnyPath | None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The configuration of a YAML file and `section.key=value` overrides.

    Raises:
        ValueError: with one line per wrong key: the key, the value, what was expected, the remedy.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read(path)
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ValueError(f"override {text!r}: expected section.key=value, for example labeling.beta=0.3")
        _set(tree, key.strip(), _parse(key, value))
    _follow(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\n".join(explained(e) for e in error.errors())) from None


def _follow(tree: dict[str, Any]) -> None:
    """Puts the values of the tree's protocol under every key that is not given."""
    data = tree.get("data")
    source = data.get("source", "embedded") if isinstance(data, dict) else "embedded"
    protocol = tree.get("protocol", "none")
    if protocol not in ("diam", "pop"):
        return
    for key, value in preset(protocol, source).items():
        section, _, name = key.partition(".")
        given = tree.setdefault(section, {})
        if isinstance(given, dict):
            given.setdefault(name, value)


def _read(path: AnyPath) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"config {path}: no such file; expected a YAML file, or key=value overrides alone")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if isinstance(tree, dict) and tree.get("placement") == "auto":
        tree["placement"] = {"sizes": "auto"}
    if not isinstance(tree, dict):
        raise ValueError(f"config {path}: expected `section: {{key: value}}`, got {type(tree).__name__}")
    return tree


def _parse(key: str, value: str) -> Any:
    try:
        parsed = yaml.safe_load(value) if value.strip() else None
    except yaml.YAMLError:
        raise ValueError(f"{key}={value}: the value is not readable; quote it, for example {key}='\"text\"'") from None
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
            raise ValueError(f"override {key}: {section!r} is a value, not a section")
        tree = nested
    tree[last] = value


def keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> pydantic field, of the whole tree, in order."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= keys(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def explained(error: Any) -> str:
    """One line about what pydantic found: the key, the value, what was expected, the key's documentation."""
    key = ".".join(str(part) for part in error["loc"] if not (isinstance(part, str) and "[" in part))
    if error["type"] == "extra_forbidden":
        known = [*{k.partition(".")[0]: None for k in keys()}, *keys()]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        return (
            f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "") + " `syn4seg config` lists all keys"
        )
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    known = keys()
    base = next((key[:i] for i in range(len(key), 0, -1) if key[:i] in known), key)
    doc = f" ({' '.join(known[base].description.split())})" if base in known and known[base].description else ""
    return f"{base}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}{doc}"


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: old -> new" of two science trees."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def annotated(config: Config) -> str:
    """The tree as YAML, each key under its documentation; loading it gives `config` back."""
    lines: list[str] = []

    def walk(node: Section, indent: str) -> None:
        for name, field in type(node).model_fields.items():
            value = getattr(node, name)
            if field.description:
                lines.extend(f"{indent}# {line.strip()}" for line in field.description.strip().splitlines())
            if isinstance(value, Section) and not isinstance(value, SupportQuantile):
                lines.append(f"{indent}{name}:")
                walk(value, indent + "  ")
            else:
                plain = node.model_dump(mode="json", include={name})[name]
                text = yaml.safe_dump(plain, default_flow_style=True).strip().removesuffix("...").strip()
                lines.append(f"{indent}{name}: {text}")

    walk(config, "")
    return "\n".join(lines) + "\n"
