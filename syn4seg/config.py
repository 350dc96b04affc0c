"""The configuration: one frozen tree. Defaults here, then one short YAML file, then `section.key=value`; nothing else.

Every key but `name` and the section `placement` is science: it may change a result, so it is part of the fingerprint of
the stages that depend on it. The docstring under a field is its documentation (`syn4seg config` prints them).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A frozen part of the tree; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Data(Section):
    source: Literal["embedded", "folder"] = "embedded"
    """`embedded`: the drawn world, no files. `folder`: any data set in VOC layout under `data.root`."""
    root: Path | None = None
    """Folder of the data set: images/, masks/, train.txt, val.txt, classes.json."""
    fold: Whole = 0
    """Which fold's classes are novel."""
    shots: Count = 1
    """Annotated images per novel class (K)."""
    draws: Count = 1
    """How many support draws are labelled, trained and scored; results report their mean and spread."""
    first_draw: Whole = 0
    """Number of the first support draw; draws are named, so draw 3 is the same in every run."""
    train_images: Count | None = None
    """Use only the first N training images (embedded: how many exist; default 6000)."""
    val_images: Count | None = None
    """Use only the first N query images (embedded: how many exist; default 300)."""
    min_support_area: Share = 0.02
    """Least share of a support image that its class must cover."""
    base_in_support: Literal["background", "kept"] = "background"
    """Labels of base objects in support images: `background` as DIaM, or `kept` as POP."""
    only_one_novel: bool = False
    """Skip support candidates that show more than one novel class."""

    @model_validator(mode="after")
    def _root_is_given(self) -> Data:
        if self.source == "folder" and self.root is None:
            raise ValueError("data.root is empty, but data.source is 'folder': set data.root=FOLDER")
        return self


class Prompts(Section):
    agent: Literal["grammar"] = "grammar"
    """Who proposes prompts: `grammar` needs no language model."""
    bank_size: Count = 48
    """Prompts wanted per novel class."""
    lambda_prompt: Cosine = 0.97
    """A prompt is accepted iff its largest cosine to an accepted one is below this (HDIG)."""
    patience: Count = 400
    """Stop after this many candidates in a row without an acceptance."""


class Synthesis(Section):
    source: Literal["generate", "folder"] = "generate"
    """`generate`: from the prompt bank. `folder`: import images, one folder per class under `synthesis.root`."""
    root: Path | None = None
    """Folder of images to import: ROOT/CLASS/*.jpg|png."""
    model: str = "renderer"
    """`renderer`, `embedded-sd3`, or a folder or hub id in diffusers' Stable Diffusion 3 format."""
    images_per_class: Count = 48
    """Synthetic images per novel class and prompt bank; prompts are used in turn."""
    class_name_bank: bool = True
    """Also make images from the plain class-name prompt, for the ablation row `class_name_raw`."""
    batch: Count = 8
    """Images per generator batch. It is part of the plan because rounding depends on it."""
    steps: Count = 16
    """Denoising steps."""
    guidance: Annotated[float, Field(ge=0)] = 3.0
    """Classifier-free guidance scale; 1 or less switches it off."""
    size: Annotated[int, Field(ge=16, le=4096, multiple_of=16)] = 64
    """Side of an image in pixels."""

    @model_validator(mode="after")
    def _root_is_given(self) -> Synthesis:
        if self.source == "folder" and self.root is None:
            raise ValueError("synthesis.root is empty, but synthesis.source is 'folder': set synthesis.root=FOLDER")
        return self


class Segmenter(Section):
    backbone: str = "embedded"
    """`embedded`, `resnet50`, `resnet101`, a transformers AutoBackbone (folder or hub id), or `package.module:factory`."""
    weights: str | None = None
    """Weights of the backbone: a local file, `imagenet`, or none (start from random numbers)."""
    size: Annotated[int, Field(ge=16, le=4096)] = 64
    """Side in pixels of the square canvas to which an image's long side is brought."""
    channels: Count = 128
    """Feature channels D after the bottleneck."""
    ppm_bins: tuple[Count, ...] = (1, 2, 3, 6)
    """Grid sizes of the pyramid pooling module."""
    dropout: Share = 0.1
    """Dropout before the classifier while the base stage trains."""
    freeze_backbone: bool = False
    """Keep the backbone as loaded; its maps are then computed once per image."""


class Base(Section):
    checkpoint: Literal["shipped", "train"] = "shipped"
    """`shipped`: the packaged checkpoint of the embedded world's fold. `train`: train from scratch in this run."""
    epochs: Count = 5
    """Passes over the base training images."""
    batch: Count = 8
    """Images per step."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """`sgd` (momentum 0.9) is the field's choice for pretrained backbones; `adamw` starts from nothing."""
    lr: Annotated[float, Field(gt=0)] = 0.002
    """Learning rate of the backbone; polynomial decay of power 0.9."""
    head_factor: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the learning rate of everything behind the backbone (10 in the field's SGD recipe)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay (1e-4 in the field's SGD recipe)."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    background_weight: Annotated[float, Field(gt=0)] = 0.2
    """Factor on background pixels in the loss at the start, rising to 1; helps networks that start from nothing."""
    scale: tuple[float, float] = (0.75, 1.33)
    """Range of the random scale (0.5 to 2 in the field's recipe)."""
    blur: Share = 0.0
    """Chance of a Gaussian blur (0.5 in the field's recipe)."""
    crop: Count | None = None
    """Side of the random crop in pixels; the canvas's own size when empty."""


