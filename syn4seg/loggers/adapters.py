"""One small class per logger: TensorBoard, MLflow, Weights & Biases. Their packages are imported with the first number."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from syn4seg.loggers.points import CurvePoint

Status = Literal["finished", "failed", "stopped"]
"""How a command has ended."""


class Logger(Protocol):
    """Takes the numbers of a run; any error that it raises ends it, and nothing else."""

    def write(self, points: list[CurvePoint]) -> None:
        """Write new points, in the order of their lines."""
        ...

    def close(self, status: Status) -> None:
        """Finish, after the command has ended."""
        ...


class TensorBoard:
    """Event files in RUN/tensorboard: one more for each command that writes numbers. They do not contain the host name."""

    def __init__(self, folder: Path):
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        modules: Any = event_pb2, summary_pb2  # protobuf makes their classes at run time
        self.event, self.summary = modules[0].Event, modules[1].Summary
        name = f"events.out.tfevents.{time.time():.0f}.{len(list(folder.iterdir())):04d}"  # readers sort the files by name
        self.file = RecordWriter(str(folder / name))
        self._write(self.event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, points: list[CurvePoint]) -> None:
        """Write one event per point."""
        for point in points:
            values = [self.summary.Value(tag=tag, simple_value=value) for tag, value in point.values.items()]
            self._write(self.event(wall_time=point.time, step=point.step, summary=self.summary(value=values)))
        self.file.flush()

    def _write(self, event: Any) -> None:
        self.file.write(event.SerializeToString())

    def close(self, status: Status) -> None:
        """Close the file."""
        self.file.close()


class MLflow:
    """One MLflow run per run directory, identified by its tag `syn4seg.run`; MLflow's own settings say where it is stored.

    Args:
        token: the value of the tag.
        name: of the run.
        params: see `flat_parameters`.
    """

    CHUNK = 100
    """Parameters, or metrics, per call; MLflow's limits are 100 parameters and 1000 metrics."""

    def __init__(self, token: str, name: str, params: dict[str, Any]):
        self.mlflow = importlib.import_module("mlflow")
        self.client = self.mlflow.MlflowClient()
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "syn4seg")
        experiment = self.client.get_experiment_by_name(title)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(title)
        runs = self.client.search_runs([experiment_id], filter_string=f"tags.`syn4seg.run` = '{token}'")
        if runs:
            self.run = runs[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            return
        self.run = self.client.create_run(experiment_id, run_name=name, tags={"syn4seg.run": token}).info.run_id
        self._log("params", [self.mlflow.entities.Param(key, str(value)) for key, value in params.items()])

    def _log(self, kind: str, entities: list[Any]) -> None:
        for start in range(0, len(entities), self.CHUNK):
            self.client.log_batch(self.run, **{kind: entities[start : start + self.CHUNK]})

    def write(self, points: list[CurvePoint]) -> None:
        """Write one metric per number, with times in milliseconds."""
        metric = self.mlflow.entities.Metric
        self._log("metrics", [metric(tag, v, round(1000 * p.time), p.step) for p in points for tag, v in p.values.items()])

    def close(self, status: Status) -> None:
        """Set MLflow's status."""
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
"""Settings that keep the machine, the code and the terminal out of W&B, and the run apart from runs that the user has open."""


class WandB:
    """One Weights & Biases run per run directory; its own variables (WANDB_MODE, WANDB_PROJECT, WANDB_DIR...) apply.

    W&B's steps are line numbers, because they must never decrease; the value `step` is the point's own.

    Args:
        token: the id of the run.
        name, params: as of `MLflow`.
        folder: for its files, unless WANDB_DIR is set; None: W&B's default.
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

    def write(self, points: list[CurvePoint]) -> None:
        """Write one row per point."""
        for point in points:
            self.run.log({**point.values, "step": point.step}, step=point.line)

    def close(self, status: Status) -> None:
        """Send the rows that remain, and the exit code."""
        self.run.finish(exit_code=0 if status == "finished" else 1)
