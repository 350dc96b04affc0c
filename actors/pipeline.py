"""The verbs in order: prompts, synthesis, labels, novel stage, evaluation; streamed through Ray or inline, resumable."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc

from actors.cluster import check_shared
from actors.encoder import prompt_agent, text_encoder
from actors.evaluation import evaluate_run
from actors.graph import check_placement, stream
from actors.trainer import (
    IsLabeled,
    LabelingThread,
    RemoteLabelState,
    always_labeled,
    start_label_board,
    train_and_evaluate,
    training_fits_beside_stream,
)
from actors.training import check_workers, on_workers, train_base_on_workers
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.models.device import free_gpu
from syn4seg.stages.base import make_base
from syn4seg.stages.classifiers import load_classifier
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.plan import make_plan, read_planned_samples
from syn4seg.stages.results import write_manifest, write_results
from syn4seg.stages.rows import rows_of
from syn4seg.stages.setup import draws_of
from syn4seg.store.rundir import RunDir

Matrices = dict[int, dict[str, np.ndarray]]
"""Confusion matrices by draw and row."""


class Display(Protocol):
    """What the verbs tell the person at the terminal."""

    def note(self, text: str) -> None:
        """One line."""
        ...

    def bar(self, title: str) -> contextlib.AbstractContextManager[Callable[..., None]]:
        """A progress bar; the callable takes (done, total) and, for streams, the reasons so far."""
        ...

    def bars(self, *titles: str) -> contextlib.AbstractContextManager[list[Callable[..., None]]]:
        """Several progress bars at a time, see `bar`; they may be moved by several threads."""
        ...

    def funnel(self, draw: int, reasons: Counter) -> None:
        """How many samples a draw accepted, and why the others were not."""
        ...

    def results(self, results: dict[str, Any]) -> None:
        """The table at the end."""
        ...


def node_inputs(config: Config) -> dict[str, str]:
    """What processes on other nodes load, by key: paths, or names of what is packaged or fetched."""
    named = {
        "synthesis.model": config.synthesis.model,
        "synthesis.root": config.synthesis.root,
        "prompts.llm": config.prompts.llm,
        "segmenter.backbone": config.segmenter.backbone,
        "refinement.model": config.refinement.model,
    }
    if on_workers(config):
        named |= {"data.root": config.data.root, "segmenter.weights": config.segmenter.weights}
    return {key: str(value) for key, value in named.items() if value}


class Pipeline:
    """One run: every stage is a method that does what is still missing and nothing else."""

    def __init__(self, config: Config, run: RunDir, dataset: Dataset, fold: Fold, display: Display):
        self.config, self.run, self.dataset, self.fold, self.display = config, run, dataset, fold, display
        self.names, self.started = fold.index_names, round(time.time(), 3)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.time()
        self.run.log(kind="begin", stage=stage, started=self.started)
        yield
        self.run.log(stage=stage, seconds=time.time() - started)

    def check(self) -> None:
        """Joins Ray and refuses an impossible placement, or files that some node does not see, before anything is made."""
        check_placement(self.config)
        check_workers(self.config)
        if self.config.placement.runner == "ray":
            check_shared(str(self.run.root), node_inputs(self.config))

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
            train = functools.partial(train_base_on_workers, self.config, self.run) if on_workers(self.config) else None
            make_base(self.config, self.run, self.dataset, self.fold, progress, train)

    def whole(self) -> dict[str, Any]:
        """Everything. Under Ray the novel stage goes along with the stream that makes its labels, if there is room for both at the
        same time; the result is the same as afterwards."""
        if self.config.placement.runner != "ray" or not training_fits_beside_stream(self.config):
            self.refine()
            results = self.train()
            assert results is not None
            return results
        self._register()
        draws = draws_of(self.config)
        notice = start_label_board() if on_workers(self.config) else None
        with self._timed("labels and novel"), self.display.bars("labels", "novel stage", "queries") as (bar, *bars):

            def label(draw: int, go_on: Callable[[], None]) -> None:
                def progress(done: int, total: int, reasons: Counter) -> None:
                    go_on()
                    bar(draws.index(draw) * total + done, len(draws) * total, reasons)

                beside = self.config.placement.training if notice else None
                stream(self.config, self.run, self.names, draw, progress, self.display.note, beside)
                write_manifest(self.run, draw)

            with LabelingThread(label, draws, notice) as labelling:
                matrices = self._trained(bars, True, RemoteLabelState(notice) if notice else labelling.labelled)
        return self._scored(matrices)

    def refine(self) -> dict[int, Counter]:
        """Support registration, then images and all four labels of every draw; writes the manifests."""
        self._register()
        found = {}
        for draw in draws_of(self.config):
            with self._timed("labels"), self.display.bar(f"labels, draw {draw}") as progress:
                stream(self.config, self.run, self.names, draw, progress, self.display.note)
            found[draw] = write_manifest(self.run, draw)
        return found

    def _register(self) -> None:
        """Everything that labelling needs: plan, base checkpoint, and the support set of every draw."""
        self.prompts()
        self.base()
        with self._timed("register"):
            stage = NovelStage(self.config, self.run, self.dataset, self.fold)
            for draw in draws_of(self.config):
                stage.register(draw)
            del stage
            free_gpu()

    def train(self, evaluate: bool = True) -> dict[str, Any] | None:
        """The novel stage of every row and draw on finished labels, and (by default) the evaluation; returns results.json.

        Raises:
            UserError: some labels are not there.
        """
        wanted = read_planned_samples(self.run)["sample_id"]
        for draw in draws_of(self.config):
            done = self.run.draw(draw).complete()["sample_id"]
            missing = len(wanted) - pc.sum(pc.is_in(wanted, done.combine_chunks())).as_py()
            if missing:
                raise UserError(
                    f"{self.run.root}: {missing} of {len(wanted)} samples of draw {draw} have no label yet; run "
                    "`syn4seg refine` (or `syn4seg run`) with the same configuration first"
                )
        with self._timed("novel"), self.display.bars("novel stage", "queries") as bars:
            matrices = self._trained(bars, evaluate, always_labeled)
        return self._scored(matrices) if evaluate else None

    def _trained(self, bars: Sequence[Callable[..., None]], evaluate: bool, labelled: IsLabeled) -> Matrices:
        given = self.config, self.run, self.dataset, self.fold, bars
        return train_and_evaluate(*given, evaluate=evaluate, labelled=labelled)

    def _scored(self, matrices: Matrices) -> dict[str, Any]:
        unpublished = getattr(self.dataset, "unpublished", ())
        return write_results(self.run, self.config, self.fold, matrices, unpublished)

    def evaluate(self) -> dict[str, Any]:
        """Scores the classifiers that are there.

        Raises:
            UserError: one has not been trained yet.
        """
        for draw in draws_of(self.config):
            for row in rows_of(self.config):
                load_classifier(self.run.draw(draw).checkpoint(row))
        with self._timed("evaluate"), self.display.bar("queries") as progress:
            matrices: Matrices = evaluate_run(self.config, self.run, self.dataset, self.fold, progress)
        return self._scored(matrices)
