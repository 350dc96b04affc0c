"""What a trial does in its process under Ray Tune: an actor that keeps networks and cached stages from one trial to the next."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune as ray_tune

from syn4seg.config.tree import Config
from syn4seg.errors import StoreError
from syn4seg.stages.results import METRICS, spread
from syn4seg.stages.reuse import reuse
from syn4seg.store.files import to_json
from syn4seg.store.rundir import RunDir
from syn4seg.trials.cache import StageCache
from syn4seg.trials.trial import Trials
from tune.space import ONCE, apply_overrides


class TrialObjective(ray_tune.Trainable):
    """One report of a trial per step. Ray Tune gives the process the next trial when one has ended (`reuse_actors`).

    A trial's own exceptions end it as failed and leave the process as it is; only a lost process is tried again.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Begin with the first trial."""
        import torch

        parts = json.loads(config["trial"])
        torch.set_num_threads(max(1, int(parts["cpus"])))
        self.cache = StageCache(parts["cache"], parts["cache_bytes"])
        self.trials = Trials(self.cache, RunDir(parts["reference"]), parts["validation"], self._make_run, parts["device"])
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin with another trial."""
        self.parts, self.started = json.loads(new_config["trial"]), time.perf_counter()
        self.before, self.reports = self.cache.counts.copy(), []
        self.scores: Iterator[dict[int, Any]] | None = None
        return True

    def step(self) -> dict[str, Any]:
        """Train up to the next report. The result's `record`, a JSON text, is what is kept of the trial once it is `done`."""
        try:
            if self.scores is None:
                config = apply_overrides(Config.model_validate(self.parts["config"]), self.parts["overrides"] | ONCE)
                self.scores = self.trials.scores(config, self.parts["study_reports"])
            draws = next(self.scores)
        except StoreError as error:  # no fault of the trial: the sweep stops
            return {"done": True, "stopped": " ".join(str(error).split())}
        except Exception as error:  # noqa: BLE001 - whatever a trial does, the study goes on
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:800]}"
            return self._ended("failed", {}, error=line, traceback=traceback.format_exc()[-8000:])
        self.reports.append({metric: spread([of[metric] for of in draws.values()])["mean"] for metric in METRICS})
        number, objective = len(self.reports), self.parts["metrics"][0]
        if number == self.parts["study_reports"]:
            return self._ended("complete", draws)
        value, least = self.reports[-1][objective], self.parts["stop_below"][number - 1]
        if least is not None and (value is None or value < least):
            return self._ended("pruned", draws)
        return {"done": False, "report": number}

    def _ended(self, state: str, draws: dict[int, Any], **facts: Any) -> dict[str, Any]:
        if self.scores is not None:
            self.scores.close()  # pyright: ignore[reportAttributeAccessIssue]
        kept = {metric: {str(draw): _number(of[metric]) for draw, of in draws.items()} for metric in METRICS}
        counts = self.cache.counts - self.before
        stages: dict[str, dict[str, int]] = {}
        for (stage, how), count in sorted(counts.items()):
            stages.setdefault(stage, {})[how] = count
        record = {
            "number": self.parts["number"],
            "overrides": self.parts["overrides"],
            "params": self.parts["params"],
            "state": state,
            "draws": kept,
            "reports": self.reports,
            "stages": stages,
            "seconds": round(time.perf_counter() - self.started, 3),
            **facts,
        }
        return {"done": True, "report": len(self.reports), "record": json.dumps(to_json(record))}

    def _make_run(self, config: Config, path: Path) -> None:
        """Make prompts, images and base checkpoint in a folder, in this process; link what the reference run has already."""
        make_run(config, path, RunDir(self.parts["reference"]), self.parts["device"])

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: what is worth keeping is in the stage cache."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing, see `save_checkpoint`."""


def make_run(config: Config, path: Path, reference: RunDir, device: str) -> None:
    """Make prompts, images and base checkpoint of a configuration, or go on with them; stages that fit are taken from a run."""
    from actors.pipeline import Pipeline
    from syn4seg.stages.checks import check
    from syn4seg.stages.setup import digest_inputs

    placement = config.placement.model_copy(update={"runner": "inline", "device": device})
    config = config.model_copy(update={"placement": placement})
    run = RunDir(path)
    run.open(config)
    run.write_inputs(digest_inputs(config))
    if reference.stored() is not None:
        reuse(reference, run, config)
    dataset, fold = check(config, run)
    pipeline = Pipeline(config, run, dataset, fold, SilentDisplay())
    pipeline.synthesize()
    pipeline.base()


class SilentDisplay:
    """A display for processes that nobody looks at."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def bar(self, title: str) -> Any:
        """Return a bar that nobody sees."""
        import contextlib

        return contextlib.nullcontext(lambda *_: None)

    def bars(self, *titles: str) -> Any:
        """Return bars that nobody sees."""
        import contextlib

        return contextlib.nullcontext([lambda *_: None for _ in titles])

    def funnel(self, draw: int, reasons: Any) -> None:
        """Do nothing."""

    def results(self, results: dict[str, Any]) -> None:
        """Do nothing."""


def _number(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else float(value)
