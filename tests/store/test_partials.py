"""Unfinished files: those of a killed process go, those of a living one and of strangers stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from syn4seg.store import partials
from syn4seg.store.files import as_path, atomic_file
from syn4seg.store.partials import IDLE, partial_path, remove_abandoned

WRITER = """
import sys, time
from pathlib import Path
from syn4seg.store.files import atomic_file
with atomic_file(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    print(partial, flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="this system does not say which process table this is")
def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "page[1].html")], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline().strip().startswith(str(tmp_path))
    with atomic_file(tmp_path / "page[1].html") as ours:
        ours.write_bytes(b"half")
        remove_abandoned(tmp_path)
        assert len(names(tmp_path)) == 2
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        remove_abandoned(tmp_path, "page[1]")
        remove_abandoned(tmp_path, "page1.html")
        assert len(names(tmp_path)) == 2
        remove_abandoned(tmp_path, "page[1].html")
        assert names(tmp_path) == [ours.name]
    assert names(tmp_path) == ["page[1].html"]


def test_what_another_machine_writes_stays_for_a_day_and_what_is_no_unfinished_file_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(partials, "_OWNER", "012345")
    young, old = partial_path(tmp_path / "x"), partial_path(tmp_path / "x")
    monkeypatch.undo()
    others = [tmp_path / name for name in ("x", ".x.partial", ".x.mine.partial", ".x.00000000000000000000.part")]
    for path in (young, old, *others):
        path.write_bytes(b"half")
    then = time.time() - 2 * IDLE
    for path in (old, *others):
        os.utime(path, (then, then))
    remove_abandoned(tmp_path)
    assert names(tmp_path) == sorted(path.name for path in (young, *others))
    remove_abandoned(tmp_path / "not there")
    remove_abandoned(as_path("memory://bucket/run"))
