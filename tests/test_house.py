"""Rules of the house that no linter checks: one class name means one thing, and tests lie beside what they test."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for room in ("syn4seg", "actors", "tune") for path in (ROOT / room).rglob("*.py"))
CROSSING = {
    "actors/test_growth.py",
    "exports/test_safety.py",
    "library/test_public.py",
    "report/test_browser.py",
    "store/test_object_store.py",
}
"""Tests in a room that are about no single module of it."""


def test_one_class_name_means_one_thing():
    places = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_test_files_mirror_the_modules():
    modules = {path.relative_to(ROOT).as_posix().removeprefix("syn4seg/") for path in MODULES}
    strays = []
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        name = path.relative_to(ROOT / "tests").as_posix()
        module = f"{path.parent.name}/{path.name.removeprefix('test_')}"
        if module not in modules and module.replace(".py", "/__init__.py") not in modules and name not in CROSSING:
            strays.append(name)
    assert strays == []
    assert all((ROOT / "tests" / name).is_file() for name in CROSSING)


def test_no_module_and_no_function_is_too_long_to_read():
    long_modules = {str(p.relative_to(ROOT)): n for p in MODULES if (n := len(p.read_text().splitlines())) > 400}
    long_functions = {
        f"{path.relative_to(ROOT)}:{node.name}": length
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (length := (node.end_lineno or 0) - node.lineno + 1) > 80
    }
    assert long_modules == {} and long_functions == {}


def test_the_formatter_is_never_overruled():
    silenced = "fmt: " + "skip", "fmt: " + "off"
    assert [str(p.relative_to(ROOT)) for p in MODULES if any(mark in p.read_text() for mark in silenced)] == []
