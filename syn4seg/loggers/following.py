"""Loggers: the numbers of a run in TensorBoard, MLflow or Weights & Biases, live, from its metrics.jsonl.

A logger follows the file metrics.jsonl as `tail -f` does, in a thread of the driver, and never sees the run itself: it cannot
stop it, slow it down or change it. RUN/logging/NAME.json, which its thread alone writes, says how far it has come. So the next
command goes on there, a logger chosen later begins with the first line, and who deletes that file (for TensorBoard also
RUN/tensorboard/) gets everything anew. A point's step is its epoch, its step, or what is done; else the number of its line.
A line is written again, with the same numbers at the same steps, only where a process died in between.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.loggers.adapters import Logger, MLflow, Status, TensorBoard, WandB
from syn4seg.loggers.points import parameters, point
from syn4seg.store.files import exists, is_local, read_bytes, read_json, write_json

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath
    from syn4seg.store.rundir import RunDir

PACKAGES = {"tensorboard": ("tensorboardX", "tensorboardX"), "mlflow": ("mlflow", "mlflow-skinny"), "wandb": ("wandb", "wandb")}
"""Logger -> module and what to install."""
POLL_SECONDS, STORE_POLL_SECONDS = 2.0, 30.0
"""How often a logger looks for new lines, in a folder and in an object store (which is read whole)."""
CLOSE_SECONDS = 30.0
"""How long a command waits for its loggers at the end (a sixth of it after Ctrl-C); the next command tells what is left."""


def check_loggers(config: Config) -> None:
    """Refuses a logger whose package is not installed.

    Raises:
        UserError: with the command that installs it.
    """
    for name in config.logging.to:
        module, package = PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"logging.to={name}: the package {module} is not installed; pip install {package}, or take {name} out of logging.to"
            )


@contextlib.contextmanager
def following(config: Config, run: RunDir, note: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, the loggers of `logging.to` follow the run's metrics.jsonl; for the driver alone.

    Args:
        note: takes one line of warning.
    """
    followers = []
    for name in config.logging.to:
        if name == "tensorboard" and not is_local(run.root):
            note("logging.to=tensorboard: skipped, since the run is in an object store; metrics.jsonl there has the numbers")
        else:
            followers.append(Follower(config, run, name, note))
    status: Status = "stopped"
    try:
        yield
        status = "finished"
    except Exception:
        status = "failed"
        raise
    finally:
        deadline = time.monotonic() + (CLOSE_SECONDS / 6 if status == "stopped" else CLOSE_SECONDS)
        for follower in followers:
            follower.end(status)
        for follower in followers:
            follower.join(deadline)


class Follower:
    """The thread of one logger. It begins at once; the logger is opened with the first number that there is for it."""

    def __init__(self, config: Config, run: RunDir, name: str, note: Callable[[str], None]):
        self.config, self.run, self.name, self.note = config, run, name, note
        self.place_file = run.root / "logging" / f"{name}.json"
        self.poll = POLL_SECONDS if is_local(run.root) else STORE_POLL_SECONDS
        self.logger: Logger | None = None
        self.status: Status = "stopped"
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._work, name=f"logging-{name}", daemon=True)
        self.thread.start()

    def end(self, status: Status) -> None:
        """The command has ended: what is there by now is the last to be told."""
        self.status = status
        self.ending.set()

    def join(self, deadline: float) -> None:
        """Waits for the thread until `deadline` (of the monotonic clock)."""
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self.note(f"warning: logging.to={self.name} has not told everything yet; the next command of this run does")

    def _work(self) -> None:
        try:
            place = read_json(self.place_file) if exists(self.place_file) else {}
            place = {"id": secrets.token_hex(8), "bytes": 0, "lines": 0} | place
            last = False
            while not last:
                last = self.ending.wait(self.poll)
                self._catch_up(place)
            if self.logger is not None:
                self.logger.close(self.status)
        except Exception as error:  # noqa: BLE001 - whatever a logger's library raises, the run goes on
            said = re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()))[:200]
            self.note(
                f"warning: logging.to={self.name} has stopped ({type(error).__name__}: {said}); the run goes on, and "
                "metrics.jsonl has everything"
            )

    def _catch_up(self, place: dict[str, Any]) -> None:
        """Tells the lines that are new since `place`, and moves it on."""
        data = _read_from(self.run.metrics, place["bytes"])
        if data is None:  # the file is shorter than it was: it is another one
            place.update(bytes=0, lines=0)
            data = _read_from(self.run.metrics, 0) or b""
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        if not lines:
            return
        found = [made for i, line in enumerate(lines) if (made := point(line, place["lines"] + i)) is not None]
        if found:
            if self.logger is None:
                write_json(self.place_file, place)  # the id, before anything has it
                self.logger = self._open(place["id"])
            self.logger.write(found)
        place.update(bytes=place["bytes"] + data.rfind(b"\n") + 1, lines=place["lines"] + len(lines))
        write_json(self.place_file, place)

    def _open(self, token: str) -> Logger:
        root, name, params = self.run.root, self.config.name, parameters(self.config)
        if self.name == "tensorboard":
            assert isinstance(root, Path), "`following` leaves it out elsewhere"
            return TensorBoard(root / "tensorboard")
        if self.name == "mlflow":
            return MLflow(token, name, params)
        return WandB(token, name, params, root if isinstance(root, Path) else None)


def _read_from(path: AnyPath, start: int) -> bytes | None:
    """The bytes of a file behind `start`; None if it is shorter, a file that is not there counting as empty."""
    try:
        if not isinstance(path, Path):
            data = read_bytes(path)
            return data[start:] if len(data) >= start else None
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(min(start, size))
            return file.read() if size >= start else None
    except FileNotFoundError:
        return b"" if start == 0 else None
