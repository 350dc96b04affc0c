"""Commands that are killed at a named step, with their whole process group; `tests/test_kills.py` says what must come of it.

    python -m tests.kills        (reads jobs from standard input, one JSON each line, and answers each with one line)

A step is a file below the job's folder that Python opens for writing, renames or deletes, or a folder that it makes. SIGKILL comes
`delay` seconds after the step is reached: with 0 just before it happens, else in the middle of what follows. Each job runs in a
process of its own, forked from this one, which has imported what takes long and has done nothing else.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = (
    "syn4seg.cli",
    "syn4seg.data.prepare",
    "syn4seg.exports.coco",
    "syn4seg.exports.folders",
    "syn4seg.exports.sharded",
    "syn4seg.exports.writing",
    "syn4seg.report.compare",
    "syn4seg.report.page",
    "syn4seg.report.sweep",
    "syn4seg.terminal",
    "scipy.io",
    "tune.records",
    "tune.validation",
    "tests.shared_study",
    "optuna",
    "tensorboardX",
)
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link")
LIMIT = 300
"""Seconds after which a job that does not end is ended."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Steps:
    """An audit hook that counts the steps below a folder, and kills this process group at one of them."""

    def __init__(self, folder: str, step: int | None, delay: float):
        self.folder, self.step, self.delay = folder, step, delay
        self.numbers, self.done, self.struck = itertools.count(), 0, False

    def __call__(self, event: str, args: tuple) -> None:
        """Look at one event of Python."""
        written = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if not (written or event in EVENTS) or not isinstance(args[0], str | os.PathLike):
            return
        if not os.path.abspath(args[0]).startswith(self.folder):
            return
        number = next(self.numbers)
        self.done = max(self.done, number + 1)
        if number == self.step:
            self.struck = True
            if self.delay:
                threading.Timer(self.delay, os.killpg, (0, signal.SIGKILL)).start()
            else:
                os.killpg(0, signal.SIGKILL)


class Ended(NamedTuple):
    """How a job ended.

    Attributes:
        code: exit code, -9 when it was killed.
        steps: how many it had; 0 when it was killed.
        said: what it printed.
    """

    code: int
    steps: int
    said: str


class Jobs:
    """The process that forks the jobs."""

    def __init__(self, folder: Path):
        self.said = folder / "said"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, words: list[Any], folder: Path, step: int | None = None, delay: float = 0.0) -> Ended:
        """Run `syn4seg WORDS`, or ["MODULE:FUNCTION", ...] with words as arguments; kill it at a step below `folder`."""
        job = {"words": [str(word) for word in words], "folder": str(folder), "step": step, "delay": delay, "said": str(self.said)}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Ended(answer["code"], answer["steps"], self.said.read_text())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def work(job: dict[str, Any], answer: int) -> None:
    """Do a job in a process of its own; write the number of its steps to `answer`."""
    os.setsid()
    signal.alarm(LIMIT)
    said = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    steps, code = Steps(job["folder"], job["step"], job["delay"]), 0
    sys.addaudithook(steps)
    first, *words = job["words"]
    try:
        if ":" in first:
            module, _, name = first.partition(":")
            getattr(importlib.import_module(module), name)(*words)
        else:
            sys.argv = ["syn4seg", first, *words]
            sys.modules["syn4seg.cli"].main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    sys.stdout.flush()
    if steps.struck:
        time.sleep(60)
    os.write(answer, str(steps.done).encode())
    os._exit(code)


def main() -> None:
    """Answer jobs until standard input ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                work(json.loads(line), write)
            finally:
                sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
                os._exit(1)
        os.close(write)
        with os.fdopen(read) as pipe:
            steps = pipe.read()
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "steps": int(steps or 0)}), flush=True)


if __name__ == "__main__":
    main()
