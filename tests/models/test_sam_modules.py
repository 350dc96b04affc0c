"""segment_anything's networks come without torchvision, and the package is whole for whoever imports it afterwards."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from syn4seg.models import sam_modules
assert len(sam_modules.BUILDERS) == 3
assert all(network.__module__.startswith("segment_anything.") for network in sam_modules.NETWORKS)
assert "torchvision" not in sys.modules, "the networks of segment_anything load torchvision themselves now"
assert "segment_anything" not in sys.modules
{more}
"""


def run(more=""):
    return subprocess.run([sys.executable, "-c", CODE.format(more=more)], capture_output=True, text=True, check=False)


def test_the_networks_are_imported_without_torchvision():
    done = run()
    assert done.returncode == 0, done.stderr


def test_the_package_itself_can_be_imported_afterwards():
    done = run("import segment_anything; assert segment_anything.SamPredictor and 'torchvision' in sys.modules")
    assert done.returncode == 0, done.stderr
