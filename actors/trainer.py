"""The novel stage fed by a stream: finished labels come through Ray, features are cached as they arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actors.columns import Batch, column, texts
from syn4seg.rundir import RunDir
from syn4seg.schema import LABEL_STAGES
from syn4seg.stages.novel import NovelStage, read_rows, rows_of
from syn4seg.stages.setup import draws_of

if TYPE_CHECKING:
    from actors.pipeline import Pipeline


class LabelReader:
    """Reads finished samples from the run directory: images and every stage's label."""

    reads = ("sample_id", "class_id", "bank")
    adds = ("image", "reason", *LABEL_STAGES)

    def __init__(self, run: str, draw: int, names: tuple[str, ...]):
        self.run, self.draw, self.names = RunDir(run), draw, names

    def __call__(self, rows: Batch) -> Batch:
        plan = [{key: rows[key][i] for key in self.reads} for i in range(len(rows["sample_id"]))]
        found = read_rows(self.run, self.draw, self.names, plan)
        arrays = {
            key: column(found[key]) if found[key] else np.zeros((0, 1, 1), np.uint8) for key in ("image", *LABEL_STAGES)
        }
        return arrays | {key: texts([str(v) for v in found[key]]) for key in ("sample_id", "bank", "reason")}


def train_and_evaluate(pipeline: Pipeline, evaluate: bool) -> dict[int, dict[str, np.ndarray]]:
    """Caches features while labels stream in, trains all rows of all draws, and scores them on the queries."""
    config, display = pipeline.config, pipeline.display
    stage = NovelStage(config, pipeline.run, pipeline.dataset, pipeline.fold)
    draws, rows = draws_of(config), rows_of(config)
    with display.bar("novel stage") as progress:
        finished = 0

        def one_more(_: str) -> None:
            nonlocal finished
            finished += 1
            progress(finished, len(draws) * len(rows))

        progress(0, len(draws) * len(rows))
        for draw in draws:
            if not all(pipeline.run.draw(draw).checkpoint(row).is_file() for row in rows):
                for batch in pipeline.labels(draw):
                    stage.add(draw, batch)
            stage.train(draw, one_more)
    if not evaluate:
        return {}
    with display.bar("queries") as progress:
        return stage.evaluate(progress)
