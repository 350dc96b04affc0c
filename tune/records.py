"""What is kept of a sweep: a JSON record per ended trial, which is the truth; all tables and files are made of them.

    SWEEP/config.yaml study.json  trials/00012.json trials.parquet study.journal tensorboard/ summary.json best.yaml report.html
    SWEEP/run  the run with prompts, images and base checkpoint, unless an earlier one is used

Records are written whole or not at all; everything else is made again from them.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from syn4seg.errors import DamagedError
from syn4seg.stages.results import METRICS, spread
from syn4seg.store.files import read_json, write_atomically, write_json
from syn4seg.store.tables import write_parquet
from tune.space import Study, distributions, from_choices

if TYPE_CHECKING:
    import optuna

Record = dict[str, Any]
JOURNAL = "syn4seg"
"""Name of the study inside study.journal."""


class SweepDir:
    """Paths and records of a sweep."""

    def __init__(self, root: Path):
        self.root = root
        self.config, self.study = root / "config.yaml", root / "study.json"
        self.run, self.best = root / "run", root / "best.yaml"
        self.table, self.journal = root / "trials.parquet", root / "study.journal"
        self.summary, self.report = root / "summary.json", root / "report.html"
        self.tensorboard, self.scratch = root / "tensorboard", root / ".scratch"

    def record(self, number: int) -> Path:
        """Return the path of a trial's record."""
        return self.root / "trials" / f"{number:05d}.json"

    def write(self, record: Record) -> None:
        """Keep the record of an ended trial."""
        write_json(self.record(record["number"]), record)

    def records(self) -> dict[int, Record]:
        """Return every record by number; a damaged one counts as not there, so its trial is made again."""
        records = {}
        for path in sorted((self.root / "trials").glob("*.json")):
            try:
                record = read_json(path)
                if isinstance(record, dict) and record["number"] == int(path.stem):
                    records[record["number"]] = record
            except (DamagedError, KeyError, TypeError):
                continue
        return records


def metric_value(record: Record, metric: str) -> float | None:
    """Return the mean of a metric over the draws of a trial, in [0, 1]; None where it has none."""
    return spread(list(record["draws"].get(metric, {}).values()))["mean"]


def optuna_trial(study: Study, record: Record) -> optuna.trial.FrozenTrial | None:
    """Return a record as Optuna holds it; None if its values lie outside of the space (the configuration's own values may)."""
    from optuna.trial import TrialState, create_trial

    space = distributions(study)
    if not all(_is_in(space[key], value) for key, value in record["params"].items()):
        return None
    objective = study.metrics
    values = [metric_value(record, metric) for metric in objective]
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    state = states[record["state"]]
    if state == TrialState.COMPLETE and None in values:
        state = TrialState.FAIL
    steps = {i + 1: report[objective[0]] for i, report in enumerate(record["reports"])} if len(objective) == 1 else {}
    facts = {m: spread(list(record["draws"][m].values())) for m in METRICS} if record["draws"] else {}
    return create_trial(
        state=state,
        params=record["params"],
        distributions=space,
        values=[float(v) for v in values if v is not None] if state == TrialState.COMPLETE else None,
        intermediate_values={step: value for step, value in steps.items() if value is not None},
        user_attrs={"number": record["number"], "seconds": record["seconds"], "error": record.get("error", ""), **facts},
    )


def _is_in(space: Any, value: Any) -> bool:
    """Return whether a value lies in a distribution of Optuna's, which raises an error about a value that its list lacks."""
    try:
        return space._contains(space.to_internal_repr(value))
    except ValueError:
        return False


