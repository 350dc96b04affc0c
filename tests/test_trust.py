"""A run directory is data, never code: neither what its files name nor what lies in it is run, unless the person says so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from syn4seg.config.loading import load
from syn4seg.config.tree import annotated
from syn4seg.errors import UserError
from syn4seg.options import read_config
from syn4seg.segmenter.backbones import check_backbone, load_backbone
from syn4seg.trust import VARIABLE, trust


@pytest.fixture(autouse=True)
def nobody_named_anything(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


@pytest.fixture
def run(tmp_path):
    """A directory as a run has it, whose configuration names code."""
    (tmp_path / "run").mkdir()
    config = load(None, ["segmenter.backbone=os:system", "base.checkpoint=train", "data.source=folder", "data.root=x"])
    (tmp_path / "run/config.yaml").write_text(annotated(config))
    (tmp_path / "run/inputs.json").write_text("{}")
    return tmp_path / "run"


def test_code_that_a_run_names_is_refused_in_every_way_to_name_the_run(run):
    for words, out in (([str(run)], None), ([str(run / "config.yaml")], None), ([], str(run)), (["seed=1"], str(run))):
        read_config(words, out)
        for use in (load_backbone, check_backbone):
            with pytest.raises(UserError, match=r"segmenter\.backbone=os:system: .*--trust"):
                use("os:system")


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_the_command_line_refuses_the_code_of_a_received_run(run, syn4seg, tmp_path, verb):
    where = [run, "--out", tmp_path / "new"] if verb == "run" else [run]
    code, _, complaint = syn4seg(verb, *where, "data.source=embedded", "placement.runner=inline")
    assert code == 2 and "segmenter.backbone=os:system" in complaint and "--trust" in complaint
    assert not (tmp_path / "new").exists()


def test_code_that_the_person_names_is_run(run, tmp_path):
    for words, trusted in (
        ([str(run), "segmenter.backbone=os:system"], False),
        ([str(run)], True),
        ([str(tmp_path / "own.yaml")], False),
    ):
        (tmp_path / "own.yaml").write_text((run / "config.yaml").read_text())
        os.environ[VARIABLE] = ""
        read_config(words, trusted=trusted)
        with pytest.raises(TypeError):  # os.system is called, and does not like what it gets
            load_backbone("os:system", None)  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError, match="--trust"):
            load_backbone("os:abort")


def test_the_header_of_a_checkpoint_names_no_code_either(tmp_path, shipped):
    from syn4seg.segmenter.network import load_segmenter

    with safe_open(shipped, "numpy") as file:
        facts = {key: text.replace('"backbone": "embedded"', '"backbone": "os:system"') for key, text in file.metadata().items()}
    save_file(load_file(shipped), tmp_path / "base.safetensors", metadata=facts)
    with pytest.raises(UserError, match="os:system: a stored file names this code"):
        load_segmenter(tmp_path / "base.safetensors")


@pytest.fixture
def shipped():
    from syn4seg.stages.setup import shipped_base

    return shipped_base(0)


def test_a_module_beside_a_run_is_found_last_and_only_for_code_that_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_nets.py").write_text("def tiny(weights): return 'called'\n")
    (tmp_path / "json.py").write_text("raise SystemExit('imported')\n")
    trust("own_nets:tiny")
    with pytest.raises(UserError, match="returned a module without channels"):
        load_backbone("own_nets:tiny")
    assert sys.path[-1] == str(tmp_path) and sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    "words", [["report", "."], ["watch", ".", "--once"], ["verify", "."], ["config"], ["--help"], ["prompts", "--out", "new"]]
)
def test_no_file_of_the_current_directory_is_imported(finished, tmp_path, words):
    for name in ("rich", "pyarrow", "typer", "yaml", "numpy", "ray", "torch", "json", "syn4seg"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').write({name!r})\nraise SystemExit\n")
    root, _ = finished
    for path in root.iterdir():
        (tmp_path / path.name).symlink_to(path)
    command = os.path.join(os.path.dirname(sys.executable), "syn4seg")
    if words[0] == "prompts":
        words = [*words, "placement.runner=ray", "prompts.bank_size=1", "synthesis.images_per_class=1"]
    if words[0] == "report":
        words = [*words, "--to", str(tmp_path / "page.html")]
    done = subprocess.run([command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()
    assert done.returncode == 0, done.stderr
