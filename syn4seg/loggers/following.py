"""Loggers: the numbers of a run in TensorBoard, MLflow or Weights & Biases, live, from its metrics.jsonl.

A logger follows the file metrics.jsonl as `tail -f` does, in a thread of the driver, and has no access to the run: it cannot
stop, slow down or change it. RUN/logging/NAME.json, which only this thread writes, holds the position in the file. So the next
command continues there, and a logger that is added later begins with the first line. Delete that file (for TensorBoard also
RUN/tensorboard/) to write everything again. The step of a point is its epoch, its step, or the done of a pulse; else its line
number. A line is written twice, with the same numbers at the same steps, only if a process died in between.
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
from syn4seg.loggers.points import flat_parameters, parse_point
from syn4seg.store.files import exists, is_local, read_bytes, read_json, write_json

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath
    from syn4seg.store.rundir import RunDir

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""Logger -> module; the extra of this package that brings it has the logger's name, tensorboardX is always there."""
POLL_SECONDS, STORE_POLL_SECONDS = 2.0, 30.0
"""Seconds between two polls for new lines, in a folder and in an object store (where the whole file is read)."""
CLOSE_SECONDS = 30.0
"""How long a command waits for its loggers at the end (a sixth of it after Ctrl-C); the next command writes the rest."""


def check_loggers(config: Config) -> None:
    """Raise UserError, with the command that installs it, if the package of a logger in `logging.to` is not installed."""
    for name in config.logging.to:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            package = "tensorboardX" if name == "tensorboard" else f"'syn4seg-ray[{name}]'"
            raise UserError(
                f"logging.to={name}: the package {PACKAGES[name]} is not installed; pip install {package}, or take {name} out of "
                "logging.to"
            )


@contextlib.contextmanager
def run_loggers(config: Config, run: RunDir, note: Callable[[str], None]) -> Iterator[None]:
    """Let the loggers of `logging.to` follow the run's metrics.jsonl while the block runs; only in the driver.

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
            follower.stop(status)
        for follower in followers:
            follower.join(deadline)


class Follower:
    """The thread of one logger, which starts at once; the logger itself is opened with the first number for it."""

    def __init__(self, config: Config, run: RunDir, name: str, note: Callable[[str], None]):
        self.config, self.run, self.name, self.note = config, run, name, note
        self.position_file = run.root / "logging" / f"{name}.json"
        self.poll = POLL_SECONDS if is_local(run.root) else STORE_POLL_SECONDS
        self.logger: Logger | None = None
        self.status: Status = "stopped"
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._follow, name=f"logging-{name}", daemon=True)
        self.thread.start()

    def stop(self, status: Status) -> None:
        """Write the lines that are there by now, and end the thread."""
        self.status = status
        self.stopping.set()

    def join(self, deadline: float) -> None:
        """Wait for the thread until `deadline` (of the monotonic clock), and warn if it has not ended by then."""
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self.note(f"warning: logging.to={self.name} has not told everything yet; the next command of this run does")

    def _follow(self) -> None:
        try:
            stored = read_json(self.position_file) if exists(self.position_file) else {}
            position = {"id": secrets.token_hex(8), "bytes": 0, "lines": 0} | stored
            stopping = False
            while not stopping:
                stopping = self.stopping.wait(self.poll)
                self._write_new(position)
            if self.logger is not None:
                self.logger.close(self.status)
        except Exception as error:  # noqa: BLE001 - whatever a logger's library raises, the run goes on
            message = re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()))[:200]
            self.note(
                f"warning: logging.to={self.name} has stopped ({type(error).__name__}: {message}); the run goes on, and "
                "metrics.jsonl has everything"
            )

    def _write_new(self, position: dict[str, Any]) -> None:
        """Write the points of the lines after `position`, and advance it."""
        data = _read_from(self.run.metrics, position["bytes"])
        if data is None:  # the file is shorter than before: another one has replaced it
            position.update(bytes=0, lines=0)
            data = _read_from(self.run.metrics, 0) or b""
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        if not lines:
            return
        points = [point for i, line in enumerate(lines, position["lines"]) if (point := parse_point(line, i)) is not None]
        if points:
            if self.logger is None:
                write_json(self.position_file, position)  # store the id before a logger uses it
                self.logger = self._open(position["id"])
            self.logger.write(points)
        position.update(bytes=position["bytes"] + data.rfind(b"\n") + 1, lines=position["lines"] + len(lines))
        write_json(self.position_file, position)

    def _open(self, token: str) -> Logger:
        root, name, params = self.run.root, self.config.name, flat_parameters(self.config)
        if self.name == "tensorboard":
            assert isinstance(root, Path), "`run_loggers` leaves it out elsewhere"
            return TensorBoard(root / "tensorboard")
        if self.name == "mlflow":
            return MLflow(token, name, params)
        return WandB(token, name, params, root if isinstance(root, Path) else None)


def _read_from(path: AnyPath, start: int) -> bytes | None:
    """Return the bytes of a file from `start`; None if the file is shorter. A missing file counts as empty."""
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