def optuna_study(study: Study, records: Sequence[Record], storage: Any = None, sampler: Any = None) -> optuna.Study:
    """Return an Optuna study of ended trials, in the order of their numbers."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    up: list[Any] = ["maximize"] * len(study.objective)
    study_ = optuna.create_study(study_name=JOURNAL, storage=storage, sampler=sampler, directions=up)
    trials = [optuna_trial(study, record) for record in records]
    study_.add_trials([trial for trial in trials if trial is not None])
    return study_


def write_tensorboard(sweep: SweepDir, record: Record) -> None:
    """Write the scalars of a trial over its reports, its final metrics, and its values by key, under tensorboard/NUMBER.

    The folder is made in `scratch`, so it is there whole or not at all.
    """
    from tensorboardX import SummaryWriter

    folder = sweep.tensorboard / f"{record['number']:05d}"
    if folder.exists():
        return
    partial = sweep.scratch / folder.name
    with SummaryWriter(str(partial), write_to_disk=True) as writer:
        for step, report in enumerate(record["reports"], 1):
            for metric, value in report.items():
                if value is not None:
                    writer.add_scalar(f"report/{metric}", value, step)
        values = {m: value for m in METRICS if (value := metric_value(record, m)) is not None}
        params = {key: v if isinstance(v, bool | int | float | str) else json.dumps(v) for key, v in record["params"].items()}
        if values:
            writer.add_hparams(params, {f"final/{m}": value for m, value in values.items()}, name="values")
    sweep.tensorboard.mkdir(exist_ok=True)
    partial.rename(folder)


def write_results(sweep: SweepDir, study: Study) -> dict[str, Any]:
    """Write trials.parquet, study.journal and summary.json from the records; return the summary."""
    records = [record for _, record in sorted(sweep.records().items())]
    write_parquet(sweep.table, trial_table(study, records))
    shutil.rmtree(sweep.scratch, ignore_errors=True)  # what a killed process left there
    sweep.scratch.mkdir(exist_ok=True)
    for record in records:
        write_tensorboard(sweep, record)
    _write_journal(sweep, study, records)
    shutil.rmtree(sweep.scratch, ignore_errors=True)
    summary = summarise(study, records)
    write_json(sweep.summary, summary)
    return summary


def trial_table(study: Study, records: Sequence[Record]) -> pa.Table:
    """Return one row per trial: its number, state, values by key, mean and standard deviation of every metric over the draws."""
    rows = []
    for record in records:
        row: dict[str, Any] = {"number": record["number"], "state": record["state"]}
        row |= {key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in from_choices(study, record["params"]).items()}
        for metric in METRICS:
            of = spread(list(record["draws"].get(metric, {}).values()))
            row |= {metric: of["mean"], f"{metric}_std": of["std"], "draws": of["n"]}
        row |= {"seconds": record["seconds"], "error": record.get("error", "")}
        row["made"] = sum(how.get("made", 0) for how in record["stages"].values())
        rows.append(row)
    return pa.Table.from_pylist(rows)


def _write_journal(sweep: SweepDir, study: Study, records: Sequence[Record]) -> None:
    """Write the file of Optuna itself, for optuna-dashboard and optuna.visualization: JournalStorage(JournalFileBackend(PATH)).

    Optuna waits for the lock beside its file, half a minute or for ever if a killed process held it: so it is made in `scratch`.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    partial = sweep.scratch / sweep.journal.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls this storage experimental
        optuna_study(study, records, optuna.storages.JournalStorage(JournalFileBackend(str(partial))))
    partial.replace(sweep.journal)


def summarise(study: Study, records: Sequence[Record]) -> dict[str, Any]:
    """Return counts of trials by state, the best, the default beside it, the Pareto front, and the importance of the keys."""
    done = [r for r in records if r["state"] == "complete" and all(metric_value(r, m) is not None for m in study.metrics)]
    states = {state: sum(r["state"] == state for r in records) for state in ("complete", "pruned", "failed")}
    summary: dict[str, Any] = {
        "title": study.title,
        "objective": study.objective,
        "trials": len(records),
        **states,
        "on": "test list" if study.test else "validation images of the train list",
    }
    if not done:
        return summary
    best = max(done, key=lambda r: ([metric_value(r, m) for m in study.metrics], -r["number"]))
    summary["best"] = trial_facts(study, best)
    default = next((r for r in done if r["number"] == 0), None)
    if default is not None:
        summary["default"] = trial_facts(study, default)
        summary["comparison"] = {metric: compare_with_default(best, default, metric) for metric in study.metrics}
    if len(study.objective) > 1:
        summary["front"] = [trial_facts(study, r) for r in pareto_front(study, done)]
    summary["importance"] = {metric: importance(study, records, i) for i, metric in enumerate(study.metrics)}
    return summary


