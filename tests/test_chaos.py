"""The same bytes however a run is spread and whatever dies: `tests/chaos.py` at a reduced size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import chaos

FOLDER = Path(__file__).parent


def script_output(*words: str) -> str:
    """Return what the script prints; it must end with 0."""
    env = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "chaos.py"), *words], cwd=FOLDER.parent, env=env, capture_output=True, text=True, timeout=880
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


@pytest.mark.slow
def test_a_kill_of_every_kind_loses_nothing_doubles_nothing_and_changes_nothing():
    output = script_output("--kills", str(len(chaos.KINDS)), "--seed", "1", "--images", "6", "--seconds", "0.2")
    assert re.search(rf"^{len(chaos.KINDS)} kills \{{", output, re.MULTILINE), output
    for kind in chaos.KINDS:
        assert f"'{kind}': " in output, f"no kill of a {kind}"


@pytest.mark.slow
def test_the_digest_is_the_same_for_every_number_of_workers_batch_layout_and_node():
    lines = script_output("--matrix", "--images", "4", "--seconds", "0.05").splitlines()
    cases = [line for line in lines if line.startswith("Case(")]
    assert len(cases) == len(chaos.REDUCED)
    assert len({line.rpartition(": ")[2] for line in cases}) == 1


def test_a_schedule_of_kills_is_named_by_its_seed_and_has_every_kind():
    import random

    assert chaos.schedule(9, random.Random(3)) == chaos.schedule(9, random.Random(3))
    assert set(chaos.schedule(len(chaos.KINDS), random.Random(0))) == set(chaos.KINDS)
