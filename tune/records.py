"""What is kept of a sweep: a JSON record per ended trial, which is the truth; all tables and files are made of them.

    SWEEP/config.yaml study.json  trials/00012.json trials.parquet study.journal tensorboard/ summary.json best.yaml report.html
    SWEEP/run  the run with prompts, images and base checkpoint, unless an earlier one is used

Records are written whole or not at all; everything else is made again from them.
"""

from __future__ import annotations

import json
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
from tune.space import Study, distributions, plain

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
        self.tensorboard = root / "tensorboard"

    def record(self, number: int) -> Path:
        """Path of a trial's record."""
        return self.root / "trials" / f"{number:05d}.json"

    def write(self, record: Record) -> None:
        """Keeps the record of an ended trial."""
        write_json(self.record(record["number"]), record)

    def records(self) -> dict[int, Record]:
        """Every record by number; a damaged one counts as not there, so its trial is made again."""
        found = {}
        for path in sorted((self.root / "trials").glob("*.json")):
            try:
                record = read_json(path)
                if isinstance(record, dict) and record["number"] == int(path.stem):
                    found[record["number"]] = record
            except (DamagedError, KeyError, TypeError):
                continue
        return found


def value_of(record: Record, metric: str) -> float | None:
    """Mean of a metric over the draws of a trial, in [0, 1]; None where it has none."""
    return spread(list(record["draws"].get(metric, {}).values()))["mean"]


def optuna_trial(study: Study, record: Record) -> optuna.trial.FrozenTrial | None:
    """A record as Optuna holds it; None if its values lie outside of the space (the configuration's own values may)."""
    from optuna.trial import TrialState, create_trial

    space = distributions(study)
    if not all(space[key]._contains(space[key].to_internal_repr(value)) for key, value in record["params"].items()):
        return None
    objective = study.metrics
    values = [value_of(record, metric) for metric in objective]
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


def optuna_study(study: Study, records: Sequence[Record], storage: Any = None, sampler: Any = None) -> optuna.Study:
    """An Optuna study of ended trials, in the order of their numbers."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    up: list[Any] = ["maximize"] * len(study.objective)
    made = optuna.create_study(study_name=JOURNAL, storage=storage, sampler=sampler, directions=up)
    trials = [optuna_trial(study, record) for record in records]
    made.add_trials([trial for trial in trials if trial is not None])
    return made


def write_tensorboard(sweep: SweepDir, record: Record) -> None:
    """Scalars of a trial over its reports, its final metrics, and its values by key, under tensorboard/NUMBER."""
    from tensorboardX import SummaryWriter

    folder = sweep.tensorboard / f"{record['number']:05d}"
    if folder.exists():
        return
    with SummaryWriter(str(folder), write_to_disk=True) as writer:
        for step, report in enumerate(record["reports"], 1):
            for metric, value in report.items():
                if value is not None:
                    writer.add_scalar(f"report/{metric}", value, step)
        values = {m: value for m in METRICS if (value := value_of(record, m)) is not None}
        params = {key: v if isinstance(v, bool | int | float | str) else json.dumps(v) for key, v in record["params"].items()}
        if values:
            writer.add_hparams(params, {f"final/{m}": value for m, value in values.items()}, name="values")


# ------------------------------------------------------------------------------------------------ what is made of them
def write_results(sweep: SweepDir, study: Study) -> dict[str, Any]:
    """trials.parquet, study.journal and summary.json of the records that are there; returns the summary."""
    records = [record for _, record in sorted(sweep.records().items())]
    write_parquet(sweep.table, trial_table(study, records))
    for record in records:
        write_tensorboard(sweep, record)
    _write_journal(sweep, study, records)
    found = summarise(study, records)
    write_json(sweep.summary, found)
    return found


def trial_table(study: Study, records: Sequence[Record]) -> pa.Table:
    """One row per trial: its number, state, values by key, mean and standard deviation of every metric over the draws."""
    rows = []
    for record in records:
        row: dict[str, Any] = {"number": record["number"], "state": record["state"]}
        row |= {key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in plain(study, record["params"]).items()}
        for metric in METRICS:
            of = spread(list(record["draws"].get(metric, {}).values()))
            row |= {metric: of["mean"], f"{metric}_std": of["std"], "draws": of["n"]}
        row |= {"seconds": record["seconds"], "error": record.get("error", "")}
        row["made"] = sum(how.get("made", 0) for how in record["stages"].values())
        rows.append(row)
    return pa.Table.from_pylist(rows)


def _write_journal(sweep: SweepDir, study: Study, records: Sequence[Record]) -> None:
    """Optuna's own file, for optuna-dashboard and optuna.visualization: JournalStorage(JournalFileBackend(PATH))."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    partial = sweep.journal.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls this storage experimental
        optuna_study(study, records, optuna.storages.JournalStorage(JournalFileBackend(str(partial))))
    partial.replace(sweep.journal)
    Path(str(partial) + ".lock").unlink(missing_ok=True)


