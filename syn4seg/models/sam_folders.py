"""Which folders and hub ids of transformers are a SAM, and whether they are whole: no weight is loaded. Imports nothing heavy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from syn4seg.errors import UserError
from syn4seg.models.transformers_folder import weight_files

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
FILES = re.compile(r".*\.(pth|pt|safetensors|ckpt|bin|tar)")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LARGEST = 20 * 2**20  # bytes of a config.json


class SamFamily(NamedTuple):
    """How transformers loads one kind of SAM.

    Attributes:
        network: its class.
        processor: the class of its image processor.
    """

    network: str
    processor: str


FAMILIES = {
    "sam": SamFamily("SamModel", "SamImageProcessor"),
    "sam_hq": SamFamily("SamHQModel", "SamImageProcessor"),
    "sam2": SamFamily("Sam2Model", "Sam2ImageProcessor"),
    "sam2_video": SamFamily("Sam2Model", "Sam2ImageProcessor"),
    "sam3_tracker": SamFamily("Sam3TrackerModel", "Sam3ImageProcessor"),
    "sam3_video": SamFamily("Sam3TrackerModel", "Sam3ImageProcessor"),
}
"""`model_type` in config.json -> how it is loaded. The published SAM 2 and SAM 3 are the video models, of which this is the part
for one image."""
EXPECTED = (
    "expected a folder as transformers' save_pretrained writes it, or a hub id such as facebook/sam-vit-base or "
    f"facebook/sam2.1-hiera-tiny, whose config.json has a model_type of {', '.join(FAMILIES)}"
)


def is_hub_id(model: str) -> bool:
    """Return whether a name that is no path here may be one of the hub."""
    return bool(HUB_ID.fullmatch(model)) and not FILES.fullmatch(model) and not Path(model).exists()


def is_transformers_sam(model: str) -> bool:
    """Return whether transformers is to load a model: a hub id, or a folder whose config.json has a model_type."""
    if is_hub_id(model):
        return True
    try:
        return "model_type" in json.loads((Path(model) / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def check_transformers_sam(model: str) -> None:
    """Check what can be checked without loading weights; of a hub id config.json alone is fetched, and nothing if that is off.

    Raises:
        UserError: it is of another kind, incomplete or damaged, or not there.
    """
    from huggingface_hub import constants

    remote = is_hub_id(model) and not constants.HF_HUB_OFFLINE
    folder = snapshot(model, "config.json")
    read_kind(folder)
    if not remote:
        weight_files(folder)


def read_kind(folder: Path) -> dict[str, Any]:
    """Return the config.json of a SAM of transformers.

    Raises:
        UserError: it cannot be read, or is of another network.
    """
    path = folder / "config.json"
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {str(error)[:99]}); {EXPECTED}") from None
    if kind == "sam3":
        raise UserError(
            f"{path} has model_type 'sam3', the detector of SAM 3 alone, which takes no box, point or mask of one object; give the "
            "whole SAM 3 (model_type sam3_video, as facebook/sam3) or its tracker (sam3_tracker)"
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{path} has model_type {str(kind)[:60]!r}; {EXPECTED}")
    return content


def snapshot(model: str, *patterns: str) -> Path:
    """Return a folder, or the snapshot of a hub id in this machine's cache, of which the files of these patterns are fetched.

    Raises:
        UserError: it cannot be fetched.
    """
    if not is_hub_id(model):
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(model, allow_patterns=list(patterns)))
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise UserError(
            f"there is no such folder or file here, and {model!r} cannot be fetched from the hub ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:150]}); check name, network and licence (HF_TOKEN), or fetch it elsewhere with "
            f"`hf download {model} --local-dir FOLDER` and give FOLDER"
        ) from error
