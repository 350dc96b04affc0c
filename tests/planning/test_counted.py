"""Sizes that are read from a table instead of being counted."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from syn4seg.planning.sizes import COUNTED
from syn4seg.planning.sizes_vision import SamSize, sam_size

ROOT = Path(__file__).parents[2]


def test_the_table_is_what_counting_gives():
    made = runpy.run_path(str(ROOT / "docs" / "make_sizes.py"))
    assert json.loads(COUNTED.read_text()) == json.loads(json.dumps(made["count"]()))
    read = sam_size("vit-b")
    assert type(read) is SamSize and json.loads(COUNTED.read_text())['sam_size ["vit-b"]'] == asdict(read)


@pytest.mark.parametrize("name", ["pascal5i", "coco20i", "embedded"])
def test_the_packaged_configurations_are_planned_without_building_a_network(name):
    code = "import sys; from syn4seg import cli\ntry: cli.main()\nfinally: assert 'torch' not in sys.modules, 'a network was built'"
    words = ["plan", name, "data.root=nowhere", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout), done.stderr
