"""Predictions under Ray Data: a pool of actors that take whole chunks of images; the same bytes for any number of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from actors.cluster import check_shared, connect, node_resources
from actors.failures import Failure, local_error
from actors.streaming import configure_ray_data, plan_dataset
from syn4seg.config.placement import PlacementConfig
from syn4seg.errors import UserError, WorkerError
from syn4seg.trained.inputs import ImageSource
from syn4seg.trained.prediction import ChunkPredictor, Line, PredictionOptions, decode_sources, encode_sources

MANY = 4000
"""Images from which on `--runner auto` takes Ray: below, starting it costs more than it gains."""
CONSTRUCTOR = ("model", "to", "options", "device")


class PredictionActor:
    """A `ChunkPredictor` in an actor; it loads with its first chunk, and an error travels as data, since Ray would make it text."""

    def __init__(self, model: str, to: str, options: PredictionOptions, device: str):
        self.arguments = model, to, options, device
        self.predict: ChunkPredictor | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predict chunks: column `sources` in, columns `lines` and `failure` (JSON) out."""
        lines, failures = [], []
        for text in batch["sources"]:
            found, failure = [], ""
            try:
                if self.predict is None:
                    self.predict = ChunkPredictor(*self.arguments)
                found = self.predict(decode_sources(str(text)))
            except Exception as error:  # noqa: BLE001 - the driver ends the command with it
                failure = json.dumps(asdict(Failure.of(error)))
            lines.append(json.dumps(found))
            failures.append(failure)
        return {"lines": np.array(lines, object), "failure": np.array(failures, object)}


def start_ray(address: str, workers: int | None, to: str, inputs: dict[str, str]) -> tuple[int, float]:
    """Join or start Ray; return how many actors predict, and how many GPUs each has.

    Args:
        address: as `placement.address`.
        workers: as asked for; None: one per GPU, or on nodes without one as many as leave a CPU for reading.
        inputs: files that every node must see, by what names them.

    Raises:
        UserError: Ray does not start, some node does not see the files, or so many actors do not fit.
    """
    connect(PlacementConfig(address=address))
    check_shared(to, inputs)
    nodes = node_resources()
    gpus, cpus = (int(sum(node.get(key, 0) for node in nodes)) for key in ("GPU", "CPU"))
    room = min(gpus, cpus - 1) if gpus else cpus - 1
    if room < 1 or (workers or 1) > room:
        raise UserError(
            f"--workers {workers or 1}: the cluster has {gpus} GPUs and {cpus} CPUs, room for {max(room, 0)} of them (one GPU, or "
            "without GPUs one CPU each, and one CPU for reading); ask for fewer, or use --runner inline"
        )
    return workers or room, 1.0 if gpus else 0.0


def predict_chunks(
    chunks: list[list[ImageSource]], model: str, to: str, options: PredictionOptions, device: str, workers: int, gpus: float
) -> Iterator[list[Line]]:
    """Yield the lines of every chunk as its files are written, in any order.

    Args:
        model, to: absolute paths or URLs.

    Raises:
        UserError: an actor raises one, or is lost too often.
        WorkerError: it fails otherwise.
    """
    import ray.exceptions
    from ray.data import ActorPoolStrategy

    configure_ray_data(None)
    rows = pa.table({"sources": [encode_sources(chunk) for chunk in chunks]})
    stream = plan_dataset(rows, 1).map_batches(
        PredictionActor,
        fn_constructor_kwargs=dict(zip(CONSTRUCTOR, (model, to, options, device), strict=True)),
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=min(workers, max(1, len(chunks)))),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    try:
        for batch in stream.iter_batches(batch_size=None, batch_format="numpy"):
            yield from _lines(dict(batch))  # pyright: ignore[reportArgumentType, reportCallIssue]
    except ray.exceptions.RayError as error:
        raise local_error("the prediction", error) from error


def _lines(batch: dict[str, Any]) -> Iterable[list[Line]]:
    for lines, failure in zip(batch["lines"], batch["failure"], strict=True):
        if failure:
            facts = Failure(**json.loads(str(failure)))
            raise UserError(facts.line) if facts.mendable else WorkerError(f"the prediction failed: {facts.line}")
        yield json.loads(str(lines))
