"""The configuration: one frozen tree. Defaults here, then one short YAML file, then `section.key=value`; nothing else.

Every key but `name`, `layout` and the sections `placement` and `logging` is science: it may change a result, so it is part of
the fingerprint of the stages that depend on it. The docstring under a field is its documentation (`syn4seg config` prints them).
"""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import BaseModel, model_validator

from syn4seg.config.evaluation import EvaluationConfig
from syn4seg.config.images import PromptsConfig, SynthesisConfig
from syn4seg.config.learning import JointConfig, NovelConfig
from syn4seg.config.placement import LoggingConfig, PlacementConfig
from syn4seg.config.protocols import deviations
from syn4seg.config.sections import (
    BaseConfig,
    DataConfig,
    LabelingConfig,
    RefinementConfig,
    Section,
    SegmenterConfig,
    SupportQuantile,
    Whole,
)

NOT_SCIENCE = (
    *("name", "layout", "placement", "logging"),  # where a run is kept, where it runs, who watches
    *("data.draws", "data.first_draw"),  # draws are named: more of them change none
    *("prompts.timeout", "prompts.base_url", "prompts.key_variable"),  # where and how patiently a language model is asked
    *("synthesis.timeout", "synthesis.base_url", "synthesis.key_variable", "synthesis.max_images"),  # and a service for images
)
"""Keys and sections that cannot change a result."""
OF_SUPPORT = ("synthesis.support", "synthesis.support_strength")
"""Keys that count where images are made from support images; then `data.first_draw` counts too, since it says from which."""


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
    data: DataConfig = DataConfig()
    prompts: PromptsConfig = PromptsConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    base: BaseConfig = BaseConfig()
    labeling: LabelingConfig = LabelingConfig()
    refinement: RefinementConfig = RefinementConfig()
    novel: NovelConfig = NovelConfig()
    joint: JointConfig = JointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    placement: PlacementConfig = PlacementConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _shipped_base_fits(self) -> Config:
        if self.base.checkpoint == "shipped" and self.data.source != "embedded":
            raise ValueError(
                f"base.checkpoint is 'shipped', but data.source is {self.data.source!r}: checkpoints are "
                "shipped for the embedded world only; set base.checkpoint=train, or a file"
            )
        if self.data.fold == "all" and not self.base.is_model:
            raise ValueError("data.fold=all: then no class is base; use `syn4seg extend MODEL --data FOLDER`, or choose a fold")
        if self.base.checkpoint == "shipped" and not isinstance(self.data.fold, int):
            raise ValueError(f"data.fold={self.data.fold}: the folds of the embedded world have numbers; set data.fold=0 to 3")
        return self

    @model_validator(mode="after")
    def _images_belong_to_one_draw(self) -> Config:
        if self.synthesis.support != "none" and self.data.draws != 1:
            raise ValueError(
                f"data.draws is {self.data.draws}, but synthesis.support is {self.synthesis.support!r}: the images of a run are "
                "shared by its draws, and these would show the support images of one; expected data.draws=1: make a run for each "
                "draw (data.first_draw=0, 1, ...), or set synthesis.support=none"
            )
        return self

    @property
    def network(self) -> str:
        """What the segmenter is built on, for records: the network that `base.checkpoint` names, else `segmenter.backbone`."""
        return ":".join(self.base.checkpoint.split(":")[:2]) if self.base.is_network else self.segmenter.backbone

    @property
    def base_images_used(self) -> tuple[int, int, int]:
        """Base images that are replayed, that make prototypes, and in a step of the joint stage; 0 with `novel.base_data=none`."""
        if self.novel.base_data == "none":
            return 0, 0, 0
        replayed = self.novel.replay_images
        in_step = self.joint.base_batch if self.novel.base_data == "labelled" or replayed else 0
        return replayed, self.labeling.base_prototype_images, in_step

    def deviations(self) -> list[str]:
        """Return a line for each key in which this configuration deviates from its `protocol`."""
        return deviations(self.protocol, self.data.source, self.science(), self.data.draws)

    def science(self) -> dict[str, Any]:
        """Return everything that may change a result, as plain JSON values."""
        tree = self.model_dump(mode="json")
        supported = self.synthesis.support != "none"
        for key in {*NOT_SCIENCE} - {"data.first_draw"} if supported else (*NOT_SCIENCE, *OF_SUPPORT):
            section, _, name = key.rpartition(".")
            del (tree[section] if section else tree)[name]
        return tree


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested dict by dotted key."""
    values = {}
    for key, value in tree.items():
        values |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Return a table dotted key -> pydantic field, of the whole tree, in order."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            fields |= keys(kind, f"{prefix}{name}.")
        else:
            fields[prefix + name] = field
    return fields


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return lines "key: old -> new" of two science trees."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def annotated(config: Config) -> str:
    """Return the tree as YAML, each key under its documentation; loading it gives `config` back."""
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
                value = node.model_dump(mode="json", include={name})[name]
                text = yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
                lines.append(f"{indent}{name}: {text}")

    walk(config, "")
    return "\n".join(lines) + "\n"
