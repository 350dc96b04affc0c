"""A study: which keys a sweep changes, over which values, what it maximises and on which images; a short YAML file.

space:
  labeling.beta: {low: 0.0, high: 1.0}            # numbers; whole ones if both ends are
  synthesis.guidance: {low: 1, high: 8, log: true}
  data.shots: [1, 5, 10]                          # choices
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from syn4seg.config.loading import explained
from syn4seg.config.sections import Count, Section, Whole
from syn4seg.config.tree import Config, keys
from syn4seg.config.yaml_text import decode_text, parse_yaml
from syn4seg.errors import UserError, did_you_mean
from syn4seg.stages.results import METRICS

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TEST = "test."
"""Prefix of an objective that is measured on the test list, which must be asked for."""
NOT_SWEPT = (
    "data.draws",
    "data.first_draw",
    "data.val_images",
    "evaluation",
    "placement",
    "name",
    "layout",
    "protocol",
    "prompts.base_url",
    "prompts.key_variable",
    "prompts.timeout",
    "labeling.rounds",
    "labeling.support_share",
    "novel.trains",
    "novel.rows",
    "novel.base_data",
    "novel.base_photos",
    "joint",
)
"""Keys (and sections) that say how a result is measured or where it is made, and so never are what a study searches."""
ONCE: dict[str, Any] = {"labeling.rounds": 1, "novel.trains": "classifier"}
"""What every trial has, whatever the configuration says: one labelling, one layer trained. `best.yaml` has the configuration's."""
MAX_GRID = 10_000


class Range(Section):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    step: Annotated[float, Field(gt=0)] | None = None
    log: bool = False

    @model_validator(mode="after")
    def _not_contradictory(self) -> Range:
        if self.low > self.high:
            raise UserError(f"low={self.low:g} is above high={self.high:g}; exchange them")
        if self.log and (self.low <= 0 or self.step):
            raise UserError("log=true needs low above 0 and no step; leave one of them out")
        if self.step and self.step > self.high - self.low:
            raise UserError(f"step={self.step:g} is wider than the range {self.low:g} to {self.high:g}; lower it")
        return self

    @property
    def whole(self) -> bool:
        """Whether every value is a whole number."""
        return all(v is None or float(v).is_integer() for v in (self.low, self.high, self.step)) and not self.fractional

    fractional: bool = False
    """Numbers between whole ends too: `{low: 0, high: 1, fractional: true}`; ends such as 0.0 say the same."""


class ValidationImages(Section):
    """Real images on which trials are compared: from the train list, never support of any draw; the test list is not read."""

    novel_images: Whole = 12
    """Per novel class. They are annotated images beyond the K shots: stated in every output."""
    base_images: Whole = 48
    """Base training images that are neither replayed nor make prototypes (the base stage itself has seen them)."""


class Study(Section):
    title: str = ""
    """What the study asks, in a line."""
    space: dict[str, Range | Annotated[list[Any], Field(min_length=1)]]
    """Dotted key -> range or list of choices."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted key -> value that every trial has."""
    objective: Annotated[tuple[str, ...], Field(min_length=1)] = ("novel",)
    """Metrics to maximise; several give a Pareto front. With `test.` before it a metric is that of the test list."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Optuna's multivariate TPE, random values, or every combination once, in order."""
    startup: Count = 10
    """Random trials before TPE begins."""
    trials: Count = 50
    """Trials, of which the first has the configuration's own values."""
    seed: Whole = 0
    """Of the sampler."""
    window: Count = 2
    """Trial n is chosen once trials 0 to n - window have ended, from their results alone. So a study is the same however many
    trials run at a time, and however often it was stopped; at most this many run at a time."""
    pruning: Literal["none", "median", "thirds"] = "none"
    """Stop a trial whose objective at a report is below the median (`thirds`: not in the upper third, as successive halving
    with factor 3 would) of the ended trials that it may know."""
    reports: Count = 3
    """How often the novel stage is scored while it trains; only `pruning` needs more than one."""
    validation: ValidationImages = ValidationImages()

    @model_validator(mode="after")
    def _fits(self) -> Study:
        if len(self.objective) > 1 and self.pruning != "none":
            raise UserError(f"pruning={self.pruning}: needs one objective, there are {len(self.objective)}; set pruning: none")
        if len(set(map(on_test, self.objective))) > 1:
            raise UserError("objective: all of them are of the validation images, or all of the test list; not both in one study")
        return self

    @property
    def test(self) -> bool:
        """Whether trials are compared on the test list."""
        return on_test(self.objective[0])

    @property
    def metrics(self) -> list[str]:
        """The objectives as metrics."""
        return [name.removeprefix(TEST) for name in self.objective]


def on_test(objective: str) -> bool:
    """Return whether an objective is measured on the test list."""
    return objective.startswith(TEST)


