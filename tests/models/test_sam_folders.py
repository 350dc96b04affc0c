"""Folders and hub ids of transformers: what is no SAM, incomplete or damaged is refused before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.models.sam_files import known_sam
from syn4seg.models.sam_folders import FAMILIES, is_hub_id, is_transformers_sam
from syn4seg.stages.checks import check_models
from tests.shared_sams import saved_sam


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved_sam(tmp_path / "sam", "sam")
    return tmp_path / "sam"


def _kind(folder: Path, kind: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))


def _index(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another network": (lambda f: _kind(f, "bert"), r"model_type 'bert'; expected a folder .*model_type of sam, sam_hq, sam2"),
    "a list as the kind": (lambda f: _kind(f, ["sam"]), r"model_type .*sam.*; expected a folder"),
    "the detector alone": (
        lambda f: _kind(f, "sam3"),
        r"'sam3', the detector of SAM 3 alone.*give the whole SAM 3 \(model_type sam3_video",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors; other formats .*save_pretrained"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"12345"), r"model\.safetensors is damaged .*; fetch it again"),
    "a list that leads out": (
        lambda f: _index(f, '{"weight_map": {"a": "../x.safetensors"}}'),
        r"index\.json is no index of safetensors files in its folder",
    ),
    "a pickle in the list": (lambda f: _index(f, '{"weight_map": {"a": "x.bin"}}'), "is no index of safetensors files"),
    "no list": (lambda f: _index(f, "[]"), "is no index of safetensors files"),
    "a missing shard": (lambda f: _index(f, '{"weight_map": {"a": "x.safetensors"}}'), r"x\.safetensors is missing; fetch"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_folder_that_is_not_whole_is_refused_by_key_value_and_remedy_before_a_run(name: str, folder: Path):
    config = load(None, [f"refinement.model={folder}"])
    check_models(config, None)
    damage, why = DAMAGE[name]
    damage(folder)
    with pytest.raises(UserError, match=f"^refinement.model={folder}: .*{why}") as caught:
        check_models(config, None)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_type_is_one_of_this_project(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"img_size": 64}')
    assert not is_transformers_sam(str(tmp_path))
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        known_sam(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not is_transformers_sam(str(tmp_path))


def test_only_what_may_be_one_is_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights" / "sam").mkdir(parents=True)
    assert is_hub_id("facebook/sam2.1-hiera-tiny") and is_transformers_sam("facebook/sam3")
    for name in (
        "vit-b",
        "weights/sam",
        "weights/sam.pth",
        "weights/mobile_sam.pt",
        "/facebook/sam",
        "../facebook",
        "a/b/c",
        "./sam",
        "none",
    ):
        assert not is_hub_id(name), name


def test_a_hub_id_is_asked_for_its_configuration_alone_and_offline_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub
    from huggingface_hub import constants

    asked = []

    def fetch(model: str, allow_patterns: list[str]) -> str:
        asked.append((model, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (folder / "model.safetensors").unlink()
    known_sam("facebook/sam-vit-base")
    assert asked == [("facebook/sam-vit-base", ["config.json"])]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        known_sam("facebook/sam-vit-base")


def test_a_hub_id_that_cannot_be_fetched_says_how_else(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def fetch(*_: Any, **__: Any) -> str:
        raise OSError("no\nroute")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(UserError, match=r"'some/sam' cannot be fetched .*no route.*hf download some/sam --local-dir FOLDER"):
        known_sam("some/sam")


def test_the_classes_of_every_family_are_in_the_installed_library():
    import transformers

    for family in FAMILIES.values():
        assert hasattr(transformers, family.network) and hasattr(transformers, family.processor)


def test_a_folder_is_checked_without_a_heavy_library(folder: Path):
    code = (
        f"import sys; from syn4seg.models.sam_files import known_sam; known_sam({str(folder)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
