"""The images of base stage and joint stage under Ray Data: a pool of reader actors, on any node, makes each step's views ahead.

Every process that trains has a dataset of its own, whose blocks come in order: `streaming_split` would hand blocks to whoever asks
first, and a step's images would depend on timing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pyarrow as pa

from actors.failures import Failure, local_error
from actors.streaming import configure_ray_data, plan_dataset
from syn4seg.errors import UserError, WorkerError
from syn4seg.segmenter.novel import Kind
from syn4seg.segmenter.views import StepViews, ViewBatch, ViewStream, read_here
from syn4seg.stages.readers import READ_AHEAD

STEPS_PER_BLOCK = 4
"""Steps of one task of a reader."""


class ViewReader:
    """`StepViews` in an actor; an error travels as data, since Ray would make it text."""

    def __init__(self, views: StepViews):
        self.views = views

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make the views of one step: column `step` (1,) in; `image`, `label`, `kind` and `failure` (N, ...) out, a row a view."""
        try:
            views = self.views[int(batch["step"][0])]
        except Exception as error:  # noqa: BLE001 - the trainer raises it
            failure = json.dumps(asdict(Failure.of(error)))
            empty = np.zeros((1, 1, 1, 3), np.uint8)
            return {"image": empty, "label": empty[..., 0], "kind": np.array([""]), "failure": np.array([failure])}
        count = len(views.kinds)
        return {"image": views.images, "label": views.labels, "kind": np.array(views.kinds), "failure": np.array([""] * count)}


def read_with_ray(views: StepViews, readers: int) -> ViewStream:
    """Return what yields the batches of a range of steps, made ahead by `readers` actors with a CPU each, 0: here; the same bytes.

    Raises (where it is iterated):
        UserError: a reader raised it, or readers were lost too often.
        WorkerError: a reader failed otherwise.
    """

    if not readers:
        return read_here(views)

    def batches(steps: range) -> Iterator[ViewBatch]:
        import ray.exceptions
        from ray.data import ActorPoolStrategy

        if not steps:
            return
        configure_ray_data(None)
        stream = plan_dataset(pa.table({"step": list(steps)}), STEPS_PER_BLOCK)
        stream.context.execution_options.preserve_order = True
        stream = stream.map_batches(
            ViewReader,
            fn_constructor_kwargs={"views": views},
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=readers),
            num_cpus=1,
        )
        count = views.count(steps.start)
        try:
            for batch in stream.iter_batches(batch_size=count, batch_format="numpy", prefetch_batches=READ_AHEAD):
                yield _batch_of(cast("dict[str, Any]", batch))
        except ray.exceptions.RayError as error:
            raise local_error("the readers of the training", error, remedy="give them memory, or fewer of them") from error

    return batches


def _batch_of(batch: dict[str, Any]) -> ViewBatch:
    for failure in batch["failure"]:
        if failure:
            facts = Failure(**json.loads(str(failure)))
            raise UserError(facts.line) if facts.mendable else WorkerError(f"the training failed to read: {facts.line}")
    kinds: list[Kind] = [cast("Kind", str(kind)) for kind in batch["kind"]]
    return ViewBatch(np.ascontiguousarray(batch["image"]), np.ascontiguousarray(batch["label"]), kinds)
