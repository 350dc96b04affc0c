"""The three loggers, one small class each. Their packages are imported when the first number is there; any error of theirs ends
them, and nothing else."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from syn4seg.loggers.points import Point

Status = Literal["finished", "failed", "stopped"]
"""How a command has ended."""


class Logger(Protocol):
    """Where points go."""

    def write(self, points: list[Point]) -> None:
        """Takes new points, in the order of their lines."""
        ...

    def close(self, status: Status) -> None:
        """The command has ended."""
        ...


class TensorBoard:
    """Event files in RUN/tensorboard: one more per command that has something to tell. No host name goes into them."""

    def __init__(self, folder: Path):
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        modules: Any = event_pb2, summary_pb2  # whose classes are made at run time
        self.event, self.summary = modules[0].Event, modules[1].Summary
        name = f"events.out.tfevents.{time.time():.0f}.{len(list(folder.iterdir())):04d}"  # readers go by these names, in order
        self.file = RecordWriter(str(folder / name))
        self._write(self.event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, points: list[Point]) -> None:
        """One event per point."""
        for found in points:
            told = [self.summary.Value(tag=tag, simple_value=value) for tag, value in found.values.items()]
            self._write(self.event(wall_time=found.time, step=found.step, summary=self.summary(value=told)))
        self.file.flush()

    def _write(self, event: Any) -> None:
        self.file.write(event.SerializeToString())

    def close(self, status: Status) -> None:
        """Closes the file."""
        self.file.close()


class MLflow:
    """One MLflow run per run directory, found again by its tag `syn4seg.run`; where it lies is MLflow's own setting.

    Args:
        token: the value of the tag.
        name: of the run.
        params: see `parameters`.
    """

    CHUNK = 100
    """Parameters, or metrics, per call; MLflow refuses more than 100 parameters and 1000 metrics."""

    def __init__(self, token: str, name: str, params: dict[str, Any]):
        self.mlflow = importlib.import_module("mlflow")
        self.client = self.mlflow.MlflowClient()
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "syn4seg")
        experiment = self.client.get_experiment_by_name(title)
        where = experiment.experiment_id if experiment else self.client.create_experiment(title)
        known = self.client.search_runs([where], filter_string=f"tags.`syn4seg.run` = '{token}'")
        if known:
            self.run = known[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            return
        self.run = self.client.create_run(where, run_name=name, tags={"syn4seg.run": token}).info.run_id
        given = [self.mlflow.entities.Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(given), self.CHUNK):
            self.client.log_batch(self.run, params=given[start : start + self.CHUNK])

    def write(self, points: list[Point]) -> None:
        """One metric per number."""
        made = [
            self.mlflow.entities.Metric(tag, value, round(1000 * found.time), found.step)
            for found in points
            for tag, value in found.values.items()
        ]
        for start in range(0, len(made), self.CHUNK):
            self.client.log_batch(self.run, metrics=made[start : start + self.CHUNK])

    def close(self, status: Status) -> None:
        """Sets MLflow's status."""
        self.client.set_terminated(self.run, {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[status])


PRIVATE = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "host": "",
    "quiet": True,
    "reinit": "create_new",
}
"""What W&B would send of the machine, the code and the terminal, turned off; and a run of our own beside any of the user's."""


class WandB:
    """One Weights & Biases run per run directory; its own variables (WANDB_MODE, WANDB_PROJECT, WANDB_DIR...) hold.

    Steps are line numbers, because theirs must never go back; `step` is the point's own. Nothing of the machine is sent.

    Args:
        token: the id of the run.
        name, params: as of `MLflow`.
        folder: where its files go, unless WANDB_DIR says so; None: where it likes.
    """

    def __init__(self, token: str, name: str, params: dict[str, Any], folder: Path | None):
        wandb = importlib.import_module("wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "syn4seg"),
            id=token,
            name=name,
            config=params,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or folder,
            settings=wandb.Settings(**PRIVATE),
        )

    def write(self, points: list[Point]) -> None:
        """One row per point."""
        for found in points:
            self.run.log({**found.values, "step": found.step}, step=found.line)

    def close(self, status: Status) -> None:
        """Sends what is left."""
        self.run.finish(exit_code=0 if status == "finished" else 1)
