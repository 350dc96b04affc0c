"""A folder or hub id of a model of transformers: whether it is whole, and where it is. No weight is loaded.

Weights are safetensors only, and no code of a model's repository is fetched or run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from syn4seg.errors import UserError
from syn4seg.models.hub import tensors_of

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


class WantedFolder(NamedTuple):
    """Which model is wanted, for messages: the key that names it, a hub id for example, what it should be, what to do instead."""

    key: str
    example: str
    what: str
    instead: str


def check_folder(model: str, wanted: WantedFolder) -> None:
    """Check that a model may be loaded, as far as can be told without loading it or using the network.

    Raises:
        UserError: neither a folder nor a hub id; or a folder that is incomplete or damaged.
    """
    if not model or not Path(model).is_dir():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
            raise UserError(f"{wanted.key}={model}: neither a folder nor a hub id such as {wanted.example}")
        return
    folder = Path(model)
    if not (folder / "config.json").is_file():
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise UserError(f"{wanted.key}={model}: no config.json in this folder (found: {names}); expected {wanted.what}")
    shards = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            listed = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{wanted.key}={model}: {index.name} is damaged; copy or download this file again") from None
        if missing := sorted(listed - shards):
            raise UserError(
                f"{wanted.key}={model}: {missing[0]} is missing ({len(listed & shards)} of {len(listed)} shards are "
                "there); download it again"
            )
    if not shards:
        raise UserError(f"{wanted.key}={model}: no .safetensors file in this folder; expected {wanted.what}")
    for name in sorted(shards):
        try:
            tensors_of(folder / name)
        except UserError as error:
            raise UserError(f"{wanted.key}={model}: {name} is cut short or damaged ({error}); download it again") from None


def locate_folder(model: str, wanted: WantedFolder) -> Path:
    """Return the folder of a model, fetched if it is a hub id.

    Raises:
        UserError: it is not there and cannot be fetched.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import constants, errors, snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=FILES, ignore_patterns=["consolidated*", "original/*"]))
    except errors.GatedRepoError:
        problem = f"it is gated: accept its licence at {constants.ENDPOINT}/{model} and set HF_TOKEN to a token of that account"
    except errors.RepositoryNotFoundError:
        problem = "there is no such folder here and no such model on the hub, or it is private (then set HF_TOKEN)"
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:
        problem = (
            f"it is not wholly in this machine's cache and cannot be fetched ({type(error).__name__}: no network, or "
            f"HF_HUB_OFFLINE set): fetch it elsewhere with `hf download {model} --local-dir DIR`, give DIR"
        )
    raise UserError(f"{wanted.key}={model}: {problem}; or {wanted.instead}")


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder's weights, of which the headers are sound.

    Raises:
        UserError: there are none, or one is missing or damaged.
    """
    if (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    elif (folder / INDEX).is_file():
        try:
            names = sorted({str(name) for name in json.loads((folder / INDEX).read_text())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError):
            names = []
        if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise UserError(f"{folder / INDEX} is no index of safetensors files in its folder; fetch the folder again")
        files = [folder / name for name in names]
    else:
        raise UserError(
            f"{folder} has no {SINGLE}; other formats (pytorch_model.bin) are pickles, which can run code, and are refused: "
            "save the network again with save_pretrained(FOLDER)"
        )
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing; fetch the folder again")
        try:
            tensors_of(file)
        except UserError as error:
            raise UserError(f"{file} is damaged ({error}); fetch it again") from None
    return files