class SupportQuantile(Section):
    support_quantile: Share
    """lambda_keep of a class is this quantile of its held-out support regions' similarities."""


class Labeling(Section):
    lambda_keep: Cosine | SupportQuantile = 0.5
    """APF keeps a region iff its similarity to the class's global prototype is at least this."""
    min_region: Whole = 12
    """Regions with fewer pixels become free."""
    tau_base: Share = 0.6
    """Base predictions are kept where the segmenter's confidence is at least this."""
    tau_background: Share = 0.0
    """The same for background predictions (0 keeps them all)."""
    beta: Share = 0.5
    """Adaptive prototype = beta * global + (1 - beta) * local (APR)."""
    tau: Annotated[float, Field(gt=0)] = 0.1
    """Temperature of the softmax over cosines."""
    theta: Share = 0.6
    """A free pixel is relabeled iff its confidence is at least this; otherwise it stays unlabeled."""
    min_target: Share = 0.005
    """Reject an image whose target class covers less than this share."""
    max_target: Share = 0.95
    """Reject an image whose target class covers more than this share."""


class Refinement(Section):
    model: str = "embedded-sam"
    """`embedded-sam`, or a checkpoint of segment-anything (ViT-B, L or H)."""
    band_width: Whole = 3
    """Half-width in pixels of the band around changes of label in which SAM may edit."""
    margin: Whole = 1
    """Pixels added around a component's box before it becomes SAM's hint."""
    min_agreement: Share = 0.5
    """SAM masks whose IoU with their component is lower are ignored and counted."""


class Novel(Section):
    steps: Count = 300
    """Optimiser steps of the novel stage."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate, relative to the root mean square of the base classifier's weights."""
    support_batch: Count = 4
    """Support images per step."""
    synthetic_batch: Count = 8
    """Synthetic images per step (0 synthetic samples in the row `support_only`)."""
    replay_images: Whole = 200
    """Base training images replayed with their base labels; stated in every result."""
    replay_batch: Whole = 4
    """Replayed images per step."""
    synthetic_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the synthetic loss."""
    confidence_weight: Share = 0.0
    """How much the registered segmenter's confidence c weighs a synthetic pixel: 1 - this * (1 - c)."""
    background_weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor on pixels of support images labelled background in the cross-entropy."""
    distillation: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distillation to the base classifier on pixels that are not novel."""


class Pool(Section):
    size: Count = 1
    """Actors of this stage."""
    batch: Count = 16
    """Rows per call."""
    cpus: Annotated[float, Field(ge=0)] = 0.25
    """Logical CPUs per actor."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per actor, whole or a fraction."""


class Placement(Section):
    runner: Literal["ray", "inline"] = "ray"
    """`ray`: streamed through actors. `inline`: the same classes chained in one process; the same bytes."""
    address: str = "local"
    """Ray cluster: `local` starts one on this machine; `auto` or HOST:PORT joins a running one."""
    synthesis: Pool = Pool()
    """Generator actors; `batch` is rounded up to whole generator batches."""
    labeling: Pool = Pool()
    """Feature extractor actors (draft, APF, APR)."""
    refinement: Pool = Pool()
    """SAM actors (SABR)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU for pools with `gpus` above 0, else the CPU; training takes a GPU if there is one."""
    max_quarantined: Share = 0.5
    """Stop when more than this share of the samples is quarantined by faults."""


class Config(Section):
    name: str = "embedded"
    """Name of the run; the default of --out is runs/NAME."""
    seed: Whole = 0
    """Every random choice is a hash of this and a name."""
    data: Data = Data()
    prompts: Prompts = Prompts()
    synthesis: Synthesis = Synthesis()
    segmenter: Segmenter = Segmenter()
    base: Base = Base()
    labeling: Labeling = Labeling()
    refinement: Refinement = Refinement()
    novel: Novel = Novel()
    placement: Placement = Placement()

    @model_validator(mode="after")
    def _shipped_base_fits(self) -> Config:
        if self.base.checkpoint == "shipped" and self.data.source != "embedded":
            raise ValueError(f"base.checkpoint is 'shipped', but data.source is {self.data.source!r}: checkpoints are "
                             "shipped for the embedded world only; set base.checkpoint=train")  # fmt: skip
        return self

    def science(self) -> dict[str, Any]:
        """Everything that may change a result, as plain JSON values."""
        tree = self.model_dump(mode="json")
        del tree["name"], tree["placement"]
        del tree["data"]["draws"], tree["data"]["first_draw"]
        return tree


STAGE_KEYS = {
    "prompts": ("seed", "data.source", "data.root", "data.fold", "prompts", "synthesis.source", "synthesis.root",
                "synthesis.model", "synthesis.images_per_class", "synthesis.class_name_bank", "synthesis.batch"),
    "images": ("synthesis",),
    "base": ("seed", "data.source", "data.root", "data.fold", "data.train_images", "segmenter", "base"),
    "labels": ("data", "labeling", "refinement", "novel"),
}  # fmt: skip
"""Keys that each stage reads itself; `fingerprint` adds those of the stages before it."""
UPSTREAM = {"prompts": (), "images": ("prompts",), "base": (), "labels": ("images", "base")}


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
def load(path: Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
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
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\n".join(_explain(e) for e in error.errors())) from None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"config {path}: no such file; expected a YAML file, or key=value overrides alone")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
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


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"] if not (isinstance(part, str) and "[" in part))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, list(keys()), n=1, cutoff=0.5)
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
