"""The deadline of a row: a process that spends longer ends itself and says where it was; pauses and longer rows do not count."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def run(tmp_path, body: str) -> tuple[int, str]:
    """A process of its own that is watched with a deadline of a second: its exit code, and its notes."""
    head = "import sys, time\nfrom actors import deadline\nnotes = open(sys.argv[1], 'w')\n"
    code = head + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "notes")], timeout=60, capture_output=True, check=False)
    return done.returncode, (tmp_path / "notes").read_text()


def test_a_row_that_hangs_ends_its_process_and_says_where(tmp_path):
    code, notes = run(
        tmp_path,
        """
        def a_row_that_hangs():
            time.sleep(30)
        deadline.start(1.0, notes)
        a_row_that_hangs()
        """,
    )
    assert code != 0 and "Timeout" in notes and "a_row_that_hangs" in notes


@pytest.mark.parametrize(
    "body",
    [
        "deadline.start(1.0, notes)\nfor _ in range(4): deadline.tick(); time.sleep(0.4)",
        "deadline.start(1.0, notes)\ndeadline.tick(rows=4)\ntime.sleep(1.6)",
        "deadline.start(1.0, notes)\ndeadline.tick(extra=3.0)\ntime.sleep(1.6)",
        "deadline.start(1.0, notes)\ndeadline.pause()\ntime.sleep(1.6)",
        "deadline.start(1.0, notes)\ndeadline.stop()\nnotes.close()\ndeadline.tick()\ntime.sleep(1.6)",
        "deadline.tick(); deadline.pause(); time.sleep(1.6)",
    ],
    ids=["rows in time", "several rows at once", "a model that loads", "a slow store", "watched no longer", "never watched"],
)
def test_what_is_no_hanging_row_is_left_alone(tmp_path, body):
    assert run(tmp_path, body) == (0, "")