def trial_facts(study: Study, record: Record) -> dict[str, Any]:
    values = {metric: spread(list(record["draws"][metric].values())) for metric in METRICS}
    return {"number": record["number"], "params": from_choices(study, record["params"]), "values": values}


def compare_with_default(best: Record, default: Record, metric: str) -> dict[str, Any]:
    """Return the difference of two trials, draw by draw, and whether it is larger than the spread.

    Returns:
        `difference` (mean over the draws), `std` (of the differences), `spread` (the larger standard deviation of the two trials
        over their draws), `n`, and `beyond`: whether the difference is larger than both; None with a single draw.
    """
    best_scores, default_scores = best["draws"][metric], default["draws"][metric]
    both = [d for d in best_scores if default_scores.get(d) is not None and best_scores[d] is not None]
    paired = spread([best_scores[d] - default_scores[d] for d in both])
    widest = max(spread(list(best_scores.values()))["std"] or 0.0, spread(list(default_scores.values()))["std"] or 0.0)
    beyond = None if paired["n"] < 2 else bool(paired["mean"] > max(widest, paired["std"]))
    return {"difference": paired["mean"], "std": paired["std"], "spread": widest, "n": paired["n"], "beyond": beyond}


def pareto_front(study: Study, done: Sequence[Record]) -> list[Record]:
    """Return the trials that no other beats in every objective (Pareto front), by the first objective."""
    points = [[metric_value(r, m) or 0.0 for m in study.metrics] for r in done]

    def beaten(i: int) -> bool:
        return any(all(a >= b for a, b in zip(p, points[i], strict=True)) and p != points[i] for p in points)

    chosen = [r for i, r in enumerate(done) if not beaten(i)]
    return sorted(chosen, key=lambda r: (-(metric_value(r, study.metrics[0]) or 0.0), r["number"]))


def importance(study: Study, records: Sequence[Record], objective: int = 0) -> dict[str, float]:
    """Return the share of each key in the variance of an objective (fANOVA, Hutter et al. 2014); empty with too few trials
    to tell."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    ended = [r for r in records if r["state"] == "complete"]
    values = {metric_value(r, study.metrics[objective]) for r in ended}
    varied = [key for key in study.space if len({str(r["params"].get(key)) for r in ended}) > 1]
    if len(ended) < 4 or len(values) < 2 or not varied:
        return {}
    optuna_study_ = optuna_study(study, ended)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shares = get_param_importances(
                optuna_study_,
                evaluator=FanovaImportanceEvaluator(seed=study.seed),
                params=varied,
                target=lambda trial: trial.values[objective],
            )
        except (ValueError, RuntimeError, optuna.exceptions.OptunaError):
            return {}
    return {key: round(float(share), 4) for key, share in shares.items() if np.isfinite(share)}


def write_best(sweep: SweepDir, config: Any, summary: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Write best.yaml: the configuration of the best trial, for `syn4seg run`."""
    from syn4seg.config.tree import annotated
    from tune.space import apply_overrides

    best = apply_overrides(config, {**overrides, **summary["best"]["params"]})
    head = f"# The best of {summary['trials']} trials ({', '.join(summary['objective'])}, on the {summary['on']}): "
    head += f"trial {summary['best']['number']}.\n"
    write_atomically(sweep.best, (head + annotated(best)).encode())