def read_study(path: Path, changes: Mapping[str, Any]) -> Study:
    """Return the study of a YAML file.

    Args:
        changes: keys of the study to replace.

    Raises:
        UserError: one line per wrong key.
    """
    try:
        tree = parse_yaml(decode_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"--study {path}: not readable as YAML: {error}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("space"), dict) or not tree["space"]:
        raise UserError(f"--study {path}: expected `space: {{section.key: {{low: ..., high: ...}}}}` with at least one key")
    for name, space in tree["space"].items():
        if isinstance(space, list) and not space:
            raise UserError(f"--study {path}: space.{name}: the list of choices is empty; name at least one value")
        if isinstance(space, dict) and any(isinstance(v, float) for v in space.values()):
            space.setdefault("fractional", True)
    try:
        return Study.model_validate(tree | dict(changes))
    except ValidationError as error:
        raise UserError("\n".join(f"--study {path}: {_line(e)}" for e in error.errors())) from None


def _line(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"] if part not in ("Range", "list[any]", "constrained-list"))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; a study has {', '.join(Study.model_fields)}, a range low, high, step, log"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    return f"{key}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def check_study(study: Study, config: Config) -> None:
    """Check that keys exist and may be swept, that ends and choices are valid values, and that objectives are metrics.

    Args:
        config: the configuration that trials start from.

    Raises:
        UserError: the first thing that is wrong, with the remedy.
    """
    known = keys()
    for key in (*study.space, *study.set):
        if key not in known:
            raise UserError(f"study: {key}: unknown key{did_you_mean(key, known)} `syn4seg config` lists all keys")
    for key in study.space:
        if any(key == name or key.startswith(name + ".") for name in NOT_SWEPT):
            raise UserError(
                f"study: {key}: cannot be swept: no trial depends on it, or it says where or how trials are measured; "
                "give it to every trial under `set`, or with the configuration"
            )
        if key in study.set:
            raise UserError(f"study: {key}: is both swept and set; leave it out of one of them")
    for name in study.metrics:
        if name not in METRICS:
            raise UserError(
                f"--objective {name}: the evaluation has no such metric{did_you_mean(name, METRICS)}; expected "
                f"{', '.join(METRICS)}, or test.METRIC for the test list"
            )
        if not study.test and name.startswith("novel") and not study.validation.novel_images:
            raise UserError(f"--objective {name}: needs novel classes to score on; set validation.novel_images above 0")
    for key, value in ONCE.items():
        if study.set.get(key, value) != value:
            raise UserError(f"study: set.{key}: every trial of a sweep has {key}={value}; leave it out here")
    if study.set.get("novel.base_photos", config.novel.base_photos) is not None:
        raise UserError("novel.base_photos: a trial of a sweep reads the data set alone; leave it empty")
    for key, space in study.space.items():
        for value in [space.low, space.high] if isinstance(space, Range) else space:
            value = int(value) if isinstance(space, Range) and space.whole else value
            try:
                apply_overrides(config, study.set | {key: value})
            except UserError as error:
                raise UserError(f"study: space.{key}: {error}") from None
    if study.sampler == "grid":
        grid(study)


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return a configuration with other values under some dotted keys.

    Raises:
        UserError: a value that a key does not take.
    """
    tree = config.model_dump(mode="json")
    for key, value in overrides.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[last] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("; ".join(explained(e) for e in error.errors())) from None


def default_value(config: Config, key: str) -> Any:
    """Return what a configuration has under a dotted key."""
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def distributions(study: Study) -> dict[str, BaseDistribution]:
    """Return the distribution of Optuna for every key. Lists and mappings are JSON texts, see `from_choices`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    result: dict[str, BaseDistribution] = {}
    for key, space in study.space.items():
        if not isinstance(space, Range):
            result[key] = CategoricalDistribution([as_choice(value) for value in space])
        elif space.whole:
            result[key] = IntDistribution(int(space.low), int(space.high), log=space.log, step=int(space.step or 1))
        else:
            result[key] = FloatDistribution(space.low, space.high, log=space.log, step=space.step)
    return result


def as_choice(value: Any) -> Any:
    """Return a choice as Optuna holds it."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def from_choices(study: Study, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by key, of what Optuna has chosen, or of the configuration's own values, which a list need not have."""
    choices = {key: {as_choice(v): v for v in space} for key, space in study.space.items() if not isinstance(space, Range)}
    return {key: choices.get(key, {}).get(value, _from_text(value)) for key, value in params.items()}


def _from_text(value: Any) -> Any:
    """Return a list or a mapping of its text of `as_choice`; everything else as it is."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def grid(study: Study) -> list[dict[str, Any]]:
    """Return every combination, the last key changing first.

    Raises:
        UserError: a range without a step, or too many combinations.
    """
    axes = []
    for key, space in study.space.items():
        if not isinstance(space, Range):
            axes.append(list(space))
            continue
        step = space.step or (1.0 if space.whole else None)
        if step is None:
            raise UserError(f"study: space.{key}: a grid needs a step for a range of fractions, or a list of values")
        values = [space.low + i * step for i in range(math.floor((space.high - space.low) / step + 1e-9) + 1)]
        axes.append([int(v) if space.whole else round(v, 12) for v in values])
    count = math.prod(map(len, axes))
    if count > MAX_GRID:
        raise UserError(f"study: the grid has {count} combinations, {MAX_GRID} at most; widen the steps, or use sampler: tpe")
    return [dict(zip(study.space, values, strict=True)) for values in itertools.product(*axes)]


def study_path(name: str, packaged: Path) -> Path:
    """Return the file of a study: a path, or the name of a packaged one.

    Raises:
        UserError: there is none.
    """
    if Path(name).is_file():
        return Path(name)
    known = sorted(p.stem for p in packaged.glob("*.yaml"))
    if name not in known:
        expected = f"a YAML file, or one of {', '.join(known)}{did_you_mean(name, known)}"
        raise UserError(f"--study {name}: no such file; expected {expected}")
    return packaged / f"{name}.yaml"
