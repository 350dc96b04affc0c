"""A sweep: Ray Tune runs the trials, Optuna's sampler chooses them, records on disk say what is done.

The rule that makes a study repeatable: trial n is chosen from the results of trials 0 to n - window and a seed of its own, and
from nothing else; it starts when these have ended. How many trials run at a time, which one ends first, and how often the
driver was killed change no trial. Ray Tune's OptunaSearch would learn from whatever has ended by now, and continue from a
pickled state that may be older than the last result; hence a searcher of our own around the same sampler.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune as ray_tune
from ray.tune.search import Searcher

from actors.cluster import check_shared, connect, node_resources
from actors.placement import Operator, preflight
from syn4seg.config.placement import PoolConfig
from syn4seg.config.tree import Config
from syn4seg.errors import StoreError, UserError
from syn4seg.seeds import seeded
from syn4seg.store.rundir import RunDir
from tune.idle_processes import idle_processes_kept
from tune.objective import TrialObjective
from tune.records import Record, SweepDir, optuna_study, write_best, write_results
from tune.space import Study, as_choice, default_value, distributions, from_choices, grid
from tune.validation import AllTrialsFailed, validation_images

QUANTILE = {"none": None, "median": 1 / 2, "thirds": 2 / 3}
"""Share of the earlier values at a report below which a trial is stopped."""
LEAST_KNOWN = 4
"""Earlier values that a report must have before a trial is stopped at it."""
SWITCHES = ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER", "TUNE_DISABLE_STRICT_METRIC_CHECKING")
"""Ray Tune writes no files about trials, leaves Ctrl-C to us, and does not ask for the metric in every result."""
LOST = 2
"""How often a trial is begun again after its process was lost."""


def choose_params(study: Study, config: Config, number: int, ended: Mapping[int, Record]) -> dict[str, Any] | None:
    """Return the values of trial `number` by key; None until every trial that it learns from has ended."""
    import warnings

    import optuna

    known = range(max(0, number - study.window + 1))
    if any(i not in ended for i in known):
        return None
    space = distributions(study)
    if number == 0:
        return {key: as_choice(default_value(config, key)) for key in study.space}
    if study.sampler == "grid":
        return {key: as_choice(value) for key, value in grid(study)[number - 1].items()}
    seed = int(seeded("sweep", study.seed, number).integers(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls multivariate sampling experimental
        if study.sampler == "random" or number < study.startup:
            sampler: Any = optuna.samplers.RandomSampler(seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=0)
        optuna_study_ = optuna_study(study, [ended[i] for i in known], sampler=sampler)
        return optuna_study_.ask(space).params


def stop_below(study: Study, number: int, ended: Mapping[int, Record]) -> list[float | None]:
    """Return, for each report, the objective below which trial `number` is stopped; None where it may go on regardless."""
    share = QUANTILE[study.pruning]
    limits: list[float | None] = []
    for report in range(study.reports):
        known = [ended[i]["reports"] for i in range(max(0, number - study.window + 1)) if i in ended]
        values = [r[report][study.metrics[0]] for r in known if len(r) > report and r[report][study.metrics[0]] is not None]
        enough = share is not None and number > 0 and report < study.reports - 1 and len(values) >= LEAST_KNOWN
        limits.append(float(np.quantile(values, share)) if enough and share is not None else None)
    return limits


class Chooser(Searcher):
    """Hands Ray Tune the trials that are missing, and keeps the record of each that ends.

    Args:
        parts: what every trial of the sweep is given, see `Objective`.
        on_record: called with the record of an ended trial.
    """

    def __init__(
        self, study: Study, config: Config, sweep: SweepDir, count: int, parts: dict[str, Any], on_record: Callable[[Record], None]
    ):
        super().__init__()
        self.study, self.base, self.sweep, self.parts, self.on_record = study, config, sweep, parts, on_record
        self.ended = sweep.records()
        self.missing = [n for n in range(count) if n not in self.ended]
        self.running: dict[str, dict[str, Any]] = {}
        self.stopped = ""

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial; None as long as it waits for others, FINISHED when there is none."""
        if not self.missing:
            return Searcher.FINISHED
        number = self.missing[0]
        params = choose_params(self.study, self.base, number, self.ended)
        if params is None:
            return None
        self.missing.pop(0)
        self.running[trial_id] = trial = {
            "number": number,
            "params": params,
            "overrides": {**self.study.set, **from_choices(self.study, params)},
            "stop_below": stop_below(self.study, number, self.ended),
        }
        return {"trial": json.dumps(self.parts | trial)}  # a text: Ray Tune flattens mappings into every result

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Keep the record of a trial that ended."""
        trial = self.running.pop(trial_id)
        if result is not None and "stopped" in result:
            self.stopped = result["stopped"]
            return
        text = None if result is None or error else result.get("record")
        record: Record = (
            json.loads(text)
            if text
            else {
                "number": trial["number"],
                "overrides": trial["overrides"],
                "params": trial["params"],
                "state": "failed",
                "draws": {},
                "reports": [],
                "stages": {},
                "seconds": 0.0,
                "error": f"the process of the trial was lost {LOST + 1} times; Ray's logs say why (out of memory?)",
            }
        )
        self.sweep.write(record)
        self.ended[record["number"]] = record
        self.on_record(record)

    def __getstate__(self) -> dict[str, Any]:
        """Do nothing: Ray Tune pickles its searcher for a restart of its own, which is never used."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the records are on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, see `save`."""