def summarise(study: Study, records: Sequence[Record]) -> dict[str, Any]:
    """How many trials ended how, the best, the default beside it, the front of several objectives, and the keys' importance."""
    done = [r for r in records if r["state"] == "complete" and all(value_of(r, m) is not None for m in study.metrics)]
    states = {state: sum(r["state"] == state for r in records) for state in ("complete", "pruned", "failed")}
    found: dict[str, Any] = {
        "title": study.title,
        "objective": study.objective,
        "trials": len(records),
        **states,
        "on": "test list" if study.test else "validation images of the train list",
    }
    if not done:
        return found
    best = max(done, key=lambda r: ([value_of(r, m) for m in study.metrics], -r["number"]))
    found["best"] = _told(study, best)
    default = next((r for r in done if r["number"] == 0), None)
    if default is not None:
        found["default"] = _told(study, default)
        found["comparison"] = {metric: compared(best, default, metric) for metric in study.metrics}
    if len(study.objective) > 1:
        found["front"] = [_told(study, r) for r in front(study, done)]
    found["importance"] = {metric: importance(study, records, i) for i, metric in enumerate(study.metrics)}
    return found


def _told(study: Study, record: Record) -> dict[str, Any]:
    values = {metric: spread(list(record["draws"][metric].values())) for metric in METRICS}
    return {"number": record["number"], "params": plain(study, record["params"]), "values": values}


def compared(best: Record, default: Record, metric: str) -> dict[str, Any]:
    """The difference of two trials, draw by draw, and whether it is larger than the spread.

    Returns:
        `difference` (mean over the draws), `std` (of the differences), `spread` (the larger standard deviation of the two trials
        over their draws), `n`, and `beyond`: whether the difference is larger than both; None with a single draw.
    """
    ours, theirs = best["draws"][metric], default["draws"][metric]
    both = [d for d in ours if theirs.get(d) is not None and ours[d] is not None]
    paired = spread([ours[d] - theirs[d] for d in both])
    widest = max(spread(list(ours.values()))["std"] or 0.0, spread(list(theirs.values()))["std"] or 0.0)
    beyond = None if paired["n"] < 2 else bool(paired["mean"] > max(widest, paired["std"]))
    return {"difference": paired["mean"], "std": paired["std"], "spread": widest, "n": paired["n"], "beyond": beyond}


def front(study: Study, done: Sequence[Record]) -> list[Record]:
    """The trials that no other beats in every objective (Pareto front), by the first objective."""
    points = [[value_of(r, m) or 0.0 for m in study.metrics] for r in done]

    def beaten(i: int) -> bool:
        return any(all(a >= b for a, b in zip(p, points[i], strict=True)) and p != points[i] for p in points)

    chosen = [r for i, r in enumerate(done) if not beaten(i)]
    return sorted(chosen, key=lambda r: (-(value_of(r, study.metrics[0]) or 0.0), r["number"]))


def importance(study: Study, records: Sequence[Record], objective: int = 0) -> dict[str, float]:
    """Share of each key in the variance of an objective (fANOVA, Hutter et al. 2014); empty with too few trials to tell."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    ended = [r for r in records if r["state"] == "complete"]
    values = {value_of(r, study.metrics[objective]) for r in ended}
    varied = [key for key in study.space if len({str(r["params"].get(key)) for r in ended}) > 1]
    if len(ended) < 4 or len(values) < 2 or not varied:
        return {}
    made = optuna_study(study, ended)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = get_param_importances(
                made,
                evaluator=FanovaImportanceEvaluator(seed=study.seed),
                params=varied,
                target=lambda trial: trial.values[objective],
            )
        except (ValueError, RuntimeError, optuna.exceptions.OptunaError):
            return {}
    return {key: round(float(share), 4) for key, share in found.items() if np.isfinite(share)}


def write_best(sweep: SweepDir, config: Any, summary: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """best.yaml: the configuration of the best trial, for `syn4seg run`."""
    from syn4seg.config.tree import annotated
    from tune.space import applied

    best = applied(config, {**overrides, **summary["best"]["params"]})
    head = f"# The best of {summary['trials']} trials ({', '.join(summary['objective'])}, on the {summary['on']}): "
    head += f"trial {summary['best']['number']}.\n"
    write_atomically(sweep.best, (head + annotated(best)).encode())
