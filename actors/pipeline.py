"""The verbs in order: prompts, synthesis, labels, novel stage, evaluation; streamed through Ray or inline, resumable."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from actors import trainer
from actors.cluster import check_shared, start_line
from actors.encoder import prompt_agent, text_encoder
from actors.evaluation import evaluate_run
from actors.graph import check_placement, stream
from actors.training import check_workers, on_workers, start_here, train_base_on_workers
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.models.device import free_gpu
from syn4seg.stages.base import make_base
from syn4seg.stages.classifiers import load_classifier
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.plan import check_labelled, make_plan
from syn4seg.stages.results import write_manifest, write_results
from syn4seg.stages.reuse import reuse
from syn4seg.stages.rounds import next_registration
from syn4seg.stages.rows import rows_of
from syn4seg.stages.setup import draws_of
from syn4seg.store.files import exists
from syn4seg.store.readback import Inputs, read_checked
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import rewrite_sealed
from syn4seg.trained.folder import write_model

TRAINING_BARS = ("novel stage", "joint stage", "queries")
"""Titles of the bars of training and scoring."""

Matrices = dict[int, dict[str, np.ndarray]]
"""Confusion matrices by draw and row."""


class Display(Protocol):
    """What the verbs show the person at the terminal."""

    def note(self, text: str) -> None:
        """Show one line."""
        ...

    def bar(self, title: str) -> contextlib.AbstractContextManager[Callable[..., None]]:
        """Show a progress bar; the callable takes (done, total) and, for streams, the reasons so far."""
        ...

    def bars(self, *titles: str) -> contextlib.AbstractContextManager[list[Callable[..., None]]]:
        """Show several progress bars at a time, see `bar`; they may be moved by several threads."""
        ...

    def funnel(self, draw: int, reasons: Counter) -> None:
        """Show how many samples a draw accepted, and why the others were not."""
        ...

    def results(self, results: dict[str, Any]) -> None:
        """Show the table at the end."""
        ...


def node_inputs(config: Config) -> dict[str, str]:
    """Return what processes on other nodes load, by key: paths, or names of what is packaged or fetched."""
    inputs = {
        "synthesis.model": None if config.synthesis.source == "api" else config.synthesis.model,
        "synthesis.root": config.synthesis.root,
        "synthesis.check": config.synthesis.check,
        "prompts.llm": config.prompts.llm,
        "segmenter.backbone": config.segmenter.backbone,
        "labeling.features": config.labeling.features,
        "labeling.feature_weights": config.labeling.feature_weights,
        "refinement.model": config.refinement.model,
    }
    if on_workers(config):
        inputs |= {"data.root": config.data.root, "segmenter.weights": config.segmenter.weights}
        inputs |= {"novel.base_photos": config.novel.base_photos, "evaluation.by_name": config.evaluation.by_name}
    return {key: str(value) for key, value in inputs.items() if value}


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
        """Join Ray and refuse an impossible placement, or files that some node does not see, before anything is made."""
        if self.config.placement.runner == "ray":
            self.display.note(start_line(self.config.placement.address))
        check_placement(self.config)
        check_workers(self.config)
        if self.config.placement.runner == "ray":
            check_shared(str(self.run.root), node_inputs(self.config))

    def prompts(self) -> None:
        """Make the prompt bank, its embeddings, and the plan; the text encoders live only while something is to be encoded."""
        arguments = self.config, self.run, self.fold, self.display.note
        with self._timed("prompts"):
            if self.run.plan.is_file():
                return
            if self.config.synthesis.source == "folder":
                make_plan(*arguments, None, None)
                return
            self.display.note(f"loading the text encoder of {self.config.synthesis.generator}")
            with text_encoder(self.config) as encoder:
                make_plan(*arguments, prompt_agent(self.config, encoder), encoder)

    def synthesize(self) -> Counter:
        """Make the images only."""
        self.prompts()
        with self._timed("synthesize"), self.display.bar("images") as progress:
            return stream(self.config, self.run, self.names, None, progress, self.display.note)

    def base(self) -> None:
        """Make the base checkpoint."""
        trains = self.config.base.checkpoint == "train" and not self.run.base.is_file()
        bar = self.display.bar("base stage") if trains else contextlib.nullcontext(lambda *_: None)
        with self._timed("base"), bar as progress:
            train = functools.partial(train_base_on_workers, self.config, self.run) if on_workers(self.config) else None
            make_base(self.config, self.run, self.dataset, self.fold, progress, train)

    def run_all(self) -> dict[str, Any]:
        """Run every stage; return results.json. Under Ray the novel stage goes along with the stream that makes its labels, if
        there is room for both at the same time; the result is the same as afterwards."""
        if self.config.placement.runner != "ray" or not trainer.training_fits_beside_stream(self.config):
            self.refine()
            return self._write_results(self._train_finished(evaluate=bool(self.dataset.val)))
        self._register()
        draws = draws_of(self.config)
        board = start_here(trainer.LabelBoard) if on_workers(self.config) else None
        with self._timed("labels and novel"), self.display.bars("labels", *TRAINING_BARS) as (bar, *bars):

            def label(draw: int, go_on: Callable[[], None]) -> None:
                def progress(done: int, total: int, reasons: Counter) -> None:
                    go_on()
                    bar(draws.index(draw) * total + done, len(draws) * total, reasons)

                beside = self.config.placement.training if board else None
                stream(self.config, self.run, self.names, draw, progress, self.display.note, beside)
                write_manifest(self.run, draw)

            with trainer.LabelingThread(label, draws, board) as labeling:
                matrices = self._train(
                    bars, bool(self.dataset.val), trainer.RemoteLabelState(board) if board else labeling.is_labeled
                )
        return self._write_results(matrices)

    def refine(self) -> dict[int, Counter]:
        """Register the supports, then make images and all four labels of every draw; write the manifests."""
        self._register()
        reasons = {}
        for draw in draws_of(self.config):
            with self._timed("labels"), self.display.bar(f"labels, draw {draw}") as progress:
                stream(self.config, self.run, self.names, draw, progress, self.display.note)
            reasons[draw] = write_manifest(self.run, draw)
        return reasons

    def _register(self) -> None:
        """Make everything that labeling needs: plan, base checkpoint, and the support set of every draw."""
        self.prompts()
        self.base()
        with self._timed("register"):
            self.display.note(f"learning the support set of {len(draws_of(self.config))} draw(s)")
            stage = NovelStage(self.config, self.run, self.dataset, self.fold)
            for draw in draws_of(self.config):
                stage.register(draw)
            del stage
            free_gpu()
        if self.config.labeling.rounds > 1:
            self._make_earlier_round()

    def _make_earlier_round(self) -> None:
        """Label and train the round before as a run of its own, and keep what this one labels with (`stages.rounds`).

        A draw keeps what it began with, so that all its labels come from the same.
        """
        missing = [draw for draw in draws_of(self.config) if not exists(self.run.draw(draw).drafter)]
        if not missing:
            return
        rounds, run = self.config.labeling.rounds, self.run.round(self.config.labeling.rounds - 1)
        labeling = self.config.labeling.model_copy(update={"rounds": rounds - 1})
        only = {"rows": ("syn4seg",), "controls": False, "by_name": None, "baselines": ()}
        evaluation = self.config.evaluation.model_copy(update=only)
        novel = self.config.novel.model_copy(update={"trains": "classifier"})
        config = self.config.model_copy(update={"labeling": labeling, "novel": novel, "evaluation": evaluation})
        run.open(config)
        if exists(self.run.inputs):
            run.write_inputs(read_checked(self.run.inputs, Inputs))
        reuse(self.run, run, config)
        earlier = Pipeline(config, run, self.dataset, self.fold, self.display)
        earlier.refine()
        reuse(run, self.run, self.config)  # its images
        earlier._train_finished(evaluate=False)
        with earlier._timed("register"):
            stage = NovelStage(config, run, self.dataset, self.fold)
            for draw in missing:
                next_registration(stage, draw).save(self.run.draw(draw).drafter)
            del stage
            free_gpu()
        self.display.note(f"round {rounds - 1} of {rounds} is in {run.root}")

    def train(self, evaluate: bool = True) -> dict[str, Any] | None:
        """Run the novel stage of every row and draw on finished labels, and (by default) evaluate; return results.json.

        Raises:
            UserError: some labels are missing.
        """
        matrices = self._train_finished(evaluate)
        return self._write_results(matrices) if evaluate else None

    def _train_finished(self, evaluate: bool) -> Matrices:
        for draw in draws_of(self.config):
            check_labelled(self.run, draw)
        with self._timed("novel"), self.display.bars(*TRAINING_BARS) as bars:
            return self._train(bars, evaluate, trainer.always_labeled)

    def _train(self, bars: Sequence[Callable[..., None]], evaluate: bool, is_labeled: trainer.IsLabeled) -> Matrices:
        arguments = self.config, self.run, self.dataset, self.fold, bars
        return trainer.train_and_evaluate(*arguments, evaluate=evaluate, is_labeled=is_labeled)

    def _write_results(self, matrices: Matrices) -> dict[str, Any]:
        """Write results.json, and last of all the model of the first draw into model/."""
        results = write_results(self.run, self.config, self.fold, matrices, getattr(self.dataset, "unpublished", ()))
        write_model(self.run, self.config, self.fold, self.run.model, write=rewrite_sealed)
        return results

    def evaluate(self) -> dict[str, Any]:
        """Score the classifiers that are trained.

        Raises:
            UserError: one has not been trained yet.
        """
        for draw in draws_of(self.config):
            for row in rows_of(self.config):
                load_classifier(self.run.draw(draw).checkpoint(row))
        if not self.dataset.val:
            return self._write_results({})
        with self._timed("evaluate"), self.display.bar("queries") as progress:
            matrices = evaluate_run(self.config, self.run, self.dataset, self.fold, progress)
        return self._write_results(matrices)
