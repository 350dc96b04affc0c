"""How a command ends: one line and an exit code; the traceback of a fault is in a file, and on the terminal only when asked for."""

from __future__ import annotations

import errno
import os
import re
import signal
import tempfile
from pathlib import Path

import pytest

from syn4seg.errors import DamagedError, Interrupted, StoreError, UserError, WorkerError, catch_signals, describe_error
from syn4seg.store.rundir import RunDir

FACTORY = """
import numpy as np

def tiny(weights):
    return np.ones(3) + np.ones(4)  # the user's own mistake
"""


class NoCredentialsError(Exception):
    """An error of an object store's client."""

    __module__ = "botocore.exceptions"


@pytest.fixture(autouse=True)
def traceback_folder(tmp_path, monkeypatch):
    """A folder of this test for the files of tracebacks."""
    folder = tmp_path / "tracebacks"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("SYN4SEG_DEBUG", raising=False)
    return folder


def fail_with(error: BaseException, monkeypatch) -> None:
    """Let every run directory raise `error` when it is opened."""

    def raises(*_):
        raise error

    monkeypatch.setattr(RunDir, "open", raises)


def prompts(syn4seg, path: Path) -> tuple[int, str]:
    code, _, complaint = syn4seg("prompts", "prompts.bank_size=1", "synthesis.images_per_class=1", "--out", path / "run")
    return code, complaint


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("data.fold=9: expected 0..3"), "data.fold=9: expected 0..3"),
        (StoreError("s3://x: cannot be written"), "s3://x: cannot be written"),
        (DamagedError("plan.parquet: damaged"), "plan.parquet: damaged"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device; mend the space or the rights"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: Permission denied; mend"),
        (NoCredentialsError("no keys"), "the object store: no keys; mend"),
    ],
)
def test_what_a_person_can_mend_ends_with_2_and_one_line(error, line, syn4seg, tmp_path, monkeypatch, traceback_folder):
    fail_with(error, monkeypatch)
    code, complaint = prompts(syn4seg, tmp_path)
    assert code == 2 and complaint.startswith(f"error: {line}") and complaint.count("\n") == 1
    assert list(traceback_folder.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("operands could not be\nbroadcast"),
        KeyError("dog"),
        OSError(errno.EISDIR, "Is a directory", "/x"),
        WorkerError("process 3 failed"),
    ],
)
def test_any_other_exception_ends_with_3_one_line_and_a_file_with_the_traceback(error, syn4seg, tmp_path, monkeypatch):
    fail_with(error, monkeypatch)
    code, complaint = prompts(syn4seg, tmp_path)
    assert code == 3 and complaint.count("\n") == 1 and "Traceback" not in complaint
    words = " ".join(str(error).split())
    assert complaint.startswith(f"error: a fault of this program, or of code that it was given: {type(error).__name__}: {words}; ")
    place = re.search(r"the traceback is in (\S+\.txt) ", complaint)
    assert place is not None
    text = Path(place[1]).read_text()
    assert text.startswith("Traceback") and "in raises" in text and text.rstrip().endswith(str(error))


def test_the_notes_and_causes_of_an_exception_are_in_the_file(traceback_folder):
    error = WorkerError("process 3 failed")
    error.add_note('File "nets.py", line 5, in tiny')
    error.__cause__ = KeyError("the first cause")
    assert describe_error(error)[0] == 3
    text = next(traceback_folder.iterdir()).read_text()
    assert "line 5, in tiny" in text and "the first cause" in text


def test_a_fault_without_a_message_and_one_with_a_very_long_one_are_still_one_line():
    assert "RuntimeError: no message; the traceback" in describe_error(RuntimeError())[1]
    assert len(describe_error(RuntimeError("x " * 9999))[1]) < 700


def test_debug_shows_the_traceback_and_writes_no_file(syn4seg, tmp_path, monkeypatch, traceback_folder):
    monkeypatch.setenv("SYN4SEG_DEBUG", "1")
    fail_with(ValueError("a fault"), monkeypatch)
    code, complaint = prompts(syn4seg, tmp_path)
    assert code == 3 and complaint.startswith("Traceback") and "in raises" in complaint
    assert complaint.splitlines()[-1].endswith("ValueError: a fault; the traceback is above")
    assert list(traceback_folder.iterdir()) == []


def test_a_mistake_in_a_backbone_of_the_user_is_no_user_error_and_its_line_is_in_the_file(syn4seg, tmp_path, monkeypatch):
    (tmp_path / "broken_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    keys = ("segmenter.backbone=broken_nets:tiny", "base.checkpoint=train", "data.train_images=300", "data.val_images=3")
    code, _, complaint = syn4seg("run", *keys, "prompts.bank_size=1", "synthesis.images_per_class=1", "placement.runner=inline")
    assert code == 3 and complaint.count("\n") == 1
    assert "ValueError: operands could not be broadcast together with shapes (3,) (4,)" in complaint
    place = re.search(r"the traceback is in (\S+\.txt) ", complaint)
    assert place is not None
    text = Path(place[1]).read_text()
    assert "broken_nets.py" in text and "np.ones(3) + np.ones(4)  # the user's own mistake" in text


def test_an_interrupt_ends_with_130_and_its_own_words(syn4seg, tmp_path, monkeypatch, traceback_folder):
    def interrupts(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunDir, "open", interrupts)
    assert prompts(syn4seg, tmp_path) == (130, "stopped; the same command goes on from here\n")
    fail_with(Interrupted(""), monkeypatch)
    assert prompts(syn4seg, tmp_path) == (130, "")
    assert list(traceback_folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_interrupt(number):
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        catch_signals()
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)
    finally:
        for n, handler in handlers.items():
            signal.signal(n, handler)


def test_an_interrupt_that_compiled_code_has_wrapped_is_still_an_interrupt(syn4seg, tmp_path, monkeypatch, traceback_folder):
    def wraps(*_):
        try:
            raise Interrupted("stopped; the same command goes on from here")
        except Interrupted as stop:
            raise SystemError("<method> returned a result with an exception set") from stop

    monkeypatch.setattr(RunDir, "open", wraps)
    assert prompts(syn4seg, tmp_path) == (130, "stopped; the same command goes on from here\n")
    assert list(traceback_folder.iterdir()) == []
