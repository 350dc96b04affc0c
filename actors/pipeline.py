"""The verbs in order: prompts, synthesis, labels, novel stage, evaluation; streamed through Ray or inline, resumable."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.cluster import check_shared
from actors.encoder import prompt_agent, text_encoder
from actors.graph import check_placement, stream
from actors.placement import Stage
from actors.streaming import run_stream
from actors.trainer import LabelReader, train_and_evaluate
from syn4seg.config import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.rundir import RunDir
from syn4seg.sections import Pool
from syn4seg.stages.base import make_base
from syn4seg.stages.novel import NovelStage, free_gpu, load_classifier, read_rows, rows_of
from syn4seg.stages.plan import make_plan, planned
from syn4seg.stages.results import write_manifest, write_results
from syn4seg.stages.setup import draws_of


class Display(Protocol):
    """What the verbs tell the person at the terminal."""

    def note(self, text: str) -> None:
        """One line."""
        ...

    def bar(self, title: str) -> contextlib.AbstractContextManager[Callable[..., None]]:
        """A progress bar; the callable takes (done, total) and, for streams, the reasons so far."""
        ...

    def funnel(self, draw: int, reasons: Counter) -> None:
        """How many samples a draw accepted, and why the others were not."""
        ...

    def results(self, results: dict[str, Any]) -> None:
        """The table at the end."""
        ...


class Pipeline:
    """One run: every stage is a method that does what is still missing and nothing else."""

    def __init__(self, config: Config, run: RunDir, dataset: Dataset, fold: Fold, display: Display):
        self.config, self.run, self.dataset, self.fold, self.display = config, run, dataset, fold, display
        self.names = fold.index_names

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.time()
        yield
        self.run.log(stage=stage, seconds=time.time() - started)

    def check(self) -> None:
        """Joins Ray and refuses an impossible placement, or files that some node does not see, before anything is made."""
        check_placement(self.config)
        if self.config.placement.runner == "ray":
            named = {"synthesis.model": self.config.synthesis.model, "synthesis.root": self.config.synthesis.root,
                     "refinement.model": self.config.refinement.model}  # fmt: skip
            check_shared(str(self.run.root), {key: str(value) for key, value in named.items() if value})

    def prompts(self) -> None:
        """The prompt bank, its embeddings, and the plan; the text encoders live only while something is to be encoded."""
        given = self.config, self.run, self.fold, self.display.note
        with self._timed("prompts"):
            if self.run.plan.is_file():
                return
            if self.config.synthesis.source == "folder":
                make_plan(*given, None, None)
                return
            with text_encoder(self.config) as encoder:
                make_plan(*given, prompt_agent(self.config, encoder), encoder)

    def synthesize(self) -> Counter:
        """Images only."""
        self.prompts()
        with self._timed("synthesize"), self.display.bar("images") as progress:
            return stream(self.config, self.run, self.names, None, progress, self.display.note)

    def base(self) -> None:
        """The base checkpoint."""
        shown = self.config.base.checkpoint == "train" and not self.run.base.is_file()
        bar = self.display.bar("base stage") if shown else contextlib.nullcontext(lambda *_: None)
        with self._timed("base"), bar as progress:
            make_base(self.config, self.run, self.dataset, self.fold, progress)

    def refine(self) -> dict[int, Counter]:
        """Support registration, then images and all four labels of every draw; writes the manifests."""
        self.prompts()
        self.base()
        found = {}
        with self._timed("register"):
            stage = NovelStage(self.config, self.run, self.dataset, self.fold)
            for draw in draws_of(self.config):
                stage.register(draw)
            del stage
            free_gpu()
        for draw in draws_of(self.config):
            with self._timed("labels"), self.display.bar(f"labels, draw {draw}") as progress:
                stream(self.config, self.run, self.names, draw, progress, self.display.note)
            found[draw] = write_manifest(self.run, draw)
        return found

    def finished_rows(self, draw: int) -> pa.Table:
        """Plan rows whose samples have a record in this draw, and where what is to be read of them lies.

        Raises:
            ValueError: some have none.
        """
        plan = planned(self.run).select(["sample_id", "class_id", "bank"])
        done = self.run.draw(draw).complete()["sample_id"]
        missing = plan.num_rows - pc.sum(pc.is_in(plan["sample_id"], done.combine_chunks())).as_py()
        if missing:
            raise ValueError(f"{self.run.root}: {missing} of {plan.num_rows} samples of draw {draw} have no label yet; run "
                             "`syn4seg refine` (or `syn4seg run`) with the same configuration first")  # fmt: skip
        for key, places in (("image_at", self.run.samples.images()), ("label_at", self.run.samples.places(draw))):
            index = pc.index_in(plan["sample_id"], places["sample_id"].combine_chunks())
            plan = plan.append_column(key, pc.fill_null(places[key].take(index), ""))
        return plan

    def labels(self, draw: int) -> Iterator[dict[str, Any]]:
        """Finished samples in batches, read by Ray Data (or here, inline)."""
        rows = self.finished_rows(draw)
        reader = Stage(LabelReader, {"run": self.run.address, "draw": draw, "names": self.names},
                       Pool(batch=32, cpus=0.25), "reading")  # fmt: skip
        if self.config.placement.runner == "ray":
            yield from run_stream(rows, [reader], 32)
        else:
            for start in range(0, rows.num_rows, 32):
                yield read_rows(self.run, draw, self.names, rows.slice(start, 32).to_pylist())

    def train(self, evaluate: bool = True) -> dict[str, Any] | None:
        """The novel stage of every row and draw, and (by default) the evaluation; returns results.json."""
        for draw in draws_of(self.config):
            self.finished_rows(draw)
        with self._timed("novel"):
            matrices = train_and_evaluate(self, evaluate)
        return self._scored(matrices) if evaluate else None

    def _scored(self, matrices: dict[int, dict[str, np.ndarray]]) -> dict[str, Any]:
        unpublished = getattr(self.dataset, "unpublished", ())
        return write_results(self.run, self.config, self.fold, matrices, unpublished)

    def evaluate(self) -> dict[str, Any]:
        """Scores the classifiers that are there.

        Raises:
            ValueError: one has not been trained yet.
        """
        for draw in draws_of(self.config):
            for row in rows_of(self.config):
                load_classifier(self.run.draw(draw).checkpoint(row))
        stage = NovelStage(self.config, self.run, self.dataset, self.fold)
        with self._timed("evaluate"), self.display.bar("queries") as progress:
            matrices: dict[int, dict[str, np.ndarray]] = stage.evaluate(progress)
        return self._scored(matrices)
