"""The sections of the configuration that change no result: where a run is computed, and who watches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from syn4seg.config.sections import Count, Section, Share, Whole


class PoolConfig(Section):
    size: Count = 1
    """Actors of this stage."""
    batch: Count = 16
    """Rows per call."""
    cpus: Annotated[float, Field(ge=0)] = 0.25
    """Logical CPUs per actor."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per actor, whole or a fraction."""
    max_size: Count | None = None
    """Grow the pool up to this many actors while it runs, when nodes join; empty: always `size`."""
    accelerator: str | None = None
    """Only on nodes with this accelerator, as Ray names it (`A100`, `L4`, ...)."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom resources per actor, as the nodes declare them: `{synth: 1}`."""

    @model_validator(mode="after")
    def _grows(self) -> PoolConfig:
        if self.max_size is not None and self.max_size < self.size:
            raise ValueError(f"max_size={self.max_size} is less than size={self.size}; raise it, or leave it empty")
        return self


class TrainingConfig(Section):
    workers: Whole = 0
    """Ray Train workers of base stage, novel stage and evaluation; 0: in the process of the command itself."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs per worker."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per worker."""
    accelerator: str | None = None
    """Only on nodes with this accelerator."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom resources per worker."""
    readers: Whole = 0
    """Processes per worker that read and augment images ahead of base stage and joint stage; 0: the worker itself. Those of Ray
    Train workers are actors of Ray Data, with a CPU each on any node."""
    max_failures: Whole = 3
    """How often lost workers are replaced; training goes on from its last checkpoint."""


class TrialConfig(Section):
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs per trial of a sweep."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per trial: a fraction lets several trials share one."""
    accelerator: str | None = None
    """Only on nodes with this accelerator."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom resources per trial."""


class PlacementConfig(Section):
    runner: Literal["ray", "inline"] = "ray"
    """`ray`: streamed through actors. `inline`: the same classes chained in one process; the same bytes."""
    address: str = "here"
    """Ray cluster. `here`: that of the Ray job which this command is, else as `local`; `local` starts one on this machine, on
    loopback only; `auto` or HOST:PORT joins a running one."""
    sizes: Literal["fixed", "auto"] = "fixed"
    """`fixed`: the size of every pool as given. `auto` (also `placement=auto`): measure each stage on a few samples, then
    share out the cluster's GPUs and CPUs so that no stage starves."""
    fused: bool | Literal["auto"] = "auto"
    """Whether every actor of the stream holds all stages, instead of a pool of actors for each. `auto`: on a Ray that is started
    here, if no stage asks for a GPU, for more than one actor, or for anything else of its own."""
    encoding: PoolConfig = PoolConfig(cpus=1)
    """The short-lived actor of the text encoders (and of a local language model)."""
    synthesis: PoolConfig = PoolConfig()
    """Generator actors; `batch` is rounded up to whole generator batches."""
    labeling: PoolConfig = PoolConfig()
    """Feature extractor actors (draft, APF, APR)."""
    refinement: PoolConfig = PoolConfig()
    """SAM actors (SABR)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU for pools with `gpus` above 0, else the CPU; training takes a GPU if there is one."""
    training: TrainingConfig = TrainingConfig()
    """Base stage, novel stage and evaluation."""
    trial: TrialConfig = TrialConfig()
    """The trials of a sweep (`syn4seg sweep`); how many run at a time says --concurrency."""
    max_quarantined: Share = 0.5
    """Stop when more than this share of the samples that have ended (64 at least) is quarantined by faults."""
    row_deadline: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that one row may spend in one stage under Ray (a generator batch: per image; loading a model does not count). Then
    its process ends itself and the call is repeated; a row that does so again and again is quarantined."""
    object_store_gib: Annotated[float, Field(ge=0.1)] | None = None
    """Object store in GiB: its size with `local` (1 when empty), what the stream may fill of the cluster's otherwise (30 % of it
    when empty). Slow stages hold fast ones back before it is full."""

    @property
    def is_pooled(self) -> bool:
        """Whether a stage asks for something of its own: a GPU, actors, a kind of node; or its pool is to be measured."""
        alike = [
            pool.model_copy(update={"batch": 1, "cpus": 1.0}) == PoolConfig(batch=1, cpus=1.0)
            for pool in (self.synthesis, self.labeling, self.refinement)
        ]
        return self.sizes == "auto" or not all(alike)

    @model_validator(mode="after")
    def _has_one_shape(self) -> PlacementConfig:
        if self.fused is True and self.is_pooled:
            raise ValueError(
                "fused=true puts all stages into every actor, but a stage has a pool of its own (sizes=auto, or a size, max_size, "
                "gpus, accelerator or resources of synthesis, labeling or refinement); leave those out, or set fused=false"
            )
        return self


class LoggingConfig(Section):
    to: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Where the numbers of metrics.jsonl are shown while the run goes on: `tensorboard` (RUN/tensorboard; not for runs in an object
    store), `mlflow` and `wandb` (if installed; their own environment variables hold). `[]`: nowhere else."""