def check_room(config: Config, concurrency: int) -> None:
    """Join Ray and refuse more trials at a time than fit.

    Raises:
        UserError: with how many fit.
    """
    connect(config.placement)
    trial = config.placement.trial
    pool = PoolConfig(
        size=concurrency, batch=1, cpus=trial.cpus, gpus=trial.gpus, accelerator=trial.accelerator, resources=trial.resources
    )
    preflight([Operator(TrialObjective, {}, pool, "trial")], node_resources())


def run_sweep(
    sweep: SweepDir,
    study: Study,
    config: Config,
    *,
    trials: int,
    concurrency: int,
    cache: Path,
    cache_bytes: int,
    reference: RunDir,
    fail_fast: bool,
    on_record: Callable[[Record], None],
) -> dict[str, Any]:
    """Run the trials that are missing, write every result file, and return the summary.

    Args:
        reference: a run with prompts, images and base checkpoint of the configuration.
        on_record: called with the record of every trial that ends.

    Raises:
        UserError: too few validation images; with `fail_fast`, a trial failed.
        AllTrialsFailed: every trial failed.
        StoreError: the disk is full, or the cache cannot be written.
    """
    count = trials
    check_room(config, concurrency)
    check_shared(str(sweep.root.absolute()), {"--cache": str(cache.absolute())})
    place = config.placement.trial
    parts = {
        "config": config.model_dump(mode="json"),
        "reference": reference.address,
        "cache": str(cache.absolute()),
        "cache_bytes": cache_bytes,
        "validation": validation_images(study, config),
        "metrics": study.metrics,
        "study_reports": study.reports,
        "cpus": place.cpus,
        "device": ("cuda" if place.gpus else "cpu") if config.placement.device == "auto" else config.placement.device,
    }
    failures: list[Record] = []

    def ended(record: Record) -> None:
        if record["state"] == "failed":
            failures.append(record)
        on_record(record)

    chooser = Chooser(study, config, sweep, count, parts, ended)
    if chooser.missing:
        _tune(chooser, config, min(concurrency, study.window), lambda: bool(chooser.stopped or (fail_fast and failures)))
    if chooser.stopped:
        raise StoreError(f"{chooser.stopped}; then go on with --resume")
    summary = write_results(sweep, study)
    if fail_fast and failures:
        first = failures[0]
        raise UserError(
            f"--fail-fast: trial {first['number']} failed: {first['error']}; mend it, and go on with --resume (a "
            f"failed trial is made again when {sweep.record(first['number'])} is deleted)"
        )
    if not summary["complete"]:
        reasons = sorted({record.get("error", "") for record in chooser.ended.values() if record["state"] == "failed"})
        raise AllTrialsFailed(f"{sweep.root}: no trial of {summary['trials']} ended well: {reasons[0] if reasons else 'no reason'}")
    write_best(sweep, config, summary, study.set)
    return summary


def _tune(chooser: Chooser, config: Config, concurrency: int, failed: Callable[[], bool]) -> None:
    """Run Ray Tune over the trials of the chooser; its own files lie in a temporary folder and are deleted."""
    os.environ |= {name: "1" for name in SWITCHES} | {"RAY_AIR_NEW_OUTPUT": "0"}
    place = config.placement.trial
    needs = {"CPU": place.cpus, "GPU": place.gpus, **place.resources}
    if place.accelerator:
        needs[f"accelerator_type:{place.accelerator}"] = 0.001
    folder = tempfile.mkdtemp(prefix="syn4seg-tune-")
    trainable: Any = ray_tune.with_resources(
        TrialObjective, ray_tune.PlacementGroupFactory([{k: v for k, v in needs.items() if v}])
    )
    tuner = ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=chooser,
            num_samples=len(chooser.missing),
            max_concurrent_trials=concurrency,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=ray_tune.RunConfig(
            name="sweep",
            storage_path=folder,
            verbose=0,
            stop=_Stop(failed),
            failure_config=ray_tune.FailureConfig(max_failures=LOST),
        ),
    )
    try:
        with idle_processes_kept():
            tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Stop(ray_tune.Stopper):
    """End the whole sweep: nothing can be written any more, or --fail-fast was given."""

    def __init__(self, failed: Callable[[], bool]):
        self.failed = failed

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing, see `Chooser`."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no trial is stopped by itself."""
        return False

    def stop_all(self) -> bool:
        """Return whether the sweep must end."""
        return self.failed()
