"""The folder of a trained model: config.json (what it takes and says, where it comes from; one schema) and weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from syn4seg.data.canvas import Canvas
from syn4seg.errors import DamagedError, UserError
from syn4seg.segmenter.network import NetworkShape, Segmenter, read_segmenter
from syn4seg.store.files import MAX_TABLE, as_path, check_reachable, exists, read_bytes

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

CONFIG, README = "config.json", "README.md"
FILES = {"safetensors": "model.safetensors", "onnx": "model.onnx", "pt2": "model.pt2"}
"""Format -> file of the weights."""
MAX_CONFIG = 2**24
"""Bytes of the largest config.json that is read."""
Byte = Annotated[int, Field(ge=0, le=255)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelClass(_Part):
    """A class of a model; its place in the list is its class index.

    Attributes:
        kind: background, or learned in the base stage or from the support set.
        id: number in the data set; 0 for the background.
        color: RGB, as in the report of the run.
    """

    name: Annotated[str, Field(min_length=1, max_length=500)]
    kind: Literal["background", "base", "novel"]
    id: Byte
    color: tuple[Byte, Byte, Byte]


class ModelCanvas(_Part):
    """`data.canvas.Canvas`: how an image is brought to the network."""

    size: Annotated[int, Field(ge=8, le=16_384)]
    kind: Literal["plain", "diam"]


class ModelWeights(_Part):
    """The file of the weights, and the SHA-256 of its bytes."""

    format: Literal["safetensors", "onnx", "pt2"]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ModelConfig(_Part):
    """config.json.

    Attributes:
        network: as in the header of the safetensors file, with the normalisation.
        classes: by class index, background first.
        provenance: how it was trained, for people: run, row, draw, support, synthetic images, scores, licences, fingerprints.
    """

    format: Literal["syn4seg-model"] = "syn4seg-model"
    version: Literal[1] = 1
    weights: ModelWeights
    network: NetworkShape
    canvas: ModelCanvas
    classes: Annotated[tuple[ModelClass, ...], Field(min_length=1, max_length=255)]
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        names = [entry.name for entry in self.classes]
        if len(names) != self.network.classes:
            raise ValueError(f"{len(names)} classes are named, but the network has {self.network.classes}")
        if self.classes[0].kind != "background" or any(entry.kind == "background" for entry in self.classes[1:]):
            raise ValueError("the first class, and no other, is to be the background")
        if len(set(names)) < len(names):
            raise ValueError("two classes have one name")
        return self

    @property
    def as_canvas(self) -> Canvas:
        """The canvas on which the network sees every image."""
        return Canvas(self.canvas.size, self.canvas.kind)


def read_config(folder: AnyPath) -> ModelConfig:
    """Return the config.json of a model's folder.

    Raises:
        UserError: there is no such folder or file, or it describes no model of this version.
    """
    remedy = "give a folder that `syn4seg model` or a finished run wrote (RUN/model)"
    try:
        data = read_bytes(folder / CONFIG, MAX_CONFIG)
    except FileNotFoundError:
        raise UserError(f"{folder}: not a model ({CONFIG} is missing); {remedy}") from None
    try:
        return ModelConfig.model_validate_json(data)
    except ValidationError as error:
        facts = error.errors()[0]
        place = ".".join(str(part) for part in facts["loc"]) or "the file"
        raise DamagedError(f"{folder / CONFIG}: {place[:100]}: {facts['msg'][:200]}; {remedy}") from None


def read_model(folder: AnyPath) -> tuple[Segmenter, ModelConfig]:
    """Return the network of a model's folder (float32, eval mode, on the CPU) and its config.json.

    Raises:
        UserError: there is no model, a file of it is damaged or was changed, or it is one for another program.
    """
    config, path = own_config(folder), folder / FILES["safetensors"]
    check_weights(folder, config)
    segmenter, shape, _ = read_segmenter(path)
    if shape != config.network:
        raise DamagedError(f"{path}: its network is not the one that config.json describes; take both files from one folder")
    return segmenter, config


def own_config(folder: AnyPath) -> ModelConfig:
    """Return the config.json of a model that can be loaded here.

    Raises:
        UserError: there is none, or its weights are for another program.
    """
    config = read_config(folder)
    if config.weights.format != "safetensors":
        raise UserError(
            f"{folder}: holds {FILES[config.weights.format]} for another program; `syn4seg model RUN --to DIR` writes a folder for "
            "this one"
        )
    return config


def find_model(place: str | Path) -> AnyPath:
    """Return the folder of a model: the place itself, or model/ in a run.

    Raises:
        UserError: it is a run without a model, or cannot be reached.
    """
    root = as_path(place)
    check_reachable(root)
    if not exists(root / "config.yaml"):
        return root
    if not exists(root / "model" / "config.json"):
        raise UserError(
            f"{place}: this run has no model yet; finish it with `syn4seg run`, or use `syn4seg model {place} --to DIR`"
        )
    return root / "model"


def is_model_folder(place: str) -> bool:
    """Return whether a folder or URL is that of a model, or of a run with one."""
    try:
        read_config(find_model(place))
    except UserError:
        return False
    return True


def check_weights(folder: AnyPath, config: ModelConfig) -> None:
    """Check that the weights are those that config.json names.

    Raises:
        DamagedError: they are missing or others.
    """
    path = folder / FILES[config.weights.format]
    try:
        digest = hashlib.sha256(read_bytes(path, MAX_TABLE)).hexdigest()
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing; take the whole folder") from None
    if digest != config.weights.sha256:
        raise DamagedError(f"{path}: not the weights that config.json names (damaged, cut short or changed); take the whole folder")
